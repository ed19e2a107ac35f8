//! `--section.key value`: options that set a key of `run.toml`. They are taken out before clap reads the rest, because clap cannot
//! know the keys below `model.config`; whether a key exists is checked where the configuration is read.

use std::ffi::OsString;

use crate::failure::Failure;

/// A key and its value as written.
pub type Override = (String, String);

/// Splits the arguments into those for clap and the overrides. An option is an override when its name has a dot in it.
pub fn split(argv: impl IntoIterator<Item = OsString>) -> Result<(Vec<OsString>, Vec<Override>), Failure> {
    let (mut rest, mut overrides) = (Vec::new(), Vec::new());
    let mut argv = argv.into_iter();
    while let Some(arg) = argv.next() {
        if arg == "--" {
            rest.push(arg);
            rest.extend(argv);
            break;
        }
        let Some(option) = arg.to_str().and_then(|a| a.strip_prefix("--")) else {
            rest.push(arg);
            continue;
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (option, None),
        };
        if !is_key(name) {
            rest.push(arg);
            continue;
        }
        let text = |v: OsString| {
            v.into_string().map_err(|_| Failure::usage(format!("--{name}: the value is not UTF-8")))
        };
        let value = match value {
            Some(v) => v,
            None => argv.next().map(text).transpose()?.ok_or_else(|| {
                Failure::usage(format!("--{name} needs a value")).hint(format!("--{name} VALUE"))
            })?,
        };
        overrides.push((name.to_string(), value));
    }
    Ok((rest, overrides))
}

/// `section.key`, perhaps deeper.
fn is_key(name: &str) -> bool {
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    name.contains('.') && name.split('.').all(word)
}

/// Refuses overrides, for a command that reads no configuration.
pub fn refuse(overrides: &[Override]) -> Result<(), Failure> {
    match overrides.first() {
        None => Ok(()),
        Some((key, _)) => Err(Failure::usage(format!("--{key}: this command reads no run configuration"))
            .hint("`--section.key VALUE` belongs to `flashlin train` and `flashlin quickstart`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> (Vec<OsString>, Vec<Override>) {
        split(args.iter().map(|a| a.into())).unwrap()
    }

    #[test]
    fn options_with_a_dot_are_overrides() {
        let (rest, overrides) = of(&[
            "flashlin",
            "train",
            "run.toml",
            "--optim.eps",
            "1e-8",
            "--json",
            "--model.config.hidden_size=64",
        ]);
        assert_eq!(rest, ["flashlin", "train", "run.toml", "--json"]);
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(overrides, [pair("optim.eps", "1e-8"), pair("model.config.hidden_size", "64")]);
    }

    #[test]
    fn values_and_paths_are_left_alone() {
        let args =
            ["flashlin", "generate", "./a.b", "--prompt", "e.g. this", "--stop=a.b", "--", "--x.y", "z"];
        let (rest, overrides) = of(&args);
        assert_eq!(rest, args);
        assert!(overrides.is_empty());
        assert!(split(["f", "train", "--a.b"].map(OsString::from)).is_err());
    }
}
