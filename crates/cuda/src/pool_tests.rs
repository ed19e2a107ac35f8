//! The pool against a device that is a counter: no block is ever handed out twice, sums agree, pressure is relieved.

use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;

use super::*;

/// A device of `total` bytes.
struct Fake {
    total: usize,
    settles: bool,
    held: RefCell<BTreeMap<u64, usize>>,
    next: RefCell<u64>,
}

impl Fake {
    fn new(total: usize) -> Fake {
        Fake { total, settles: true, held: RefCell::default(), next: RefCell::new(1) }
    }

    fn used(&self) -> usize {
        self.held.borrow().values().sum()
    }
}

impl Raw for Fake {
    fn obtain(&self, bytes: usize) -> Result<u64, Obtain> {
        if self.used() + bytes > self.total {
            return Err(Obtain::Full);
        }
        let address = *self.next.borrow();
        *self.next.borrow_mut() += bytes as u64;
        self.held.borrow_mut().insert(address, bytes);
        Ok(address)
    }

    fn give_back(&self, address: u64) {
        self.held.borrow_mut().remove(&address).expect("it was handed out");
    }

    fn settle(&self) -> bool {
        self.settles
    }
}

#[test]
fn classes_waste_at_most_an_eighth() {
    for bytes in (1..5000).chain([70_000, (2 << 20) - 1, (2 << 20) + 1, 1 << 30]) {
        let c = class(bytes).unwrap();
        assert!(c >= bytes && c.is_multiple_of(ALIGN) && class(c) == Some(c), "{bytes} -> {c}");
        assert!(c - bytes < ALIGN.max(bytes / 8 + 1) || bytes > PAGE && c - bytes < PAGE, "{bytes} -> {c}");
    }
    assert_eq!(class(0), Some(ALIGN));
    assert_eq!(class(usize::MAX), None);
}

#[test]
fn freed_memory_is_used_again() {
    let (raw, mut pool) = (Fake::new(1 << 30), Pool::default());
    let a = pool.alloc(&raw, 10_000).unwrap();
    let at = a.address;
    pool.dealloc(a);
    let b = pool.alloc(&raw, 9_900).unwrap();
    assert_eq!(b.address, at);
    let stats = pool.stats();
    assert_eq!((stats.requests, stats.hits, stats.cached), (2, 1, 0));
    assert_eq!(stats.in_use, raw.used());
    pool.dealloc(b);
    // Half the size would waste the other half.
    assert_ne!(pool.alloc(&raw, 5_000).unwrap().address, at);
}

#[test]
fn pressure_gives_the_cache_back_and_a_failure_leaves_the_pool_usable() {
    let (raw, mut pool) = (Fake::new(100 << 20), Pool::default());
    let a = pool.alloc(&raw, 60 << 20).unwrap();
    pool.dealloc(a);
    let b = pool.alloc(&raw, 80 << 20).unwrap();
    assert_eq!((pool.stats().flushes, pool.stats().cached), (1, 0));
    assert!(matches!(pool.alloc(&raw, 40 << 20), Err(Obtain::Full)));
    assert!(matches!(pool.alloc(&raw, usize::MAX), Err(Obtain::Full)));
    let c = pool.alloc(&raw, 10 << 20).unwrap();
    assert_eq!(pool.stats().in_use, raw.used());
    pool.dealloc(b);
    pool.dealloc(c);
    pool.set_limit(Some(50 << 20));
    assert!(matches!(pool.alloc(&raw, 60 << 20), Err(Obtain::Full)));
    pool.set_limit(None);
    assert!(pool.alloc(&raw, 60 << 20).is_ok());
}

#[test]
fn an_arena_keeps_its_blocks_until_the_graph_is_gone() {
    let (raw, mut pool) = (Fake::new(1 << 30), Pool::default());
    let before = pool.alloc(&raw, 4096).unwrap();
    let kept = before.address;
    let arena = pool.open_arena().unwrap();
    assert!(pool.open_arena().is_none());
    pool.dealloc(before);
    let temporary = pool.alloc(&raw, 4096).unwrap();
    assert_ne!(temporary.address, kept, "a block that the graph reads was handed out inside the capture");
    let inside = temporary.address;
    pool.dealloc(temporary);
    let result = pool.alloc(&raw, 4096).unwrap();
    assert_eq!(result.address, inside, "temporaries of a capture are reused in stream order");
    pool.end_arena();
    let outside = pool.alloc(&raw, 4096).unwrap();
    assert!(outside.address != kept && outside.address != inside);
    pool.close_arena(arena);
    assert_eq!(pool.alloc(&raw, 4096).unwrap().address, kept);
    // The result outlives the graph: its block returns with it.
    pool.dealloc(result);
    assert_eq!(pool.alloc(&raw, 4096).unwrap().address, inside);
    assert!(pool.arenas.is_empty());
}

#[test]
fn a_capture_cannot_give_memory_back() {
    let (mut raw, mut pool) = (Fake::new(10 << 20), Pool::default());
    let a = pool.alloc(&raw, 8 << 20).unwrap();
    pool.dealloc(a);
    raw.settles = false;
    assert!(matches!(pool.alloc(&raw, 4 << 20), Err(Obtain::Full)));
    assert_eq!(pool.stats().flushes, 0);
}

proptest! {
    /// Any sequence of requests and returns, with captures in between: live blocks never overlap and the sums agree.
    #[test]
    fn blocks_never_overlap(steps in prop::collection::vec((0u8..8, 1usize..9 << 20, any::<prop::sample::Index>()), 1..120)) {
        let (raw, mut pool) = (Fake::new(64 << 20), Pool::default());
        let mut live: Vec<Block> = Vec::new();
        let mut graphs: Vec<u64> = Vec::new();
        for (what, bytes, which) in steps {
            match what {
                0..4 => if let Ok(block) = pool.alloc(&raw, bytes) {
                    let end = block.address + block.size as u64;
                    prop_assert!(live.iter().all(|b| end <= b.address || b.address + b.size as u64 <= block.address));
                    prop_assert!(raw.held.borrow().get(&block.address).is_some_and(|n| *n >= bytes));
                    live.push(block);
                },
                4 | 5 if !live.is_empty() => {
                    let block = live.swap_remove(which.index(live.len()));
                    pool.dealloc(block);
                }
                6 => match pool.open_arena() {
                    Some(id) => graphs.push(id),
                    None => pool.end_arena(),
                },
                7 if !graphs.is_empty() => {
                    pool.end_arena();
                    let id = graphs.swap_remove(which.index(graphs.len()));
                    pool.close_arena(id);
                }
                _ => {}
            }
            let stats = pool.stats();
            prop_assert_eq!(stats.in_use, live.iter().map(|b| b.size).sum::<usize>());
            prop_assert_eq!(stats.in_use + stats.cached, raw.used());
        }
        live.into_iter().for_each(|b| pool.dealloc(b));
        pool.end_arena();
        graphs.into_iter().for_each(|id| pool.close_arena(id));
        prop_assert!(pool.arenas.is_empty());
        pool.flush(&raw);
        prop_assert_eq!(raw.used(), 0);
        prop_assert_eq!(pool.stats().in_use + pool.stats().cached, 0);
    }
}
