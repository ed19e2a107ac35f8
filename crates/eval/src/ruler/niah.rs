//! Needles in a haystack: sentences that give keys their values, hidden in noise, in essays, or among others of their kind.

use super::{Counter, Draws, Made, Sources, Task, Words, no_room, size, sources::Essays};
use crate::Result;

const QUESTION: &str = "Some special magic {values} are hidden within the following text. Make sure to memorize it. I will quiz you about the {values} afterwards.\n{context}\nWhat are all the special magic {values} for {query} mentioned in the provided text?";
const QUESTION_OF_ONE: &str = "A special magic {values} is hidden within the following text. Make sure to memorize it. I will quiz you about the {values} afterwards.\n{context}\nWhat is the special magic {values} for {query} mentioned in the provided text?";
const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
/// Depths in an essay at which needles may lie, of 100: this many, evenly spread.
const DEPTHS: usize = 40;

enum Haystack<'a> {
    Noise,
    Essays(&'a Essays),
    Needles,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Words,
    Numbers,
    Uuids,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Words => "words",
            Kind::Numbers => "numbers",
            Kind::Uuids => "uuids",
        }
    }
}

/// A needle task, sized.
pub(super) struct Niah<'a> {
    haystack: Haystack<'a>,
    words: Option<&'a Words>,
    keys: (Kind, usize),
    values: (Kind, usize),
    queries: usize,
    /// Lines or words of haystack, and by how many it shrinks.
    units: usize,
    step: usize,
}

impl<'a> Niah<'a> {
    pub fn new(
        task: Task,
        sources: &'a Sources,
        max: usize,
        tokens: Counter<'_>,
        mut draws: Draws,
    ) -> Result<Niah<'a>> {
        let essays = || Ok::<_, crate::Error>(Haystack::Essays(sources.essays()?));
        let (words, numbers, uuids) = (Kind::Words, Kind::Numbers, Kind::Uuids);
        // Haystack; kind and number of keys; kind and number of values of each; keys that are asked for.
        let (haystack, keys, values, queries) = match task {
            Task::NiahSingle1 => (Haystack::Noise, (words, 1), (numbers, 1), 1),
            Task::NiahSingle2 => (essays()?, (words, 1), (numbers, 1), 1),
            Task::NiahSingle3 => (essays()?, (words, 1), (uuids, 1), 1),
            Task::NiahMultikey1 => (essays()?, (words, 4), (numbers, 1), 1),
            Task::NiahMultikey2 => (Haystack::Needles, (words, 1), (numbers, 1), 1),
            Task::NiahMultikey3 => (Haystack::Needles, (uuids, 1), (uuids, 1), 1),
            Task::NiahMultivalue => (essays()?, (words, 1), (numbers, 4), 1),
            _ => (essays()?, (words, 4), (numbers, 1), 4),
        };
        let step = match &haystack {
            Haystack::Essays(_) => 500,
            _ if max < 4096 => 5,
            _ => 25,
        };
        let words = if keys.0 == Kind::Words { Some(sources.words()?) } else { None };
        let mut niah = Niah { haystack, words, keys, values, queries, units: 0, step };
        let needles = keys.1 * values.1;
        let words_there = match &niah.haystack {
            Haystack::Essays(e) => e.len(),
            _ => usize::MAX,
        };
        let end = |n: usize| (n > words_there).then_some(words_there);
        let units = size::grow(step.max(needles), step, max, task.answer_tokens(), end, |n| {
            let Some((input, outputs, _)) = niah.draw(n, &mut draws) else { return Ok(max + 1) };
            tokens.count(&format!("{input}{}", outputs.join(" ")))
        })?;
        niah.units = units.max(needles);
        // A length that has no room for any sample is told before the first one is skipped.
        if niah.sample(max, tokens, &mut draws)?.is_none() {
            return Err(no_room(task.name(), max));
        }
        Ok(niah)
    }

    pub fn sample(&self, max: usize, tokens: Counter<'_>, draws: &mut Draws) -> Result<Option<Made>> {
        for units in size::fewer(self.units, self.step) {
            let Some((input, outputs, query)) = self.draw(units, draws) else { continue };
            let n = tokens.count(&input)?;
            if n + 128 <= max {
                let (kind, verb) = match self.is_single() {
                    true => (self.values.0.name().trim_end_matches('s'), "is"),
                    false => (self.values.0.name(), "are"),
                };
                let gen_prefix =
                    format!("The special magic {kind} for {query} mentioned in the provided text {verb}");
                return Ok(Some(Made { input, outputs, tokens: n, gen_prefix }));
            }
        }
        Ok(None)
    }

    fn is_single(&self) -> bool {
        self.queries * self.values.1 == 1
    }

    /// Text, answers and what is asked for; None where the haystack has no room for the needles.
    fn draw(&self, units: usize, draws: &mut Draws) -> Option<(String, Vec<String>, String)> {
        let (mut keys, mut values, mut needles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.keys.1 {
            let key = self.item(self.keys.0, draws);
            let of_key: Vec<String> = (0..self.values.1).map(|_| self.item(self.values.0, draws)).collect();
            needles.extend(of_key.iter().map(|v| self.needle(&key, v)));
            keys.push(key);
            values.push(of_key);
        }
        draws.shuffle(&mut needles);
        let context = match &self.haystack {
            Haystack::Essays(essays) => in_essay(essays, units, &needles, draws)?,
            Haystack::Noise => among(vec![NOISE.to_string(); units], needles, draws)?,
            Haystack::Needles => {
                let other = |_| {
                    let key = self.item(self.keys.0, draws);
                    let value = self.item(self.values.0, draws);
                    self.needle(&key, &value)
                };
                let others = (0..units).map(other).collect();
                among(others, needles, draws)?
            }
        };
        let asked = draws.sample(keys.len(), self.queries)?;
        let query = match asked.split_last() {
            Some((&last, rest)) if !rest.is_empty() => {
                let first: Vec<&str> = rest.iter().map(|&i| keys[i].as_str()).collect();
                format!("{}, and {}", first.join(", "), keys[last])
            }
            _ => keys[asked[0]].clone(),
        };
        let answers = asked.iter().flat_map(|&i| values[i].clone()).collect();
        let (question, kind) = match self.is_single() {
            true => (QUESTION_OF_ONE, self.values.0.name().trim_end_matches('s')),
            false => (QUESTION, self.values.0.name()),
        };
        let text =
            question.replace("{values}", kind).replace("{query}", &query).replace("{context}", &context);
        Some((text, answers, query))
    }

    fn needle(&self, key: &str, value: &str) -> String {
        format!("One of the special magic {} for {key} is: {value}.", self.values.0.name())
    }

    fn item(&self, kind: Kind, draws: &mut Draws) -> String {
        match (kind, self.words) {
            (Kind::Words, Some(words)) => words.pair(draws),
            (Kind::Numbers, _) => (1_000_000 + draws.below(9_000_000)).to_string(),
            _ => uuid(draws.bits128()),
        }
    }
}

/// A version 4 UUID of these bits.
fn uuid(bits: u128) -> String {
    let fixed = bits & !(0xf000 << 64) & !(0xc000 << 48) | 0x4000 << 64 | 0x8000 << 48;
    let hex = format!("{fixed:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Needles among lines, each at a place of its own.
fn among(mut lines: Vec<String>, needles: Vec<String>, draws: &mut Draws) -> Option<String> {
    let mut places = draws.sample(lines.len(), needles.len())?;
    places.sort_unstable_by(|a, b| b.cmp(a));
    for (place, needle) in places.into_iter().zip(needles) {
        lines.insert(place, needle);
    }
    Some(lines.join("\n"))
}

/// Needles between the sentences of an essay's first `words` words.
fn in_essay(essays: &Essays, words: usize, needles: &[String], draws: &mut Draws) -> Option<String> {
    let sentences = essays.sentences(words);
    let depth = |i: usize| (i as f64 * 100.0 / (DEPTHS - 1) as f64).round_ties_even();
    let place = |i: usize| (sentences.len() as f64 * (depth(i) / 100.0)) as usize;
    let mut places: Vec<usize> = draws.sample(DEPTHS, needles.len())?.into_iter().map(place).collect();
    places.sort_unstable();
    let mut parts: Vec<String> = Vec::with_capacity(2 * needles.len() + 1);
    let mut at = 0;
    for (&place, needle) in places.iter().zip(needles) {
        parts.push(sentences[at..place].join(" "));
        parts.push(needle.clone());
        at = place;
    }
    parts.push(sentences[at..].join(" "));
    Some(parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4() {
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
    }
}
