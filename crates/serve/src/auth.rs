//! The optional bearer token.

use std::{fmt, path::Path};

use axum::http::{HeaderMap, header};
use flashlin::{Error, Result};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A key that clients must send. Only its hash is kept; comparing takes the same time wherever keys differ, and whatever their lengths.
#[derive(Clone)]
pub struct Key {
    hash: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A key by its text; blanks around it do not count.
    ///
    /// # Errors
    /// An empty one.
    pub fn new(text: &str) -> Result<Key> {
        match text.trim() {
            "" => Err(Error::argument("api key", "is empty")),
            text => Ok(Key { hash: hash(text) }),
        }
    }

    /// A key from a file.
    ///
    /// # Errors
    /// A file that cannot be read or holds no text.
    pub fn from_file(path: &Path) -> Result<Key> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        Key::new(&text).map_err(|_| Error::file(path, "holds no key"))
    }

    /// True where the request brings the key.
    pub fn opens(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).map_or(&[][..], |v| v.as_bytes());
        let (scheme, token) = value.split_at(value.len().min(7));
        let sent = Sha256::digest(token);
        let bearer = scheme.eq_ignore_ascii_case(b"bearer ");
        bool::from(sent.as_slice().ct_eq(&self.hash)) && bearer
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens() {
        let key = Key::new(" secret\n").unwrap();
        let opens = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            key.opens(&headers)
        };
        assert!(opens("Bearer secret") && opens("bearer secret"));
        for wrong in
            ["Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer ", "Bear", "Bearer  secret"]
        {
            assert!(!opens(wrong), "{wrong}");
        }
        assert!(!key.opens(&HeaderMap::new()));
        assert!(Key::new(" \n").is_err());
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
