//! Small tables that steps send again and again (chunk tables, row indices, constants): sent once, found by content afterwards.
//!
//! Policy: a table is never changed, so sharing it is safe. What was used longest ago goes when there are too many; a table that a graph recorded
//! stays, since every replay reads it. Inside a capture only tables that are there already can be used: a step that ran once before
//! finds all of its own.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::gpu;
use crate::{DType, Device, Result, Tensor};

/// Longer tables (in bytes) are sent each time.
const LONGEST: usize = 1 << 20;
/// Bytes that are kept beside those that graphs hold.
const MOST: usize = 64 << 20;

/// Device, type, shape and bytes of a table.
type Key = (usize, DType, Vec<usize>, Vec<u8>);

/// Tables by content.
struct Cache<T> {
    all: HashMap<Key, Entry<T>>,
    time: u64,
    bytes: usize,
}

struct Entry<T> {
    table: T,
    used: u64,
    /// A graph reads it.
    recorded: bool,
}

impl<T: Clone> Cache<T> {
    fn new() -> Self {
        Cache { all: HashMap::new(), time: 0, bytes: 0 }
    }

    fn find(&mut self, key: &Key, recording: bool) -> Option<T> {
        let entry = self.all.get_mut(key)?;
        self.time += 1;
        entry.used = self.time;
        if recording && !entry.recorded {
            entry.recorded = true;
            self.bytes -= key.3.len();
        }
        Some(entry.table.clone())
    }

    fn keep(&mut self, key: Key, table: T, most: usize) {
        self.time += 1;
        self.bytes += key.3.len();
        self.all.insert(key, Entry { table, used: self.time, recorded: false });
        while self.bytes > most {
            let idle = self.all.iter().filter(|(_, e)| !e.recorded).min_by_key(|(_, e)| e.used);
            let Some(key) = idle.map(|(k, _)| k.clone()) else { return };
            self.bytes -= key.3.len();
            self.all.remove(&key);
        }
    }
}

fn cache() -> MutexGuard<'static, Cache<Tensor>> {
    static CACHE: OnceLock<Mutex<Cache<Tensor>>> = OnceLock::new();
    // Every change of the bookkeeping is complete before anything can fail.
    CACHE.get_or_init(|| Mutex::new(Cache::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The values of a small host tensor on `device`, for tables that steps repeat: the same content is sent once. On the CPU the tensor itself.
///
/// # Errors
/// As [`Tensor::to_device`]; inside a graph capture a table that was not used before.
pub fn kept(values: &Tensor, device: &Device) -> Result<Tensor> {
    let Device::Cuda(ordinal) = *device else { return Ok(values.clone()) };
    if values.device() == *device {
        return Ok(values.clone());
    }
    let values = values.contiguous()?;
    let bytes = values.as_bytes()?;
    if bytes.len() > LONGEST {
        return values.to_device(device);
    }
    let key = (ordinal, values.dtype, values.dims().to_vec(), bytes.to_vec());
    if let Some(table) = cache().find(&key, gpu(ordinal)?.is_capturing()) {
        return Ok(table);
    }
    let table = values.to_device(device)?;
    cache().keep(key, table.clone(), MOST);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8, len: usize) -> Key {
        (0, DType::U8, vec![len], vec![n; len])
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_recorded_tables_stay() {
        let mut cache = Cache::new();
        for n in 0..3 {
            cache.keep(key(n, 10), n, 30);
        }
        assert_eq!(cache.find(&key(0, 10), true), Some(0));
        assert_eq!(cache.find(&key(1, 10), false), Some(1));
        assert_eq!(cache.bytes, 20);
        // 2 is the oldest that no graph holds.
        cache.keep(key(3, 15), 3, 30);
        assert_eq!(cache.find(&key(2, 10), false), None);
        assert_eq!((cache.find(&key(1, 10), false), cache.bytes), (Some(1), 25));
        cache.keep(key(4, 30), 4, 30);
        assert_eq!((cache.all.len(), cache.bytes), (2, 30));
        assert_eq!(cache.find(&key(0, 10), true), Some(0));
        // Another shape with the same bytes is another table.
        assert_eq!(cache.find(&(0, DType::U8, vec![5, 6], vec![4; 30]), false), None);
    }

    #[test]
    fn the_cpu_needs_no_copy() {
        let t = Tensor::arange(0, 5).unwrap();
        let same = kept(&t, &Device::Cpu).unwrap();
        assert_eq!(same.to_vec::<i64>().unwrap(), [0, 1, 2, 3, 4]);
    }
}
