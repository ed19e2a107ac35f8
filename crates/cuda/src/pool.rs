//! Which memory is free: the bookkeeping of the caching pool, without a driver.
//!
//! Policy: memory that was once obtained is reused in the order of the compute stream and given back only under pressure, because
//! obtaining it takes as long as many kernels. Sizes are rounded to classes at most an eighth apart; a request takes the smallest free block of up to
//! an eighth more than it needs. Where the device is full, everything cached goes back and the request is tried once more.
//!
//! While a graph is captured, an [`Arena`] serves instead: what is allocated inside belongs to the graph and keeps its address until the graph is gone,
//! since every replay writes there again.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Error;

/// Addresses of blocks are multiples of this many bytes.
pub(crate) const ALIGN: usize = 256;
/// Blocks beyond this size are multiples of it.
const PAGE: usize = 2 << 20;

/// Where memory comes from.
pub(crate) trait Raw {
    /// Obtains memory.
    fn obtain(&self, bytes: usize) -> Result<u64, Obtain>;
    /// Gives memory back.
    fn give_back(&self, address: u64);
    /// Makes returned memory available to everybody. Waits for the device; false where that is impossible now.
    fn settle(&self) -> bool;
}

/// Why no memory came.
#[derive(Debug)]
pub(crate) enum Obtain {
    /// There is none.
    Full,
    /// Something else.
    Failed(Error),
}

/// Counters of a pool, sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// Held by live buffers (rounded to their classes).
    pub in_use: usize,
    /// Kept for reuse.
    pub cached: usize,
    /// Most that was in use at once since the last reset.
    pub peak_in_use: usize,
    /// Most that was held (in use or cached) at once since the last reset.
    pub peak_held: usize,
    /// Requests served.
    pub requests: u64,
    /// Requests served from the cache.
    pub hits: u64,
    /// Times that everything cached was given back under pressure.
    pub flushes: u64,
}

/// A block in use.
#[derive(Debug)]
pub(crate) struct Block {
    pub address: u64,
    pub size: usize,
    /// The arena that owns it, if any.
    arena: Option<u64>,
}

/// Memory that belongs to a graph.
#[derive(Debug, Default)]
struct Arena {
    free: BTreeMap<usize, Vec<u64>>,
    /// Blocks (address, size) from before the capture that were dropped inside it. The graph may read them in every replay, so nothing
    /// takes them, inside or outside.
    adopted: Vec<(u64, usize)>,
    /// Bytes of its blocks that buffers still hold.
    live: usize,
    /// The graph is gone: blocks go to the pool as their buffers go.
    closed: bool,
}

/// The pool's state.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: BTreeMap<usize, Vec<u64>>,
    arenas: BTreeMap<u64, Arena>,
    /// The arena of the capture that runs now.
    current: Option<u64>,
    next_arena: u64,
    limit: Option<usize>,
    stats: PoolStats,
}

/// The size class of a request.
pub(crate) fn class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(1);
    if bytes > PAGE {
        return bytes.checked_next_multiple_of(PAGE);
    }
    // Eight classes between a power of two and the next.
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    Some(bytes.next_multiple_of(step))
}

impl Pool {
    /// Serves a request of `bytes`.
    ///
    /// # Errors
    /// [`Obtain::Full`] after everything cached was given back and the memory still does not suffice.
    pub fn alloc(&mut self, raw: &impl Raw, bytes: usize) -> Result<Block, Obtain> {
        let size = class(bytes).ok_or(Obtain::Full)?;
        if let Some((address, size)) = self.take(size) {
            self.stats.hits += 1;
            return Ok(self.hand_out(address, size));
        }
        let within = |stats: &PoolStats, limit: Option<usize>| {
            limit.is_none_or(|l| (stats.in_use + stats.cached).checked_add(size).is_some_and(|n| n <= l))
        };
        let first = if within(&self.stats, self.limit) { raw.obtain(size) } else { Err(Obtain::Full) };
        let address = match first {
            Err(Obtain::Full) => {
                if !raw.settle() {
                    return Err(Obtain::Full);
                }
                self.flush(raw);
                if !within(&self.stats, self.limit) {
                    return Err(Obtain::Full);
                }
                raw.obtain(size)?
            }
            other => other?,
        };
        self.stats.cached += size;
        self.stats.peak_held = self.stats.peak_held.max(self.stats.in_use + self.stats.cached);
        Ok(self.hand_out(address, size))
    }

    /// The smallest free block that fits without wasting more than an eighth.
    fn take(&mut self, size: usize) -> Option<(u64, usize)> {
        let largest = size + size / 8;
        if let Some(id) = self.current
            && let Some(found) = self.arenas.get_mut(&id).and_then(|a| pop(&mut a.free, size, largest))
        {
            return Some(found);
        }
        pop(&mut self.free, size, largest)
    }

    /// Books a cached block as in use.
    fn hand_out(&mut self, address: u64, size: usize) -> Block {
        self.stats.requests += 1;
        self.stats.cached -= size;
        self.stats.in_use += size;
        self.stats.peak_in_use = self.stats.peak_in_use.max(self.stats.in_use);
        if let Some(arena) = self.current.and_then(|id| self.arenas.get_mut(&id)) {
            arena.live += size;
        }
        Block { address, size, arena: self.current }
    }

    /// Takes a block back.
    pub fn dealloc(&mut self, block: Block) {
        let Block { address, size, arena } = block;
        self.stats.in_use -= size;
        self.stats.cached += size;
        let owner = arena.or(self.current);
        let Some((id, a)) = owner.and_then(|id| self.arenas.get_mut(&id).map(|a| (id, a))) else {
            return self.keep(address, size);
        };
        if arena.is_none() {
            return a.adopted.push((address, size));
        }
        a.live -= size;
        if !a.closed {
            return a.free.entry(size).or_default().push(address);
        }
        if a.live == 0 {
            self.arenas.remove(&id);
        }
        self.keep(address, size);
    }

    fn keep(&mut self, address: u64, size: usize) {
        self.free.entry(size).or_default().push(address);
    }

    /// Begins an arena for a capture and gives its number; `None` where a capture runs already.
    pub fn open_arena(&mut self) -> Option<u64> {
        if self.current.is_some() {
            return None;
        }
        self.next_arena += 1;
        self.arenas.insert(self.next_arena, Arena::default());
        self.current = Some(self.next_arena);
        self.current
    }

    /// The capture is over: requests are served by the pool again, the arena keeps its blocks.
    pub fn end_arena(&mut self) {
        self.current = None;
    }

    /// The graph is gone: its free blocks return to the pool, the others as their buffers go.
    pub fn close_arena(&mut self, id: u64) {
        let Some(a) = self.arenas.get_mut(&id) else { return };
        a.closed = true;
        let (free, adopted, empty) =
            (std::mem::take(&mut a.free), std::mem::take(&mut a.adopted), a.live == 0);
        if empty {
            self.arenas.remove(&id);
        }
        for (size, addresses) in free {
            self.free.entry(size).or_default().extend(addresses);
        }
        adopted.into_iter().for_each(|(address, size)| self.keep(address, size));
    }

    /// Gives everything cached back. The caller has settled the device.
    pub fn flush(&mut self, raw: &impl Raw) {
        self.stats.flushes += 1;
        for (size, addresses) in std::mem::take(&mut self.free) {
            for address in addresses {
                raw.give_back(address);
                self.stats.cached -= size;
            }
        }
        raw.settle();
    }

    /// Bounds what this pool may hold, in bytes.
    pub fn set_limit(&mut self, limit: Option<usize>) {
        self.limit = limit;
    }

    /// The bound, if one is set.
    pub fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// The counters.
    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    /// Lets the peaks start again from what is held now.
    pub fn reset_peaks(&mut self) {
        self.stats.peak_in_use = self.stats.in_use;
        self.stats.peak_held = self.stats.in_use + self.stats.cached;
    }
}

fn pop(free: &mut BTreeMap<usize, Vec<u64>>, size: usize, largest: usize) -> Option<(u64, usize)> {
    let (&size, list) = free.range_mut(size..=largest).find(|(_, list)| !list.is_empty())?;
    let address = list.pop()?;
    if list.is_empty() {
        free.remove(&size);
    }
    Some((address, size))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
