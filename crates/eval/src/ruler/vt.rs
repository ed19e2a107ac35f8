//! Variable tracking: a chain of assignments hidden in noise; which variables end up with a value? One solved example goes before.

use super::{Counter, Draws, Made, no_room, size};
use crate::Result;

const QUESTION: &str = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all variables that are assigned the value {query} in the text above.";
const ANSWER: &str = " Answer: According to the chain(s) of variable assignment in the text above, {n} variables are assgined the value {query}, they are: ";
const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
const HOPS: usize = 4;
const ANSWER_TOKENS: usize = 30;
/// Tokens of the example, at most; a tokenizer with short tokens gets the shortest example.
const EXAMPLE_TOKENS: usize = 500;
const EXAMPLE_STEP: usize = 5;
const STEP: usize = 10;
const LETTERS: &[u8; 26] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The task, sized.
pub(super) struct Vt {
    /// The solved example.
    example: Question,
    example_tokens: usize,
    lines: usize,
}

/// A question without what stands before it.
struct Question {
    text: String,
    answer: String,
    variables: Vec<String>,
}

impl Question {
    fn solved(&self) -> String {
        format!("{}{}{}\n\n", self.text, self.answer, format_args!(" {}", self.variables.join(" ")))
    }
}

impl Vt {
    pub fn new(max: usize, tokens: Counter<'_>, stream: impl Fn(&str) -> Draws) -> Result<Vt> {
        let count = |q: &Question| tokens.count(&format!("{}{}{}", q.text, q.answer, listed(&q.variables)));
        let mut draws = stream("example-size");
        let end = |_| None;
        let lines = size::grow(EXAMPLE_STEP, EXAMPLE_STEP, EXAMPLE_TOKENS, ANSWER_TOKENS, end, |n| {
            count(&question(n, 3, &mut draws))
        })?;
        let mut draws = stream("example");
        let mut lines = lines.max(EXAMPLE_STEP);
        let example = loop {
            let example = question(lines, 3, &mut draws);
            let n = tokens.count(&format!("{}{}", example.text, example.answer))?;
            if n + ANSWER_TOKENS <= EXAMPLE_TOKENS || lines <= EXAMPLE_STEP {
                break example;
            }
            lines -= EXAMPLE_STEP;
        };
        let example_tokens = tokens.count(&example.solved())?;
        let mut draws = stream("size");
        let lines = size::grow(STEP, STEP, max, ANSWER_TOKENS + example_tokens, end, |n| {
            count(&question(n, 5, &mut draws))
        })?;
        let vt = Vt { example, example_tokens, lines: lines.max(STEP) };
        if vt.sample(max, tokens, &mut draws)?.is_none() {
            return Err(no_room("ruler_vt", max));
        }
        Ok(vt)
    }

    pub fn sample(&self, max: usize, tokens: Counter<'_>, draws: &mut Draws) -> Result<Option<Made>> {
        for lines in size::fewer(self.lines, STEP) {
            let q = question(lines, 5, draws);
            let n = tokens.count(&format!("{}{}", q.text, q.answer))? + self.example_tokens;
            if n + ANSWER_TOKENS > max {
                continue;
            }
            let input = format!("{}\n\n{}", self.renamed_example(draws), q.text);
            let gen_prefix = q.answer.trim().to_string();
            return Ok(Some(Made { input, outputs: q.variables, tokens: n, gen_prefix }));
        }
        Ok(None)
    }

    /// The example with other names, so that samples do not share them.
    fn renamed_example(&self, draws: &mut Draws) -> String {
        self.example.variables.iter().fold(self.example.solved(), |text, name| {
            let new = draws.letters(LETTERS, name.len());
            text.replace(name, &new)
        })
    }
}

/// A chain of [`HOPS`] assignments with names of `letters` letters, among lines of noise.
fn question(lines: usize, letters: usize, draws: &mut Draws) -> Question {
    let variables = loop {
        let names: Vec<String> = (0..=HOPS).map(|_| draws.letters(LETTERS, letters)).collect();
        if (1..names.len()).all(|i| !names[..i].contains(&names[i])) {
            break names;
        }
    };
    let value = (10_000 + draws.below(89_999)).to_string();
    let mut chain = vec![format!("VAR {} = {value}", variables[0])];
    chain.extend(variables.windows(2).map(|w| format!("VAR {} = VAR {} ", w[1], w[0])));
    let mut sentences = vec![NOISE.to_string(); lines];
    if sentences.len() <= chain.len() {
        // Few lines: their sentences take the assignments apart.
        let parts = |line: &String| line.split('.').map(String::from).collect::<Vec<_>>();
        let whole = |s: String| if s.trim().is_empty() { s } else { s + "." };
        sentences = sentences.iter().flat_map(parts).map(whole).collect();
    }
    let mut places = draws.sample(sentences.len(), chain.len()).unwrap_or_default();
    places.sort_unstable();
    for (i, (place, link)) in places.into_iter().zip(chain).enumerate() {
        sentences.insert(place + i, link);
    }
    let context = sentences.join(" ").replace(". \n", ".\n");
    let fill = |text: &str| text.replace("{n}", &(HOPS + 1).to_string()).replace("{query}", &value);
    Question { text: fill(QUESTION).replace("{context}", &context), answer: fill(ANSWER), variables }
}

/// Answers as the size search counts them: a blank and Python's notation of a list of names.
fn listed(names: &[String]) -> String {
    format!(" ['{}']", names.join("', '"))
}
