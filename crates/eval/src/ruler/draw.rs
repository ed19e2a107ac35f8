//! The random choices of a sample.
//!
//! Policy: every sample has a stream of its own, named by seed, task, length and number, and the choices on it are drawn in the order
//! in which `lm_eval`'s generators draw theirs. So `tests/python/ruler.py` can give those generators our random numbers and compare
//! whole prompts.

use std::collections::HashMap;

use flashlin_tensor::Philox;

/// A stream of choices.
pub(super) struct Draws {
    stream: Philox,
    next: u64,
}

impl Draws {
    /// The stream with a name.
    pub fn new(seed: u64, name: &str) -> Draws {
        Draws { stream: Philox::named(seed, name), next: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.next += 1;
        self.stream.u64(self.next - 1)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        self.stream.below(self.next - 1, n as u64) as usize
    }

    /// 128 random bits, the high ones first.
    pub fn bits128(&mut self) -> u128 {
        let high = self.bits();
        u128::from(high) << 64 | u128::from(self.bits())
    }

    /// Letters from an alphabet.
    pub fn letters(&mut self, alphabet: &[u8], n: usize) -> String {
        (0..n).map(|_| char::from(alphabet[self.below(alphabet.len())])).collect()
    }

    /// A random order (Fisher and Yates, from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }

    /// `k` different numbers below `n`, in random order. None if there are not so many.
    pub fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        // Fisher and Yates from the beginning; what was moved is remembered instead of holding all n.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let pick = |i: usize| {
            let j = i + self.below(n - i);
            let at = |m: &HashMap<usize, usize>, p: usize| m.get(&p).copied().unwrap_or(p);
            let (here, there) = (at(&moved, i), at(&moved, j));
            moved.insert(j, here);
            there
        };
        Some((0..k).map(pick).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_different_numbers() {
        let mut d = Draws::new(1, "x");
        let mut all = d.sample(50, 50).unwrap();
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert!(d.sample(3, 4).is_none());
        assert!(d.sample(3, 0).unwrap().is_empty());
        let mut order: Vec<usize> = (0..20).collect();
        d.shuffle(&mut order);
        order.sort_unstable();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }
}
