//! Where a device's time goes: an event before and after each launch, product and copy, summed by name.
//!
//! Policy: off, it costs one relaxed load a launch. On, every launch stands apart from its neighbours by its events, so short kernels look a microsecond or two longer than they
//! are; nothing is waited for until the end. Work inside a capture is not timed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{Event, Gpu, Result, Stream, gpu::lock};

static ON: AtomicBool = AtomicBool::new(false);
static MARKS: Mutex<Vec<(Arc<str>, Event, Event)>> = Mutex::new(Vec::new());

/// What one kind of work took.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The kernel's name, or a product's shape.
    pub name: String,
    /// How often it ran.
    pub calls: usize,
    /// Milliseconds of all calls.
    pub ms: f64,
}

/// Runs `f` and times everything that the process queues meanwhile: what took longest first.
///
/// # Errors
/// A driver failure; those of the work.
pub fn profiled<T>(gpu: Gpu, f: impl FnOnce() -> T) -> Result<(T, Vec<Span>)> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = lock(&ONE);
    gpu.synchronize()?;
    lock(&MARKS).clear();
    ON.store(true, Ordering::Relaxed);
    let out = f();
    ON.store(false, Ordering::Relaxed);
    gpu.synchronize()?;
    Ok((out, sums(std::mem::take(&mut *lock(&MARKS)))?))
}

fn sums(marks: Vec<(Arc<str>, Event, Event)>) -> Result<Vec<Span>> {
    let mut by_name: BTreeMap<Arc<str>, (usize, f64)> = BTreeMap::new();
    for (name, begin, end) in &marks {
        let sum = by_name.entry(name.clone()).or_default();
        sum.0 += 1;
        sum.1 += f64::from(begin.elapsed_ms(end)?);
    }
    let mut spans: Vec<Span> =
        by_name.into_iter().map(|(name, (calls, ms))| Span { name: name.to_string(), calls, ms }).collect();
    spans.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(spans)
}

/// Queues work by `f`, between two marks while somebody looks.
pub(crate) fn span<T>(
    gpu: Gpu,
    stream: &Stream,
    name: impl FnOnce() -> Arc<str>,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if !ON.load(Ordering::Relaxed) || gpu.capturing().is_some() {
        return f();
    }
    let begin = gpu.timed_event()?;
    begin.record(stream)?;
    let out = f()?;
    let end = gpu.timed_event()?;
    end.record(stream)?;
    lock(&MARKS).push((name(), begin, end));
    Ok(out)
}
