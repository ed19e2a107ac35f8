//! The generated reference pages: each comes from the table that the program itself uses, so it cannot say anything else.

use clap::CommandFactory;
use flashlin::{
    ModelFamily, REGISTRY,
    config::{BaseConfig, GENERIC_KEYS, KeyInfo},
};
use flashlin_ops::OPS;

use crate::{commands::models::Row, table::Table};

/// Names (in `docs/`) and texts of all generated pages.
pub fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("models.md", models()),
        ("config.md", config()),
        ("run-toml.md", run_toml()),
        ("ops.md", ops()),
        ("cli.md", cli()),
    ]
}

const NOTE: &str = "<!-- Written by `flashlin docs`; do not edit. -->\n";

fn models() -> String {
    let mut text = format!("# Models\n\n{NOTE}\n");
    let mut table = Table::new(&["model_type", "what", "modes", "dtypes", "devices"]);
    for family in REGISTRY {
        let r = Row::of(*family);
        let name = format!("[`{0}`](#{0})", r.model_type);
        table.row([name, r.summary.into(), r.modes.join(", "), r.dtypes.join(", "), r.devices.join(", ")]);
    }
    text.push_str(&table.markdown());
    let without =
        REGISTRY.iter().filter(|f| f.keys().iter().all(|k| k.name != "attn")).map(|f| f.model_type());
    text.push_str(&format!(
        "\nEvery family but {} also takes softmax attention at chosen layers (`attn`, see [config.md](config.md)).\n",
        without.collect::<Vec<_>>().join(", ")
    ));
    for family in REGISTRY {
        text.push_str(&format!("\n## {}\n\nPaper: {}. ", family.model_type(), family.paper()));
        text.push_str(&format!("Class in `architectures`: `{}`. Presets:\n\n", family.architecture()));
        let mut table = Table::new(&["preset", "what differs from the defaults"]);
        for (name, map) in family.presets() {
            table.row([format!("`{name}`"), format!("`{}`", serde_json::Value::Object(map))]);
        }
        text.push_str(&table.markdown());
        // The family's own page, one level down.
        let page: String = family
            .readme()
            .lines()
            .map(|l| if l.starts_with('#') { format!("##{l}\n") } else { format!("{l}\n") })
            .collect();
        text.push_str(&format!("\n{page}"));
    }
    text
}

/// Every key of every family. Keys that all families have in common stand once.
fn config() -> String {
    let mut text = format!("# config.json\n\n{NOTE}\n");
    text.push_str(
        "Every key of a model's `config.json`, under the peer's names, with the peer's defaults. What a key does here is one of: \
         *changes results*; *hint, kept on save* (says how the peer should compute, or helps tools; results do not change); *error \
         unless default* (not supported). A key that is none of these is an error that names the nearest one.\n",
    );
    let has = |family: &dyn ModelFamily, name: &str| family.keys().iter().any(|k| k.name == name);
    let everywhere = |k: &&KeyInfo| REGISTRY.iter().all(|f| has(*f, k.name));
    let common: Vec<&KeyInfo> = BaseConfig::KEYS.iter().filter(everywhere).collect();
    let shared = |name: &str| common.iter().any(|k| k.name == name);
    text.push_str(&format!(
        "\n## All models\n\nDefaults that a family changes stand in its own table.\n\n{}",
        key_table(&common)
    ));
    for family in REGISTRY {
        let own: Vec<&KeyInfo> = family.keys().into_iter().filter(|k| !shared(k.name)).collect();
        text.push_str(&format!("\n## {}\n\n", family.model_type()));
        let changed = changed_defaults(*family);
        if !changed.is_empty() {
            text.push_str(&format!("Defaults that differ from those above: {changed}.\n\n"));
        }
        text.push_str(&key_table(&own));
    }
    let generic: Vec<String> = GENERIC_KEYS.iter().map(|k| format!("`{k}`")).collect();
    text.push_str(&format!(
        "\n## Keys of `transformers`\n\nWritten into every `config.json` by `transformers`; kept on save, without effect: {}.\n",
        generic.join(", ")
    ));
    text
}

fn key_table(keys: &[&KeyInfo]) -> String {
    let mut table = Table::new(&["key", "other spellings", "type", "default", "effect", "what"]);
    for k in keys {
        let aliases: Vec<String> = k.aliases.iter().map(|a| format!("`{a}`")).collect();
        table.row([
            format!("`{}`", k.name),
            aliases.join(", "),
            format!("`{}`", plain_type(k.ty)),
            format!("`{}`", plain_default(k.default)),
            k.effect.to_string(),
            k.doc.trim().to_string(),
        ]);
    }
    table.markdown()
}

/// A Rust type as JSON users know it.
fn plain_type(ty: &str) -> String {
    let ty: String = ty.chars().filter(|c| !c.is_whitespace()).collect();
    match ty.strip_prefix("Option<").and_then(|t| t.strip_suffix('>')) {
        Some(inner) => format!("{} or null", plain_type(inner)),
        None => match ty.as_str() {
            "usize" | "u32" | "i64" | "u64" => "integer".into(),
            "f64" => "number".into(),
            "String" => "string".into(),
            "Value" => "any".into(),
            other => other.into(),
        },
    }
}

/// The source of a default value as JSON.
fn plain_default(source: &str) -> String {
    let inner = |prefix: &str| source.strip_prefix(prefix).and_then(|s| s.strip_suffix(')'));
    match source {
        "None" | "Value::Null" => "null".into(),
        _ => match inner("Some(").or_else(|| inner("Value::from(")) {
            Some(value) => plain_default(value),
            None => source
                .strip_suffix(".into()")
                .or_else(|| source.strip_suffix(".to_string()"))
                .unwrap_or(source)
                .into(),
        },
    }
}

/// Defaults of shared keys that a family changes, e.g. "`num_hidden_layers` 21".
fn changed_defaults(family: &dyn ModelFamily) -> String {
    let map = family.defaults();
    let changed: Vec<String> = map.iter().map(|(k, v)| format!("`{k}` {v}")).collect();
    changed.join(", ")
}

fn ops() -> String {
    let mut text = format!("# Operators\n\n{NOTE}\n");
    text.push_str(
        "What `flashlin ops` lists. Mathematics, shapes and limits stand in the rustdoc of `flashlin_ops`.\n",
    );
    let mut families: Vec<&str> = OPS.iter().map(|op| op.family).collect();
    families.dedup();
    for family in families {
        let mut table = Table::new(&["op", "what", "source", "modes", "dtypes", "devices", "gradients"]);
        for op in OPS.iter().filter(|op| op.family == family) {
            let join = |names: Vec<String>| names.join(", ");
            table.row([
                format!("`{}`", op.name),
                format!("`{}`", op.summary),
                op.source.to_string(),
                join(op.modes.iter().map(ToString::to_string).collect()),
                join(op.dtypes.iter().map(ToString::to_string).collect()),
                op.devices.join(", "),
                op.grads.join(", "),
            ]);
        }
        text.push_str(&format!("\n## {family}\n\n{}", table.markdown()));
    }
    text
}

fn run_toml() -> String {
    let mut text = format!("# run.toml\n\n{NOTE}\n");
    text.push_str(
        "Every key of a run's configuration. On the command line a key is `--section.key value`. A key that is not here is an error \
         that names the nearest one. The resolved configuration is written beside every checkpoint.\n",
    );
    let keys = flashlin_train::TrainConfig::keys();
    let mut sections: Vec<&str> = keys.iter().map(|k| k.section).collect();
    sections.dedup();
    for section in sections {
        let mut table = Table::new(&["key", "type", "default", "what"]);
        for key in keys.iter().filter(|k| k.section == section) {
            let default = if key.default == "unset" { "unset".into() } else { format!("`{}`", key.default) };
            table.row([format!("`{}`", key.name), format!("`{}`", key.kind), default, key.doc.clone()]);
        }
        text.push_str(&format!("\n## [{section}]\n\n{}", table.markdown()));
    }
    text
}

fn cli() -> String {
    let mut root = crate::args::Args::command().term_width(100);
    root.build();
    let mut text = format!("# Command line\n\n{NOTE}\n");
    text.push_str(&format!("```text\n{}```\n", help(&root)));
    let mut commands: Vec<clap::Command> =
        root.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    commands.retain(|c| c.get_name() != "help");
    for command in &commands {
        text.push_str(&format!("\n## {}\n\n```text\n{}```\n", command.get_name(), help(command)));
        let inner: Vec<clap::Command> = command.get_subcommands().cloned().collect();
        for sub in inner.into_iter().filter(|c| c.get_name() != "help") {
            let name = format!("{} {}", command.get_name(), sub.get_name());
            text.push_str(&format!("\n### {name}\n\n```text\n{}```\n", help(&sub)));
        }
    }
    text
}

/// Long help without trailing blanks.
fn help(command: &clap::Command) -> String {
    let text = command.clone().term_width(100).render_long_help().to_string();
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}
