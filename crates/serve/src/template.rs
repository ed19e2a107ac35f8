//! Chat templates: the Jinja dialect of Hugging Face's tokenizers.
//!
//! Policy: a template is code of the model's folder, so it runs with limited fuel and cannot read files. What it calls (`raise_exception`,
//! `strftime_now`, Python's string methods) is there.

use std::collections::BTreeMap;

use flashlin::{Error, Result, tokenizer::Tokenizer};
use minijinja::{Environment, ErrorKind, Value as Jinja, context, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value};

/// Steps of a template for one conversation.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat";

/// A template, compiled.
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    specials: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`; the tokenizer tells the special tokens that templates name (`bos_token`, ...).
    ///
    /// # Errors
    /// A template with a syntax error.
    pub fn new(source: String, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::argument("chat template", e.to_string()))?);
        env.set_fuel(Some(FUEL));
        env.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, source.clone())
            .map_err(|e| Error::argument("chat template", e.to_string()))?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.inner().id_to_token(id));
        let specials =
            [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos()), ("pad_token", tokenizer.pad())];
        let specials =
            specials.into_iter().filter_map(|(name, id)| Some((name.to_string(), text(id)?))).collect();
        Ok(ChatTemplate { env, source, specials })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation. `extra` are further variables of the template.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        extra: Map<String, Value>,
    ) -> Result<String> {
        let refused = |e: minijinja::Error| {
            let why = e.detail().map_or_else(|| e.to_string(), String::from);
            Error::argument("messages", format!("the chat template refuses them: {why}"))
        };
        let own = context! { messages => Jinja::from(Serde(messages)), add_generation_prompt => add_generation_prompt, tools => Jinja::from(()) };
        let vars = context! { ..own, ..Jinja::from(Serde(&self.specials)), ..Jinja::from(Serde(&extra)) };
        self.env.get_template(NAME).and_then(|t| t.render(vars)).map_err(refused)
    }
}

/// The date in the forms that templates ask for.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(now / 86_400);
    let names = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let name = names[month as usize - 1];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => out += &format!("{year:04}"),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('H') => out += &format!("{:02}", now / 3600 % 24),
            Some('M') => out += &format!("{:02}", now / 60 % 60),
            Some('S') => out += &format!("{:02}", now % 60),
            Some('%') => out.push('%'),
            other => {
                let what = other.map_or(String::new(), String::from);
                let why = format!("strftime_now knows %Y %m %d %B %b %H %M %S, not %{what}");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, why));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a number of days after 1970-01-01 (proleptic Gregorian; eras of 400 years).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: Value) -> Result<String> {
        let template = ChatTemplate::new(source.into(), &Tokenizer::bytes().unwrap())?;
        let extra = json!({"who": "me"}).as_object().unwrap().clone();
        template.render(messages.as_array().unwrap(), true, extra)
    }

    #[test]
    fn templates_of_the_wild_render() {
        let chatml = "{%- for m in messages %}\n{{- '<|im_start|>' + m.role + '\\n' + m['content'].strip() + '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
        let talk = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi \n"}]);
        let want =
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(chatml, talk.clone()).unwrap(), want);
        let odd = "{% if not loop is defined and tools is none %}{{ eos_token }}{% endif %}{{ who }}{{ messages[0].items() | list | length }}{{ messages | tojson }}{{ strftime_now('%Y') | length }}{% set ns = namespace(n=1) %}{{ ns.n }}{{ messages[1:] | length }}";
        let text = render(odd, talk.clone()).unwrap();
        assert!(text.contains("me2[{") && text.ends_with("411"), "{text}");
        let e = render("{{ raise_exception('roles must alternate') }}", talk.clone()).unwrap_err();
        assert!(e.to_string().contains("roles must alternate"), "{e}");
        assert!(render("{% for", talk.clone()).is_err());
        let endless =
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}";
        assert!(render(endless, talk).is_err());
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_088), (2024, 12, 31));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}
