//! Products whose rows do not depend on how many rows there are.
//!
//! Which path serves a product follows from its shape, so the same row may get other bits beside 20 rows than beside 3: the sum runs in
//! another order. A server cannot have that. Within [`rows_alike`] every product with a weight on the CPU takes the thin path, whose order
//! depends on the length of the sum alone.

use std::cell::Cell;

use super::thin;

thread_local! {
    static ALIKE: Cell<bool> = const { Cell::new(false) };
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        ALIKE.set(self.0);
    }
}

/// Runs `f` so that, on the CPU, a row of f32, bf16 or f16 times a weight `[n, k]` that lies along k has the same bits whatever rows are beside
/// it. Meant for decode steps: many rows (above about 50) are slower than the usual path. Other products, f64 and GPUs are not changed: on a
/// GPU a caller who wants this gives every call the same number of rows.
pub fn rows_alike<R>(f: impl FnOnce() -> R) -> R {
    let _before = Restore(ALIKE.replace(true));
    f()
}

/// Rows up to which a product takes the thin path.
pub(super) fn thin_rows() -> usize {
    if ALIKE.get() { usize::MAX } else { thin::MAX_ROWS }
}
