//! Counting words: the ten most common of a list (`ruler_cwe`), the three most frequent of a coded text (`ruler_fwe`).

use std::collections::BTreeSet;

use super::{Counter, Draws, Made, Words, no_room, size};
use crate::Result;

const CWE: &str = "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?";
const CWE_ANSWER: &str = " Answer: The top 10 words that appear most often in the list are:";
const CWE_ANSWER_TOKENS: usize = 120;
const COMMON: usize = 10;
const STEP: usize = 10;

/// The task `ruler_cwe`, sized.
pub(super) struct Cwe<'a> {
    words: &'a Words,
    /// How often a common and another word appear, and the same with the number of words in the example.
    repeats: (usize, usize),
    example: (usize, usize, usize),
    units: usize,
}

impl<'a> Cwe<'a> {
    pub fn new(words: &'a Words, max: usize, tokens: Counter<'_>, mut draws: Draws) -> Result<Cwe<'a>> {
        let (repeats, example) = if max < 4096 { ((6, 1), (20, 3, 1)) } else { ((30, 3), (40, 10, 3)) };
        let mut cwe = Cwe { words, repeats, example, units: 0 };
        let all = words.all().len();
        let end = |n: usize| (n + STEP > all).then_some(all);
        cwe.units = size::grow(STEP, STEP, max, CWE_ANSWER_TOKENS, end, |n| {
            let Some((example, input, answer)) = cwe.draw(n, &mut draws) else { return Ok(max + 1) };
            tokens.count(&format!("{example}\n{input} {}", numbered(&answer)))
        })?
        .max(STEP);
        if cwe.sample(max, tokens, &mut draws)?.is_none() {
            return Err(no_room("ruler_cwe", max));
        }
        Ok(cwe)
    }

    pub fn sample(&self, max: usize, tokens: Counter<'_>, draws: &mut Draws) -> Result<Option<Made>> {
        for units in size::fewer(self.units, STEP) {
            let Some((_, input, outputs)) = self.draw(units, draws) else { continue };
            let n = tokens.count(&input)?;
            if n + CWE_ANSWER_TOKENS <= max {
                let input = input.strip_suffix(CWE_ANSWER).unwrap_or(&input).trim().to_string();
                return Ok(Some(Made { input, outputs, tokens: n, gen_prefix: CWE_ANSWER.trim().into() }));
            }
        }
        Ok(None)
    }

    /// A solved example (which only the size counts), a question of `n` words, and the common ones.
    fn draw(&self, n: usize, draws: &mut Draws) -> Option<(String, String, Vec<String>)> {
        let (words, often, seldom) = self.example;
        let (list, common) = self.list(words, often, seldom, draws)?;
        let example = format!("{}{}", question(&list), numbered(&common));
        let (list, common) = self.list(n, self.repeats.0, self.repeats.1, draws)?;
        Some((example, question(&list), common))
    }

    fn list(
        &self,
        n: usize,
        often: usize,
        seldom: usize,
        draws: &mut Draws,
    ) -> Option<(Vec<String>, Vec<String>)> {
        let all = self.words.all();
        let picked: Vec<&String> = draws.sample(all.len(), n)?.into_iter().map(|i| &all[i]).collect();
        let (common, others) = picked.split_at(COMMON.min(n));
        let mut list: Vec<String> = Vec::new();
        (0..often).for_each(|_| list.extend(common.iter().map(|w| w.to_string())));
        (0..seldom).for_each(|_| list.extend(others.iter().map(|w| w.to_string())));
        draws.shuffle(&mut list);
        Some((list, common.iter().map(|w| w.to_string()).collect()))
    }
}

fn question(list: &[String]) -> String {
    CWE.replace("{context}", &numbered(list)) + CWE_ANSWER
}

fn numbered(list: &[String]) -> String {
    list.iter().enumerate().map(|(i, w)| format!("{}. {w}", i + 1)).collect::<Vec<_>>().join(" ")
}

const FWE: &str = "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?";
const FWE_ANSWER: &str =
    " Answer: According to the coded text above, the three most frequently appeared words are:";
const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
const CODE_LEN: usize = 6;
/// The k-th most frequent word has a share of k^-2 / zeta(2).
const ALPHA: f64 = 2.0;
const ZETA: f64 = 1.644_934_066_848_226_4;

/// The task `ruler_fwe`, sized.
pub(super) struct Fwe {
    vocab: usize,
    words: usize,
    step: usize,
}

impl Fwe {
    pub fn new(max: usize, tokens: Counter<'_>, mut draws: Draws) -> Result<Fwe> {
        let mut fwe = Fwe { vocab: max / 50, words: max / CODE_LEN, step: max / 32 };
        // Noise, three answers, and one that is none.
        if fwe.vocab < 5 || fwe.step == 0 {
            return Err(no_room("ruler_fwe", max));
        }
        let vocab = fwe.vocabulary(&mut draws);
        let count = |words: usize, draws: &mut Draws| tokens.count(&coded(&vocab, words, draws));
        while count(fwe.words, &mut draws)? < max {
            fwe.words += fwe.step;
        }
        fwe.words = fwe.words.saturating_sub(fwe.step);
        if fwe.sample(max, tokens, &mut draws)?.is_none() {
            return Err(no_room("ruler_fwe", max));
        }
        Ok(fwe)
    }

    pub fn sample(&self, max: usize, tokens: Counter<'_>, draws: &mut Draws) -> Result<Option<Made>> {
        let vocab = self.vocabulary(draws);
        for words in size::fewer(self.words, self.step) {
            let text = coded(&vocab, words, draws);
            if tokens.count(&text)? > max {
                continue;
            }
            // Drawn again once the size is known, as the task's definition does.
            let text = coded(&vocab, words, draws);
            let n = tokens.count(&text)?;
            let input = text.strip_suffix(FWE_ANSWER).unwrap_or(&text).trim().to_string();
            let outputs = vocab[1..4].to_vec();
            return Ok(Some(Made { input, outputs, tokens: n, gen_prefix: FWE_ANSWER.trim().into() }));
        }
        Ok(None)
    }

    /// Different words in random order; the first, and most frequent, is noise.
    fn vocabulary(&self, draws: &mut Draws) -> Vec<String> {
        let mut all: BTreeSet<String> = (0..self.vocab).map(|_| draws.letters(LETTERS, CODE_LEN)).collect();
        while all.len() < self.vocab {
            all.insert(draws.letters(LETTERS, CODE_LEN));
        }
        let mut vocab: Vec<String> = all.into_iter().collect();
        draws.shuffle(&mut vocab);
        vocab[0] = "...".into();
        vocab
    }
}

fn coded(vocab: &[String], words: usize, draws: &mut Draws) -> String {
    let mut all: Vec<&str> = Vec::with_capacity(words);
    for (i, word) in vocab.iter().enumerate() {
        let n = words as f64 * ((i + 1) as f64).powf(-ALPHA) / ZETA;
        all.resize(all.len() + n as usize, word);
    }
    draws.shuffle(&mut all);
    FWE.replace("{context}", &all.join(" ")) + FWE_ANSWER
}
