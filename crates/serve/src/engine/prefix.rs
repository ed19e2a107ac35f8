//! States after shared beginnings of prompts.
//!
//! Policy: a state is stored after whole chunks of a prompt and found again by the tokens themselves, never by a hash alone. The chunks of a
//! prompt are always cut at the same places, so a request that begins from a stored state computes what it would compute without: the bits are
//! the same. What is stored is bounded in bytes; the least recently used goes first. A prompt stores a few states only (after 1, 2, 4, 8, ...
//! chunks and after the last), so that one long prompt does not push everybody else out.

use std::collections::{BTreeMap, HashMap};

use flashlin::{ModelState, Result};

/// What is stored, and how it did.
#[derive(Debug)]
pub struct PrefixCache {
    limit: usize,
    bytes: usize,
    clock: u64,
    entries: HashMap<Box<[u32]>, Entry>,
    /// Last use and tokens of each entry.
    by_use: BTreeMap<u64, Box<[u32]>>,
    /// How many entries have this length.
    lengths: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Entry {
    state: ModelState,
    bytes: usize,
    used: u64,
}

impl PrefixCache {
    /// A cache of at most `limit` bytes; 0 stores nothing.
    pub fn new(limit: usize) -> PrefixCache {
        PrefixCache {
            limit,
            bytes: 0,
            clock: 0,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of states held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the state after `done` of `prompt`'s tokens, cut into chunks of `chunk`, is worth storing.
    pub fn wants(&self, prompt: &[u32], done: usize, chunk: usize) -> bool {
        if self.limit == 0 || done == 0 || !done.is_multiple_of(chunk) || done >= prompt.len() {
            return false;
        }
        let last = done + chunk >= prompt.len();
        (last || (done / chunk).is_power_of_two()) && !self.entries.contains_key(&prompt[..done])
    }

    /// A copy of the state after the longest stored beginning of `prompt` that leaves at least one token, and its length.
    ///
    /// # Errors
    /// When memory is short.
    pub fn find(&mut self, prompt: &[u32]) -> Result<Option<(ModelState, usize)>> {
        let lengths: Vec<usize> = self.lengths.range(..prompt.len()).rev().map(|(n, _)| *n).collect();
        let Some(n) = lengths.into_iter().find(|&n| self.entries.contains_key(&prompt[..n])) else {
            return Ok(None);
        };
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&prompt[..n]) else { return Ok(None) };
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.clock, key);
        }
        entry.used = self.clock;
        Ok(Some((entry.state.fork()?, n)))
    }

    /// Stores the state after `tokens`; returns how many others went for it. One that is larger than the cache is not stored.
    pub fn insert(&mut self, tokens: &[u32], state: ModelState) -> usize {
        let bytes = state.bytes() + 2 * size_of_val(tokens);
        if bytes > self.limit || self.entries.contains_key(tokens) {
            return 0;
        }
        let mut gone = 0;
        while self.bytes + bytes > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.drop_entry(&oldest);
            gone += 1;
        }
        self.clock += 1;
        self.bytes += bytes;
        *self.lengths.entry(tokens.len()).or_default() += 1;
        self.by_use.insert(self.clock, tokens.into());
        self.entries.insert(tokens.into(), Entry { state, bytes, used: self.clock });
        gone
    }

    fn drop_entry(&mut self, tokens: &[u32]) {
        let Some(entry) = self.entries.remove(tokens) else { return };
        self.bytes -= entry.bytes;
        if let Some(count) = self.lengths.get_mut(&tokens.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&tokens.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flashlin::{Config, DType, Device, Model};
    use serde_json::json;

    use super::*;

    fn state() -> ModelState {
        let keys = json!({"model_type": "gla", "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 1, "vocab_size": 4});
        let config = Config::from_json(keys.as_object().unwrap().clone()).unwrap();
        Model::new(&config, DType::F32, &Device::Cpu, 0).unwrap().new_state(1).unwrap()
    }

    #[test]
    fn the_longest_beginning_is_found_and_the_least_used_goes() {
        let size = state().bytes();
        let limit = 2 * size + 40;
        let mut cache = PrefixCache::new(limit);
        assert!(cache.find(&[1, 2, 3]).unwrap().is_none());
        cache.insert(&[1], state());
        cache.insert(&[1, 2], state());
        assert_eq!(cache.find(&[1, 2, 3]).unwrap().unwrap().1, 2);
        assert_eq!(cache.find(&[1, 2]).unwrap().unwrap().1, 1);
        assert!(cache.find(&[2, 2, 2]).unwrap().is_none());
        // [1, 2] was used longest ago.
        assert_eq!(cache.insert(&[5, 6, 7], state()), 1);
        assert_eq!(cache.find(&[1, 2, 3]).unwrap().unwrap().1, 1);
        assert_eq!((cache.len(), cache.bytes() <= limit), (2, true));
        assert_eq!(cache.insert(&[5, 6, 7], state()), 0);
        let mut small = PrefixCache::new(size / 2);
        small.insert(&[1], state());
        assert_eq!(small.len(), 0);
    }

    #[test]
    fn few_states_of_a_prompt_are_wanted() {
        let cache = PrefixCache::new(1 << 20);
        let prompt = vec![0; 1001];
        let wanted: Vec<usize> = (1..1002).filter(|&n| cache.wants(&prompt, n, 100)).collect();
        assert_eq!(wanted, [100, 200, 400, 800, 1000]);
        assert!(!PrefixCache::new(0).wants(&prompt, 100, 100));
    }
}
