//! How much filler fits: the search that most tasks share.

use crate::Result;

/// The largest number of units for which a trial fits, in steps of `step` from `first`.
///
/// Units grow while `trial(units) + answer < max`; the first trial that goes beyond `max` takes one step back. After a trial that
/// fits, `end` may say how many units there are. `trial` counts tokens, without those of the answer.
pub(super) fn grow(
    first: usize,
    step: usize,
    max: usize,
    answer: usize,
    end: impl Fn(usize) -> Option<usize>,
    mut trial: impl FnMut(usize) -> Result<usize>,
) -> Result<usize> {
    let (mut units, mut tokens) = (first, 0);
    while tokens + answer < max {
        tokens = trial(units)?;
        if tokens + answer > max {
            return Ok(units.saturating_sub(step));
        }
        if let Some(end) = end(units) {
            return Ok(end);
        }
        units += step;
    }
    Ok(units)
}

/// `units`, then fewer by `step` as long as some are left.
pub(super) fn fewer(units: usize, step: usize) -> impl Iterator<Item = usize> {
    (0..).map_while(move |i| units.checked_sub(i * step).filter(|u| *u > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_until_it_does_not_fit() {
        let fits = |most: Option<usize>, max| {
            let end = |n: usize| most.filter(|&m| n + 5 > m);
            grow(5, 5, max, 10, end, |n| Ok(n * 3)).unwrap()
        };
        // 25 * 3 + 10 = 85 and 30 * 3 + 10 = 100 fit into 100: the sum must go beyond.
        assert_eq!(fits(None, 101), 30);
        assert_eq!(fits(None, 99), 25);
        assert_eq!(fits(Some(12), 99), 12);
        assert_eq!(fits(None, 20), 0);
        // Exactly full: the step after the last trial is kept.
        assert_eq!(fits(None, 100), 35);
        assert_eq!(fewer(7, 3).collect::<Vec<_>>(), [7, 4, 1]);
        assert_eq!(fewer(6, 3).collect::<Vec<_>>(), [6, 3]);
    }
}
