//! Permutations that depend on (seed, stream, number) alone, so that a position in a shuffled order is just a number.

use flashlin_tensor::Philox;

/// Longest permutation: numbers of different permutations must not share counters.
pub(super) const MAX_LEN: usize = 1 << 24;

/// The permutation `number` of `0..len` in a stream (Fisher-Yates).
pub(super) fn permutation(seed: u64, stream: u64, number: u64, len: usize) -> Vec<usize> {
    let random = Philox::new(seed, stream);
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        let j = random.below(number.wrapping_mul(MAX_LEN as u64).wrapping_add(i as u64), i as u64 + 1);
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_that_depend_on_every_argument() {
        let base = permutation(1, 2, 3, 50);
        let mut sorted = base.clone();
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(base, permutation(1, 2, 3, 50));
        for other in [permutation(0, 2, 3, 50), permutation(1, 0, 3, 50), permutation(1, 2, 4, 50)] {
            assert_ne!(base, other);
        }
        // Every place is reached: of 600 orders of 3, each of the 6 comes up often.
        let mut counts = std::collections::HashMap::new();
        for n in 0..600 {
            *counts.entry(permutation(9, 9, n, 3)).or_insert(0) += 1;
        }
        assert!(counts.len() == 6 && counts.values().all(|&c| c > 60), "{counts:?}");
    }
}
