//! A row's text as it grows: complete characters, cut at stop strings.

use crate::{
    Error, Result,
    tokenizer::{TextStream, Tokenizer},
};

/// Tokens before a run that its decoder sees: enough to complete a character that the prompt began, and for decoders that look
/// at the word before.
const CONTEXT: usize = 16;

/// The decoder of one row: complete characters, cut at stop strings.
pub struct RowText {
    stream: TextStream,
    filter: StopFilter,
    /// What has been handed out.
    pub done: String,
}

impl RowText {
    /// A row that goes on after the tokens `before` and ends at any of `stops`.
    ///
    /// # Errors
    /// An empty stop string, a token that the tokenizer does not have.
    pub fn new(tokenizer: &Tokenizer, before: &[u32], stops: &[String]) -> Result<RowText> {
        let mut stream = tokenizer.stream(true);
        for &id in &before[before.len().saturating_sub(CONTEXT)..] {
            stream.push(id)?;
        }
        Ok(RowText { stream, filter: StopFilter::new(stops)?, done: String::new() })
    }

    /// Takes a token; returns text that is now certain and the stop string that was reached.
    ///
    /// # Errors
    /// A token that the tokenizer does not have.
    pub fn push(&mut self, id: u32) -> Result<(String, Option<String>)> {
        let (text, stop) = self.filter.push(&self.stream.push(id)?);
        self.done += &text;
        Ok((text, stop))
    }

    /// The row ends: what was held back, again cut at a stop string.
    ///
    /// # Errors
    /// When decoding fails.
    pub fn finish(&mut self) -> Result<(String, Option<String>)> {
        let (mut text, stop) = self.filter.push(&self.stream.finish()?);
        if stop.is_none() {
            text += &std::mem::take(&mut self.filter.held);
        }
        self.done += &text;
        Ok((text, stop))
    }
}

/// Finds stop strings in text that arrives in pieces.
struct StopFilter {
    stops: Vec<String>,
    /// The end of the text so far that may be the beginning of a stop string.
    held: String,
}

impl StopFilter {
    fn new(stops: &[String]) -> Result<StopFilter> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::argument("stop", "holds an empty string, which would end every row at once"));
        }
        Ok(StopFilter { stops: stops.to_vec(), held: String::new() })
    }

    /// Text that no stop string can reach any more; the stop string that begins first, if one is complete.
    fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held += text;
        // Among those that begin at the same place the first in the list wins.
        let found = self.stops.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            let stop = stop.clone();
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let starts = self.held.char_indices().map(|(i, _)| i);
        let keep = starts.into_iter().find(|&i| {
            let tail = &self.held[i..];
            self.stops.iter().any(|s| s.starts_with(tail))
        });
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut filter = StopFilter::new(&stops).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            out.push(text);
            if stop.is_some() {
                return (out, stop);
            }
        }
        out.push(filter.held);
        (out, None)
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_nothing_else_is_held() {
        assert_eq!(run(&["END"], &["abc", "def"]), (vec!["abc".into(), "def".into(), String::new()], None));
        let (out, stop) = run(&["END"], &["ab E", "N", "D x"]);
        assert_eq!((out, stop.as_deref()), (vec!["ab ".into(), String::new(), String::new()], Some("END")));
        let (out, stop) = run(&["END"], &["ab E", "N", "o"]);
        assert_eq!((out, stop), (vec!["ab ".into(), String::new(), "ENo".into(), String::new()], None));
        // Held back to the end.
        assert_eq!(run(&["END"], &["xEN"]), (vec!["x".into(), "EN".into()], None));
        // An overlap: the second E may begin it.
        let (out, stop) = run(&["EEN"], &["EE", "EN"]);
        assert_eq!((out.concat(), stop.as_deref()), ("E".to_string(), Some("EEN")));
    }

    #[test]
    fn the_first_in_the_text_wins() {
        let (out, stop) = run(&["later", "ä\n"], &["xä\nlater"]);
        assert_eq!((out.concat(), stop.as_deref()), ("x".to_string(), Some("ä\n")));
        let (out, stop) = run(&["ab", "abc"], &["xabc"]);
        assert_eq!((out.concat(), stop.as_deref()), ("x".to_string(), Some("ab")));
        assert!(StopFilter::new(&[String::new()]).is_err());
    }
}
