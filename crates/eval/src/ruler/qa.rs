//! Questions over documents: the right ones among many others.

use super::{Counter, Draws, Made, no_room, size, sources::Questions};
use crate::Result;

const PROMPT: &str = "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other words.\n\nQuestion: {query}";
const ANSWER_TOKENS: usize = 32;
const STEP: usize = 10;

/// A task over questions with documents, sized.
pub(super) struct Qa<'a> {
    questions: &'a Questions,
    units: usize,
}

impl<'a> Qa<'a> {
    pub fn new(
        questions: &'a Questions,
        max: usize,
        tokens: Counter<'_>,
        mut draws: Draws,
    ) -> Result<Qa<'a>> {
        let mut qa = Qa { questions, units: 0 };
        let all = questions.documents.len();
        let end = |n: usize| (n + STEP > all).then_some(all);
        qa.units = size::grow(STEP, STEP, max, ANSWER_TOKENS, end, |n| {
            let Some(input) = qa.draw(0, n, &mut draws) else { return Ok(max + 1) };
            tokens.count(&format!("{input} {}", listed(&questions.items[0].answers)))
        })?
        .max(1);
        let empty = PROMPT.replace("{context}", "").replace("{query}", "");
        match tokens.count(&empty)? + ANSWER_TOKENS > max {
            true => Err(no_room("the question tasks", max)),
            false => Ok(qa),
        }
    }

    /// Questions there are.
    pub fn len(&self) -> usize {
        self.questions.items.len()
    }

    pub fn sample(
        &self,
        index: usize,
        max: usize,
        tokens: Counter<'_>,
        draws: &mut Draws,
    ) -> Result<Option<Made>> {
        let Some(question) = self.questions.items.get(index) else { return Ok(None) };
        // All of a question's own documents stay.
        let least = question.documents.len();
        let more = (0..).map_while(|i| self.units.max(least).checked_sub(i * STEP).filter(|n| *n > least));
        for units in more.chain([least]) {
            let Some(input) = self.draw(index, units, draws) else { continue };
            let n = tokens.count(&input)?;
            if n + ANSWER_TOKENS <= max {
                let outputs = question.answers.clone();
                return Ok(Some(Made { input, outputs, tokens: n, gen_prefix: "Answer:".into() }));
            }
        }
        Ok(None)
    }

    /// The prompt with `n` documents; None where there are not so many.
    fn draw(&self, index: usize, n: usize, draws: &mut Draws) -> Option<String> {
        let all = &self.questions.documents;
        let q = &self.questions.items[index];
        let mut picked: Vec<usize> = q.documents.clone();
        if n >= all.len() {
            picked = (0..all.len()).collect();
        } else if n.saturating_sub(q.documents.len()) > q.related.len() {
            picked.extend(&q.related);
            let others: Vec<usize> = (0..all.len()).filter(|i| !picked.contains(i)).collect();
            let wanted = n.saturating_sub(picked.len());
            picked.extend(draws.sample(others.len(), wanted)?.into_iter().map(|i| others[i]));
        } else {
            let wanted = n.saturating_sub(q.documents.len());
            picked.extend(draws.sample(q.related.len(), wanted)?.into_iter().map(|i| q.related[i]));
        }
        draws.shuffle(&mut picked);
        let document = |(i, &d): (usize, &usize)| format!("Document {}:\n{}", i + 1, all[d]);
        let context: Vec<String> = picked.iter().enumerate().map(document).collect();
        // The question last: a document may spell a placeholder.
        let (before, after) = PROMPT.split_once("{context}")?;
        Some(format!("{before}{}{}", context.join("\n\n"), after.replace("{query}", &q.query)))
    }
}

/// Answers as the size search counts them: in Python's notation of a list.
fn listed(answers: &[String]) -> String {
    let quoted = |a: &String| {
        let quote = if a.contains('\'') && !a.contains('"') { '"' } else { '\'' };
        let inner = a.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t");
        let inner = if quote == '\'' { inner.replace('\'', "\\'") } else { inner };
        format!("{quote}{inner}{quote}")
    };
    format!("[{}]", answers.iter().map(quoted).collect::<Vec<_>>().join(", "))
}
