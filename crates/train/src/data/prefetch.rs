//! Batches made ahead of time, on a thread of their own.
//!
//! Policy: what comes out is what the [`Loader`] alone would give, in its order: batches, then the end or the error that ended it.
//! Each batch travels with the position after it, so that [`Prefetch::state`] never speaks of a batch that nobody has taken. A bounded
//! queue limits what lies ready; dropping the receiver ends the thread, and the drop waits for that.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::JoinHandle,
};

use super::{Batch, DataState, Loader};
use crate::{Error, Result};

/// What the thread sends: a batch and the position after it, or the error that ends the data. It hangs up at the end.
type Made = Result<(Batch, DataState)>;

/// A loader that works ahead.
pub struct Prefetch {
    source: Source,
    /// The position before the next batch.
    state: DataState,
    /// Batches that may lie ready; 0 makes each when asked for.
    ahead: usize,
}

enum Source {
    /// On the caller's thread: without a queue, or not begun.
    Here(Box<Loader>),
    /// The queue is None once the data has ended.
    There { queue: Option<Receiver<Made>>, thread: Option<JoinHandle<()>> },
}

impl Prefetch {
    /// Continues `loader`, with at most `ahead` batches ready and one in the making; 0 makes each when asked for. The thread begins
    /// with the first batch that is taken.
    pub fn new(loader: Loader, ahead: usize) -> Prefetch {
        let state = loader.state();
        Prefetch { source: Source::Here(Box::new(loader)), state, ahead }
    }

    /// The position before the next batch.
    pub fn state(&self) -> DataState {
        self.state.clone()
    }

    /// The next batch; `None` when all sources are used up.
    ///
    /// # Errors
    /// Those of [`Loader::next_batch`]; it should not be used further after one.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        if let Source::Here(loader) = &mut self.source
            && self.ahead == 0
        {
            let batch = loader.next_batch()?;
            self.state = loader.state();
            return Ok(batch);
        }
        let ended = Source::There { queue: None, thread: None };
        self.source = match std::mem::replace(&mut self.source, ended) {
            Source::Here(loader) => begin(*loader, self.ahead)?,
            running => running,
        };
        let Source::There { queue, thread } = &mut self.source else { return Ok(None) };
        let Some(receiver) = queue else { return Ok(None) };
        match receiver.recv() {
            Ok(Ok((batch, state))) => {
                self.state = state;
                return Ok(Some(batch));
            }
            Ok(Err(e)) => {
                *queue = None;
                return Err(e);
            }
            Err(_) => *queue = None,
        }
        // It hung up without an error: the end, unless it died.
        match thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => Ok(None),
        }
    }
}

/// Starts the thread.
fn begin(mut loader: Loader, ahead: usize) -> Result<Source> {
    let (sender, queue) = sync_channel(ahead);
    let work = move || {
        loop {
            let made = match loader.next_batch() {
                Ok(Some(batch)) => Ok((batch, loader.state())),
                Ok(None) => return,
                Err(e) => Err(e),
            };
            let last = made.is_err();
            // Nobody listens any more: the run is over.
            if sender.send(made).is_err() || last {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("data".into()).spawn(work);
    let thread = spawned.map_err(|e| Error::State(format!("no thread for the data: {e}")))?;
    Ok(Source::There { queue: Some(queue), thread: Some(thread) })
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        if let Source::There { queue, thread } = &mut self.source {
            // Without a receiver the thread's next send fails; a panic in it concerns nobody any more.
            *queue = None;
            drop(thread.take().map(JoinHandle::join));
        }
    }
}
