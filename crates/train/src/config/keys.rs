//! How a section of `run.toml` is declared: field, type, default and description in one place, from which reading, writing,
//! overriding and the reference in the docs all follow.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Result};

/// One key of `run.toml`, for help texts and the configuration reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The section it stands in, e.g. `optim`.
    pub section: &'static str,
    /// Its name inside the section.
    pub name: &'static str,
    /// Its Rust type without `Option`, e.g. `f64`.
    pub kind: String,
    /// The default as TOML, or `unset`.
    pub default: String,
    /// What it does.
    pub doc: String,
}

impl Key {
    /// `section.name`, as it is written on a command line.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// True when a value is taken literally: a path or a name, never parsed as TOML.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind.as_str(), "String" | "PathBuf")
    }
}

/// A section of the configuration; made by the `section!` macro.
pub(super) trait Section: Sized + Default {
    /// Its keys in the order of declaration.
    fn keys() -> Vec<Key>;
    /// Takes its keys out of a table; what stays is unknown.
    fn from_table(table: &mut Table) -> Result<Self>;
}

/// The type as users know it.
pub(super) fn kind(rust: &str) -> String {
    let rust: String = rust.chars().filter(|c| !c.is_whitespace()).collect();
    match rust.strip_prefix("Option<").and_then(|t| t.strip_suffix('>')) {
        Some(inner) => inner.to_string(),
        None => rust,
    }
}

/// A default as TOML.
pub(super) fn shown<T: serde::Serialize>(value: &T) -> String {
    Value::try_from(value).map_or("unset".into(), |v| v.to_string())
}

/// Joins the lines of a doc comment.
pub(super) fn doc(lines: &[&str]) -> String {
    lines.iter().map(|l| l.trim()).collect::<Vec<_>>().join(" ").trim().to_string()
}

/// Takes one key out of a table and reads it.
pub(super) fn take<T: DeserializeOwned>(
    table: &mut Table,
    section: &str,
    name: &str,
    default: T,
) -> Result<T> {
    let Some(value) = table.remove(name) else { return Ok(default) };
    let shown = value.to_string();
    value.try_into().map_err(|e: toml::de::Error| {
        let problem = if shown.len() <= 60 {
            format!("cannot be {shown}: {}", e.message())
        } else {
            e.message().into()
        };
        Error::config(format!("{section}.{name}"), problem)
    })
}

macro_rules! section {
    ($(#[doc = $about:literal])* $name:ident in $section:literal {
        $($(#[doc = $doc:literal])* $field:ident: $ty:ty = $default:expr,)*
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name { $($(#[doc = $doc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }

        impl $crate::config::keys::Section for $name {
            fn keys() -> Vec<$crate::config::keys::Key> {
                use $crate::config::keys;
                let defaults = $name::default();
                vec![$(keys::Key {
                    section: $section,
                    name: stringify!($field),
                    kind: keys::kind(stringify!($ty)),
                    default: keys::shown(&defaults.$field),
                    doc: keys::doc(&[$($doc),*]),
                },)*]
            }

            fn from_table(table: &mut toml::Table) -> $crate::Result<Self> {
                Ok($name {
                    $($field: $crate::config::keys::take(table, $section, stringify!($field), $default)?,)*
                })
            }
        }
    };
}
pub(super) use section;
