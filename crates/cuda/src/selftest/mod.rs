//! What only a GPU can show about this crate: each check computes something and compares it, and reports its time.
//!
//! Policy: library functions, so that a machine with a GPU needs the binary and nothing else (`flashlin devices --selftest`). A check that breaks the context on purpose
//! is apart ([`fault`]): it needs a process of its own.

mod graphs;
mod memory;
mod products;
mod ptx;

use std::time::Instant;

use serde::Serialize;

use crate::{Error, Gpu, Result};

pub use memory::copy_bandwidth;
pub use products::product_flops;
pub use ptx::fault;

/// Result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was checked.
    pub name: &'static str,
    /// It held.
    pub passed: bool,
    /// Measured numbers, or what went wrong.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

type Check = fn(Gpu) -> Result<String>;

/// The checks, in the order in which they run.
const CHECKS: &[(&str, Check)] = &[
    ("copies between host and device", memory::round_trip),
    ("memory is reused and counted", memory::reuse),
    ("out of memory names its facts and passes", memory::out_of_memory),
    ("streams wait for each other", memory::streams),
    ("guarded memory ends at its page", memory::guard),
    ("a kernel gets its arguments", ptx::arguments),
    ("cost of a launch", ptx::launch_cost),
    ("a graph that allocates nothing", graphs::strict),
    ("a graph with memory of its own", graphs::arena),
    ("what a graph cannot hold is named", graphs::refusals),
    ("products: all types, layouts, batches, scales", products::numerics),
    ("products: bias", products::bias),
    ("products: empty and degenerate", products::degenerate),
    ("products: same bits again, and batch-invariant rows", products::same_bits),
    ("products inside a graph", products::in_graph),
    ("speed of copies on the device", memory::bandwidth),
    ("speed of products", products::speed),
];

/// Runs every check; `report` hears of each as it ends. After an asynchronous error the rest is not run, since the device is lost.
pub fn run(gpu: Gpu, mut report: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut out = Vec::new();
    for (name, check) in CHECKS {
        let begin = Instant::now();
        let result = check(gpu).and_then(|detail| gpu.synchronize().map(|()| detail));
        let lost = matches!(result, Err(Error::Asynchronous { .. }));
        let (passed, detail) = match result {
            Ok(detail) => (true, detail),
            Err(e) => (false, e.to_string()),
        };
        let outcome = Outcome { name, passed, detail, ms: begin.elapsed().as_secs_f64() * 1e3 };
        report(&outcome);
        out.push(outcome);
        if lost {
            break;
        }
    }
    out
}

/// An error unless `holds`.
fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid("selftest", what())) }
}

/// Numbers in [-1, 1) that repeat.
fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Milliseconds on the device for `run`, the median of `times` after one warm-up.
fn median_ms(gpu: Gpu, times: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut all = Vec::with_capacity(times);
    for _ in 0..times {
        let (begin, end) = (gpu.timed_event()?, gpu.timed_event()?);
        begin.record(gpu.compute())?;
        run()?;
        end.record(gpu.compute())?;
        all.push(f64::from(begin.elapsed_ms(&end)?));
    }
    all.sort_by(f64::total_cmp);
    Ok(all[times / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_repeat_and_spread() {
        let a = numbers(3, 1000);
        assert_eq!(a, numbers(3, 1000));
        assert!(a.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(a.iter().sum::<f64>().abs() < 60.0);
        assert!(expect(false, || "no".into()).unwrap_err().to_string().contains("no"));
    }
}
