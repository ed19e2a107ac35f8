//! From items to passes: collects the requests of several items until they fill passes, scores them and keeps the results.

use serde::Serialize;

use crate::{
    Result,
    score::{Request, Score, Scorer},
    store::Store,
};

/// What is told while an evaluation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Items finished, those of earlier runs included.
    pub done: usize,
    /// All items, where their number is known.
    pub total: Option<usize>,
    /// Tokens read in this run.
    pub tokens: u64,
}

/// Hears of progress.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Progress);

/// Scores items as they come: each is some requests, and what to make of their scores.
pub(crate) struct Collector<'a, 'p, T, R> {
    scorer: Scorer<'a>,
    store: &'a mut Store,
    make: fn(T, Vec<Score>) -> Result<R>,
    waiting: Vec<(usize, T, usize)>,
    requests: Vec<Request>,
    tokens: usize,
    progress: Progress,
    on_progress: OnProgress<'p>,
}

/// Passes whose items are kept together: fewer writes, and something to fill passes with.
const PASSES: usize = 4;

impl<'a, 'p, T, R: Serialize> Collector<'a, 'p, T, R> {
    pub fn new(
        scorer: Scorer<'a>,
        store: &'a mut Store,
        total: Option<usize>,
        make: fn(T, Vec<Score>) -> Result<R>,
        on_progress: OnProgress<'p>,
    ) -> Self {
        let progress = Progress { done: store.done(), total, tokens: 0 };
        on_progress(&progress);
        Collector {
            scorer,
            store,
            make,
            waiting: Vec::new(),
            requests: Vec::new(),
            tokens: 0,
            progress,
            on_progress,
        }
    }

    /// True where an item is to be computed here.
    pub fn wants(&self, id: usize) -> bool {
        self.store.wants(id)
    }

    /// Adds an item.
    pub fn push(&mut self, id: usize, item: T, requests: Vec<Request>) -> Result<()> {
        self.tokens += requests.iter().map(Request::reads).sum::<usize>();
        self.waiting.push((id, item, requests.len()));
        self.requests.extend(requests);
        if self.tokens >= PASSES * self.scorer.pass_tokens() {
            self.flush()?;
        }
        Ok(())
    }

    /// Scores what waits.
    pub fn flush(&mut self) -> Result<()> {
        let (progress, on_progress) = (&mut self.progress, &mut self.on_progress);
        let mut scores = self
            .scorer
            .score_with(&self.requests, &mut |tokens| {
                progress.tokens += tokens as u64;
                on_progress(progress);
            })?
            .into_iter();
        let mut records = Vec::with_capacity(self.waiting.len());
        for (id, item, n) in self.waiting.drain(..) {
            records.push((id, (self.make)(item, scores.by_ref().take(n).collect())?));
        }
        self.progress.done += records.len();
        self.store.put(records)?;
        self.requests.clear();
        self.tokens = 0;
        (self.on_progress)(&self.progress);
        Ok(())
    }
}
