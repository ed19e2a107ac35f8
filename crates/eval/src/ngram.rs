//! The baseline: a byte-level interpolated modified Kneser-Ney model (Chen & Goodman 1999, "An empirical study of smoothing
//! techniques for language modeling", section 3), exact, of any order up to 8.
//!
//! With `h` the last `n-1` bytes and `h'` the same without its first byte,
//!
//! `P_n(w|h) = (c(hw) - D(c(hw))) / c(h) + (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h) * P_{n-1}(w|h')`,
//!
//! where `c` counts occurrences in the highest order and, below it, distinct bytes seen before (the beginning of the text is one
//! such "byte", so that everything that occurs counts); `N_i(h)` is how many bytes follow `h` with count `i`; the discounts of each
//! order come from its counts of counts. Below order 1 lies the uniform distribution over 256 bytes, so every byte has a
//! probability. A text is scored from its own beginning: the first byte has no context, the next one byte of it, and so on.
//!
//! An n-gram of at most 8 bytes is a `u64`, so counting is sorting.

use rayon::prelude::*;

/// Orders above this do not fit the representation.
pub const MAX_ORDER: usize = 8;

/// What can be wrong with a model to fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NgramError {
    /// An order outside 1..=8.
    #[error("n-gram order {0} is not in 1..={MAX_ORDER}")]
    Order(usize),
    /// Nothing to fit on.
    #[error("the training text of an n-gram model is empty")]
    EmptyText,
}

/// All contexts of one length, with what follows them.
struct Level {
    /// n-grams, the newest byte lowest, ascending; so the grams of a context are neighbours.
    grams: Vec<u64>,
    /// Counts of the grams.
    counts: Vec<u32>,
    /// Contexts (a gram without its newest byte), ascending.
    contexts: Vec<u64>,
    /// For each context the index of its first gram; one more at the end.
    starts: Vec<u32>,
    /// For each context `1 / c(h)` and the weight of the lower order.
    totals: Vec<(f64, f64)>,
    /// Discounts of counts 1, 2, and 3 or more.
    discounts: [f64; 3],
}

/// A fitted model.
pub struct Ngram {
    /// Level `k` holds the grams of `k + 1` bytes.
    levels: Vec<Level>,
}

impl Ngram {
    /// Fits a model of `order` (1..=8: the number of bytes of a gram, the predicted one included) on `text`.
    ///
    /// # Errors
    /// [`NgramError`] for an order out of range or an empty text.
    pub fn fit(text: &[u8], order: usize) -> Result<Ngram, NgramError> {
        if !(1..=MAX_ORDER).contains(&order) {
            return Err(NgramError::Order(order));
        }
        if text.is_empty() {
            return Err(NgramError::EmptyText);
        }
        // A text shorter than the order has no such grams.
        let order = order.min(text.len());
        let (mut grams, mut counts) = count(occurrences(text, order));
        let mut levels = Vec::new();
        for k in (1..=order).rev() {
            let lower = (k > 1).then(|| continuations(&grams, k, text));
            levels.push(Level::new(grams, counts));
            let Some(next) = lower else { break };
            (grams, counts) = next;
        }
        levels.reverse();
        Ok(Ngram { levels })
    }

    /// Bytes of a gram.
    pub fn order(&self) -> usize {
        self.levels.len()
    }

    /// Discounts of counts 1, 2 and 3 or more, for each gram length from 1 up.
    pub fn discounts(&self) -> Vec<[f64; 3]> {
        self.levels.iter().map(|l| l.discounts).collect()
    }

    /// Probability that `byte` follows `context` (only its last `order - 1` bytes matter).
    pub fn probability(&self, context: &[u8], byte: u8) -> f64 {
        let mut p = 1.0 / 256.0;
        let mut key = 0u64;
        for (k, level) in self.levels.iter().enumerate() {
            if k > 0 {
                let Some(at) = context.len().checked_sub(k) else { break };
                key |= (context[at] as u64) << (8 * (k - 1));
            }
            // An unseen context means that every longer one is unseen too.
            match level.interpolate(key, byte, p) {
                Some(better) => p = better,
                None => break,
            }
        }
        p
    }

    /// Bits per byte of `text`, scored from its own beginning; 0 for an empty text.
    pub fn bits_per_byte(&self, text: &[u8]) -> f64 {
        if text.is_empty() {
            return 0.0;
        }
        // Fixed blocks, summed in order: the same bits for any number of threads.
        let blocks: Vec<f64> = (0..text.len().div_ceil(4096))
            .into_par_iter()
            .map(|b| {
                let range = b * 4096..((b + 1) * 4096).min(text.len());
                range.map(|i| -self.probability(&text[..i], text[i]).log2()).sum()
            })
            .collect();
        blocks.iter().sum::<f64>() / text.len() as f64
    }
}

impl Level {
    fn new(grams: Vec<u64>, counts: Vec<u32>) -> Level {
        let mut of_count = [0u64; 4];
        for &c in counts.iter().filter(|&&c| c <= 4) {
            of_count[c as usize - 1] += 1;
        }
        let discounts = discounts(of_count);
        let (mut contexts, mut starts, mut totals) = (Vec::new(), Vec::new(), Vec::new());
        let mut i = 0;
        while i < grams.len() {
            let context = grams[i] >> 8;
            let end = i + grams[i..].iter().take_while(|&&g| g >> 8 == context).count();
            let total: u64 = counts[i..end].iter().map(|&c| c as u64).sum();
            let kept: f64 = counts[i..end].iter().map(|&c| discounts[(c as usize).min(3) - 1]).sum();
            contexts.push(context);
            starts.push(i as u32);
            totals.push((1.0 / total as f64, kept / total as f64));
            i = end;
        }
        starts.push(i as u32);
        Level { grams, counts, contexts, starts, totals, discounts }
    }

    /// `P_n` from `P_{n-1}`, or `None` for an unseen context.
    fn interpolate(&self, context: u64, byte: u8, lower: f64) -> Option<f64> {
        let at = self.contexts.binary_search(&context).ok()?;
        let (first, end) = (self.starts[at] as usize, self.starts[at + 1] as usize);
        let (per_count, weight) = self.totals[at];
        let seen = match self.grams[first..end].binary_search(&(context << 8 | byte as u64)) {
            Ok(i) => {
                let c = self.counts[first + i];
                (c as f64 - self.discounts[(c as usize).min(3) - 1]) * per_count
            }
            Err(_) => 0.0,
        };
        Some(seen + weight * lower)
    }
}

/// Keys of all grams of `k` bytes, in text order.
fn occurrences(text: &[u8], k: usize) -> Vec<u64> {
    text.windows(k).map(|w| w.iter().fold(0, |key, &b| key << 8 | b as u64)).collect()
}

/// Sorts keys and counts equal ones.
fn count(mut keys: Vec<u64>) -> (Vec<u64>, Vec<u32>) {
    keys.par_sort_unstable();
    let (mut grams, mut counts) = (Vec::<u64>::new(), Vec::<u32>::new());
    for key in keys {
        match (grams.last(), counts.last_mut()) {
            (Some(&last), Some(n)) if last == key => *n += 1,
            _ => {
                grams.push(key);
                counts.push(1);
            }
        }
    }
    (grams, counts)
}

/// For all grams of `k - 1` bytes the number of distinct bytes before them, given the distinct grams of `k` bytes.
fn continuations(grams: &[u64], k: usize, text: &[u8]) -> (Vec<u64>, Vec<u32>) {
    let mask = (1u64 << (8 * (k - 1))) - 1;
    let mut shorter: Vec<u64> = grams.iter().map(|g| g & mask).collect();
    shorter.extend(occurrences(&text[..k - 1], k - 1));
    count(shorter)
}

/// Chen & Goodman's discounts from `n_i`, the number of grams with count `i`. Where the estimate does not exist or lies outside
/// (0, i) (few distinct grams), 1/2, 1 and 3/2.
fn discounts(n: [u64; 4]) -> [f64; 3] {
    let n = n.map(|x| x as f64);
    let y = n[0] / (n[0] + 2.0 * n[1]);
    let d = [1.0 - 2.0 * y * n[1] / n[0], 2.0 - 3.0 * y * n[2] / n[1], 3.0 - 4.0 * y * n[3] / n[2]];
    let fine = d.iter().enumerate().all(|(i, &d)| d > 0.0 && d < i as f64 + 1.0);
    if fine { d } else { [0.5, 1.0, 1.5] }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word, with maps of byte strings.
    struct ByDefinition<'a> {
        text: &'a [u8],
        order: usize,
    }

    impl ByDefinition<'_> {
        fn counts(&self, k: usize) -> BTreeMap<Vec<u8>, f64> {
            let mut counts: BTreeMap<Vec<u8>, f64> = BTreeMap::new();
            let mut before: BTreeMap<Vec<u8>, BTreeSet<Option<u8>>> = BTreeMap::new();
            for i in 0..=self.text.len() - k {
                let gram = self.text[i..i + k].to_vec();
                *counts.entry(gram.clone()).or_default() += 1.0;
                before.entry(gram).or_default().insert(i.checked_sub(1).map(|j| self.text[j]));
            }
            if k < self.order {
                counts = before.into_iter().map(|(g, b)| (g, b.len() as f64)).collect();
            }
            counts
        }

        fn p(&self, context: &[u8], byte: u8) -> f64 {
            self.at(self.order.min(context.len() + 1), context, byte)
        }

        fn at(&self, k: usize, context: &[u8], byte: u8) -> f64 {
            if k == 0 {
                return 1.0 / 256.0;
            }
            let lower = self.at(k - 1, context, byte);
            let h = &context[context.len() + 1 - k..];
            let counts = self.counts(k);
            let n = |i: f64| counts.values().filter(|&&c| c == i).count() as u64;
            let d = discounts([n(1.0), n(2.0), n(3.0), n(4.0)]);
            let discount = |c: f64| if c >= 3.0 { d[2] } else { d[c as usize - 1] };
            let follow: Vec<f64> = counts.iter().filter(|(g, _)| &g[..k - 1] == h).map(|(_, &c)| c).collect();
            let total: f64 = follow.iter().sum();
            if total == 0.0 {
                return lower;
            }
            let weight = follow.iter().map(|&c| discount(c)).sum::<f64>() / total;
            let c = counts.get(&[h, &[byte]].concat()).copied();
            c.map_or(0.0, |c| (c - discount(c)) / total) + weight * lower
        }
    }

    #[test]
    fn by_hand() {
        let m = Ngram::fit(b"aab", 2).unwrap();
        // Too little text for estimates: D = 1/2, 1, 3/2. Before "a" stand the beginning and "a", before "b" stands "a".
        let pa = (2.0 - 1.0) / 3.0 + (0.5 + 1.0) / 3.0 / 256.0;
        let pb = (1.0 - 0.5) / 3.0 + (0.5 + 1.0) / 3.0 / 256.0;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} {b}");
        close(m.probability(b"", b'a'), pa);
        close(m.probability(b"", b'b'), pb);
        close(m.probability(b"", b'c'), 0.5 / 256.0);
        close(m.probability(b"xa", b'a'), 0.25 + 0.5 * pa);
        close(m.probability(b"xa", b'b'), 0.25 + 0.5 * pb);
        // "b" was never followed by anything.
        close(m.probability(b"b", b'a'), pa);
        close(m.bits_per_byte(b"ac"), -(pa.log2() + (0.5 * 0.5 / 256.0f64).log2()) / 2.0);
    }

    #[test]
    fn discounts_from_counts_of_counts() {
        let d = discounts([100, 40, 20, 10]);
        let y = 100.0 / 180.0;
        assert_eq!(d, [1.0 - 2.0 * y * 0.4, 2.0 - 3.0 * y * 0.5, 3.0 - 4.0 * y * 0.5]);
        assert_eq!(discounts([3, 0, 1, 1]), [0.5, 1.0, 1.5]);
    }

    #[test]
    fn refusals() {
        assert!(matches!(Ngram::fit(b"", 3), Err(NgramError::EmptyText)));
        assert!(matches!(Ngram::fit(b"a", 0), Err(NgramError::Order(0))));
        assert!(matches!(Ngram::fit(b"a", 9), Err(NgramError::Order(9))));
        assert_eq!(Ngram::fit(b"ab", 8).unwrap().order(), 2);
    }

    #[test]
    fn the_shipped_text() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/shakespeare.txt");
        let text = std::fs::read(path).unwrap();
        let (train, held_out) = text.split_at(text.len() * 9 / 10);
        let bits: Vec<f64> =
            [1, 3, 4, 5].iter().map(|&n| Ngram::fit(train, n).unwrap().bits_per_byte(held_out)).collect();
        // English letters carry 4 to 5 bits alone, and each byte of context helps.
        let expected = [4.864, 3.061, 2.603, 2.409];
        assert!(bits.iter().zip(expected).all(|(b, e)| (b - e).abs() < 1e-3), "{bits:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn equals_its_definition(text in "[ab]{1,20}[abc]{0,60}[a-e]{0,30}", order in 1usize..=6, context in "[abcz]{0,8}") {
            let model = Ngram::fit(text.as_bytes(), order).unwrap();
            let definition = ByDefinition { text: text.as_bytes(), order: order.min(text.len()) };
            for byte in *b"abcez\n" {
                let (got, want) = (model.probability(context.as_bytes(), byte), definition.p(context.as_bytes(), byte));
                prop_assert!((got - want).abs() < 1e-14, "{got} {want}");
            }
        }

        #[test]
        fn sums_to_one(text in proptest::collection::vec(any::<u8>(), 1..400), order in 1usize..=8,
                       at in any::<prop::sample::Index>(), wild in proptest::collection::vec(any::<u8>(), 0..9)) {
            let model = Ngram::fit(&text, order).unwrap();
            for context in [&wild[..], &text[..at.index(text.len())], &text[..]] {
                let sum: f64 = (0..=255).map(|b| model.probability(context, b)).sum();
                prop_assert!((sum - 1.0).abs() < 1e-12, "{sum}");
                prop_assert!((0..=255).all(|b| model.probability(context, b) > 0.0));
            }
        }
    }
}
