//! What an answer is worth.

use crate::text::is_blank;

/// The share of `expected` that occurs in `answer`, letters large or small; 0 where nothing is expected.
///
/// As `lm_eval` 0.4.13 scores all of these tasks, questions with several accepted answers included: there, naming one of three
/// accepted answers that differ gives a third.
pub fn score(answer: &str, expected: &[String]) -> f64 {
    let plain: String = answer
        .trim_matches(is_blank)
        .chars()
        .map(|c| if ('\u{0}'..='\u{1f}').contains(&c) { '\n' } else { c })
        .collect();
    let plain = plain.trim_matches(is_blank).to_lowercase();
    let found = expected.iter().filter(|e| plain.contains(&e.to_lowercase())).count();
    found as f64 / expected.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let expected = ["Alpha".to_string(), "b c".to_string()];
        assert_eq!(score("it is ALPHA, and b c.", &expected), 1.0);
        assert_eq!(score("alphabet", &expected), 0.5);
        // A control character is a line end, not a blank.
        assert_eq!(score("b\tc", &expected), 0.0);
        assert_eq!(score("", &expected), 0.0);
    }
}
