//! The table behind a config struct: one line a key gives its field, type, default, effect and doc.

use serde_json::Value;

use crate::{Error, Result, registry::ModelFamily};

/// A JSON object with its order kept.
pub type Map = serde_json::Map<String, Value>;

/// What a config key does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Changes what the model computes.
    Results,
    /// Kept on save; says how the peer should compute, or helps tools. Never changes results here.
    Hint,
    /// Only null is supported; anything else is an error.
    Error,
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Effect::Results => "changes results",
            Effect::Hint => "hint, kept on save",
            Effect::Error => "error unless default",
        })
    }
}

/// One config key.
#[derive(Clone, Copy, Debug)]
pub struct KeyInfo {
    /// Name in `config.json`.
    pub name: &'static str,
    /// Other spellings that files use.
    pub aliases: &'static [&'static str],
    /// Rust type.
    pub ty: &'static str,
    /// Default, as the source of its value.
    pub default: &'static str,
    /// What it does.
    pub effect: Effect,
    /// Documentation.
    pub doc: &'static str,
}

/// Defines a config struct from one table:
/// `/// doc` `effect name: type = default, aliases ["other"];`
macro_rules! config_keys {
    ($(#[doc = $sdoc:literal])* pub struct $Name:ident {
        $( $(#[doc = $doc:literal])* $effect:ident $field:ident $(@ $key:literal)? : $ty:ty = $default:expr $(, aliases [$($alias:literal),*])?; )*
    }) => {
        $(#[doc = $sdoc])*
        #[derive(Clone, Debug)]
        #[allow(non_snake_case)]
        pub struct $Name {
            $( $(#[doc = $doc])* pub $field: $ty, )*
        }

        impl Default for $Name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $Name {
            /// All keys of this table.
            pub const KEYS: &'static [$crate::config::KeyInfo] = &[
                $( $crate::config::KeyInfo {
                    name: $crate::config::config_keys!(@name $field $($key)?),
                    aliases: &[$($($alias),*)?],
                    ty: stringify!($ty),
                    default: stringify!($default),
                    effect: $crate::config::Effect::$effect,
                    doc: concat!($($doc),*),
                }, )*
            ];

            /// Reads the keys that are present; others keep the values of `self`.
            ///
            /// # Errors
            /// A value of the wrong type, named with its key.
            pub fn read(mut self, map: &$crate::config::Map) -> $crate::Result<Self> {
                let mut keys = Self::KEYS.iter();
                $( if let Some(info) = keys.next()
                    && let Some(value) = $crate::config::KeyInfo::find(info, map)? {
                    self.$field = info.parse(value)?;
                } )*
                Ok(self)
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $key:literal) => { $key };
}
pub(crate) use config_keys;

impl KeyInfo {
    /// The value under this key or one of its other spellings; two different values are an error.
    pub(crate) fn find<'a>(&self, map: &'a Map) -> Result<Option<&'a Value>> {
        let mut found: Option<(&str, &Value)> = None;
        for name in std::iter::once(&self.name).chain(self.aliases) {
            let Some(value) = map.get(*name) else { continue };
            match found {
                Some((first, v)) if v != value => {
                    let why = format!("is {value}, but its other spelling `{first}` is {v}");
                    return Err(Error::config(*name, why));
                }
                Some(_) => {}
                None => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, v)| v))
    }

    /// Converts a value, understanding `{"__float__": "Infinity"}`.
    pub(crate) fn parse<T: serde::de::DeserializeOwned>(&self, value: &Value) -> Result<T> {
        let plain = super::json::plain_floats(value);
        serde_json::from_value(plain).map_err(|_| {
            Error::config(self.name, format!("is {value}, expected {}", self.ty.replace("f64", "number")))
        })
    }
}

/// Refuses unknown keys (naming the nearest) and values other than the default of unsupported ones.
pub(super) fn check_known(family: &dyn ModelFamily, raw: &Map) -> Result<()> {
    let keys = family.keys();
    let known = |name: &str| keys.iter().find(|k| k.name == name || k.aliases.contains(&name));
    for (name, value) in raw {
        match known(name) {
            Some(k) if k.effect == Effect::Error && !is_unset(value) => {
                return Err(Error::config(
                    name.as_str(),
                    format!("is {value}, which is not supported; supported: null"),
                ));
            }
            Some(_) => {}
            None if super::GENERIC_KEYS.contains(&name.as_str()) => {}
            None if is_unset(value) => {
                tracing::warn!(
                    "config key `{name}` is unknown to {}; it is unset, so it is kept",
                    family.model_type()
                );
            }
            None => return Err(unknown_key(family, &keys, name)),
        }
    }
    Ok(())
}

/// null and false ask for nothing.
fn is_unset(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

fn unknown_key(family: &dyn ModelFamily, keys: &[&KeyInfo], name: &str) -> Error {
    let nearest = keys
        .iter()
        .map(|k| (strsim::jaro_winkler(k.name, name), k.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.7);
    let hint = nearest.map_or(String::new(), |(_, n)| format!("; did you mean `{n}`?"));
    Error::config(name, format!("is not a key of {}{hint}", family.model_type()))
}
