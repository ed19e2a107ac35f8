//! Texts as lm-evaluation-harness treats them: what is a blank, where words end, how a pair of context and continuation is tokenised.
//!
//! Policy: the same numbers as `lm_eval` 0.4.13, its peculiarities included; each is named where it is met.

use std::sync::LazyLock;

use flashlin::tokenizer::Tokenizer;
use regex::Regex;

use crate::{Error, Result, score::Request};

/// A blank to Python's `str.isspace` and `\s`: Unicode's white space, and four separators of ASCII.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words as `len(re.split(r"\s+", text))` counts them: runs of blanks and one more, also where a run begins or ends the text.
pub fn count_words(text: &str) -> u64 {
    let mut runs = 0;
    let mut inside = false;
    for c in text.chars() {
        let blank = is_blank(c);
        runs += u64::from(blank && !inside);
        inside = blank;
    }
    runs + 1
}

/// How texts become tokens.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// A BOS before every text.
    bos: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// `bos`: put a BOS before every text; None: if `tokenizer.json` asks for it.
    ///
    /// # Errors
    /// [`Error::NoBos`].
    pub fn new(tokenizer: &'a Tokenizer, bos: Option<bool>) -> Result<Encoder<'a>> {
        let asked = tokenizer.bos().is_some_and(|id| tokenizer.prefix().contains(&id));
        let bos = match (bos.unwrap_or(asked), tokenizer.bos()) {
            (true, None) => return Err(Error::NoBos),
            (wanted, id) => id.filter(|_| wanted),
        };
        Ok(Encoder { tokenizer, bos })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// The BOS that stands before every text, if one does.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What stands before a text that nothing stands before: BOS, else EOS.
    ///
    /// # Errors
    /// [`Error::NoPrefix`].
    pub fn prefix(&self) -> Result<u32> {
        self.tokenizer.bos().or(self.tokenizer.eos()).ok_or(Error::NoPrefix)
    }

    /// Ids of a text, special tokens that are spelled out in it recognised; behind a BOS if one is to stand there.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn text(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, false)?;
        Ok(self.bos.filter(|b| ids.first() != Some(b)).into_iter().chain(ids).collect())
    }

    /// A continuation after a context: blanks at the context's end belong to the continuation, the two are tokenised together, and
    /// what goes beyond the tokens of the context alone is the continuation.
    ///
    /// # Errors
    /// Those of the tokenizer; [`Error::NoPrefix`] for an empty context.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<Request> {
        let bare = context.trim_end_matches(is_blank);
        let whole = format!("{context}{continuation}");
        if bare.is_empty() {
            return self.alone(&whole);
        }
        let (context, mut ids) = (self.text(bare)?, self.text(&whole)?);
        let continuation = ids.split_off(context.len().min(ids.len()));
        Ok(Request { context, continuation })
    }

    /// A text after nothing: behind [`Encoder::prefix`], unless it begins with that token.
    fn alone(&self, text: &str) -> Result<Request> {
        let (prefix, ids) = (self.prefix()?, self.tokenizer.encode(text, false)?);
        let begins = usize::from(ids.first() == Some(&prefix));
        Ok(Request { context: vec![prefix], continuation: ids[begins..].to_vec() })
    }

    /// All of a text behind [`Encoder::prefix`], in pieces of which the model reads at most `window` tokens. Each piece predicts what
    /// the ones before it did not, after as much context as fits.
    ///
    /// # Errors
    /// Those of the tokenizer; [`Error::NoPrefix`].
    pub fn rolling(&self, text: &str, window: Option<usize>) -> Result<Vec<Request>> {
        let mut ids = vec![self.prefix()?];
        ids.extend(self.text(text)?);
        let window = window.unwrap_or(usize::MAX).max(1);
        let mut requests = Vec::new();
        // Token `ids[i]` is predicted from `ids[..i]`.
        let mut predicted = 0;
        while predicted + 1 < ids.len() {
            let n = window.min(ids.len() - 1 - predicted);
            let end = predicted + 1 + n;
            // The first piece begins with the prefix; the others read a full window that ends before their last token.
            let start = if predicted == 0 { 0 } else { end - 1 - window };
            requests.push(Request {
                context: ids[start..end - n].to_vec(),
                continuation: ids[end - n..end].to_vec(),
            });
            predicted += n;
        }
        Ok(requests)
    }
}

/// The text of a page of WikiText as `lm_eval`'s task `wikitext` evaluates it: spaces around punctuation closed up.
pub fn detokenize_wikitext(page: &str) -> String {
    static PAIRS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
        // A slash-quote rule that upstream wrote with the slashes of another language, kept as it is.
        let quoted = [(r"/' [0-9]/", "/'[0-9]/")];
        let space = r"[\s\x1c-\x1f]*";
        let brackets = [
            (r"\(", r"\)", "($1)"),
            (r"\[", r"\]", "[$1]"),
            ("\\{", "\\}", "{$1}"),
            ("\"", "\"", "\"$1\""),
            ("'", "'", "'$1'"),
        ];
        let bracket = |(open, close, to)| (format!("{open}{space}([^{close}]*?){space}{close}"), to);
        let all = quoted.iter().map(|(p, t)| (p.to_string(), *t)).chain(brackets.into_iter().map(bracket));
        all.filter_map(|(pattern, to)| Some((Regex::new(&pattern).ok()?, to))).collect()
    });
    const BEFORE: [(&str, &str); 9] = [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ];
    const AFTER: [(&str, &str); 8] = [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ];
    let replace =
        |text: String, pairs: &[(&str, &str)]| pairs.iter().fold(text, |t, (from, to)| t.replace(from, to));
    let mut text = page.replace("s '", "s'");
    let (first, rest) = PAIRS.split_at(1.min(PAIRS.len()));
    for (pattern, to) in first {
        text = pattern.replace_all(&text, *to).into_owned();
    }
    text = replace(text, &BEFORE);
    for (pattern, to) in rest {
        text = pattern.replace_all(&text, *to).into_owned();
    }
    replace(text, &AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_python_splits_them() {
        for (text, n) in [("", 1), ("a", 1), ("a b", 2), (" a  b\n", 4), ("a\u{a0}b\u{1c}c", 3)] {
            assert_eq!(count_words(text), n, "{text:?}");
        }
    }

    #[test]
    fn pairs_move_blanks_and_share_tokens() {
        let tokenizer = Tokenizer::bytes().unwrap();
        let encoder = Encoder::new(&tokenizer, Some(false)).unwrap();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        let pair = encoder.pair("ab \n", "cd").unwrap();
        assert_eq!((pair.context, pair.continuation), (ids("ab"), ids(" \ncd")));
        let alone = encoder.pair("", "cd").unwrap();
        assert_eq!((alone.context, alone.continuation), (vec![encoder.prefix().unwrap()], ids("cd")));
        assert_eq!(encoder.pair(" ", "cd").unwrap().continuation, ids(" cd"));
        let with = Encoder::new(&tokenizer, Some(true)).unwrap().pair("ab", "cd").unwrap();
        assert_eq!((with.context.len(), with.continuation), (3, ids("cd")));
    }

    #[test]
    fn windows_predict_each_token_once() {
        let tokenizer = Tokenizer::bytes().unwrap();
        let encoder = Encoder::new(&tokenizer, Some(false)).unwrap();
        let text = "abcdefghij";
        for window in [1, 2, 3, 4, 9, 10, 11] {
            let requests = encoder.rolling(text, Some(window)).unwrap();
            let all: Vec<u32> = requests.iter().flat_map(|r| r.continuation.clone()).collect();
            assert_eq!(all, tokenizer.encode(text, false).unwrap(), "{window}");
            // All but the first piece read a full window.
            assert!(requests.iter().skip(1).all(|r| r.reads() == window), "{window}");
            assert!(requests[0].reads() == window.min(text.len()));
        }
        let last = encoder.rolling(text, Some(4)).unwrap().pop().unwrap();
        assert_eq!(
            (last.context, last.continuation),
            (tokenizer.encode("fgh", false).unwrap(), tokenizer.encode("ij", false).unwrap())
        );
    }

    #[test]
    fn wikitext_closes_up() {
        let page = " = Valkyria = \n He ( the 1 @,@ 000 ) said : \" no \" . It 's Jones ' own , N men \n = = Plot = = \n";
        let text = detokenize_wikitext(page);
        assert_eq!(text, " = Valkyria =\nHe (the 1,000) said: \"no\". It's Jones' own, 1 men\n== Plot ==\n");
    }
}
