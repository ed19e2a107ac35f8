//! How two arrays are compared, and against which tolerance: the one table of the workspace.

use flashlin_tensor::DType;

/// Largest relative L2 distance of a right result computed in, or stored as, `dtype`.
///
/// f64 and f32 leave some hundred roundings; bf16 and f16 leave the rounding of inputs, outputs and gradients to
/// 8 and 11 bits, with sums in f32.
pub const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-10,
        DType::F32 => 2e-5,
        DType::BF16 => 5e-3,
        DType::F16 => 7e-4,
        _ => 0.0,
    }
}

/// As [`tolerance`], for the gradient of an input that all tokens share: a sum over tokens and channels whose terms
/// cancel, so that its own size understates that of what was rounded.
pub const fn tolerance_of_sum(dtype: DType) -> f64 {
    4.0 * tolerance(dtype)
}

/// `|got - want| / |want|` in the L2 norm; 0 when equal (also both empty), infinite when lengths differ, when anything
/// is not finite, or when `want` is all zeros and `got` is not.
pub fn relative_l2(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().chain(want).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let (mut distance, mut norm) = (0.0, 0.0);
    for (a, b) in got.iter().zip(want) {
        distance += (a - b) * (a - b);
        norm += b * b;
    }
    match (distance > 0.0, norm > 0.0) {
        (false, _) => 0.0,
        (true, false) => f64::INFINITY,
        (true, true) => (distance / norm).sqrt(),
    }
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Operator, check and case.
    pub case: String,
    /// What was compared: `o`, `final_state`, `d_q`, ...
    pub tensor: String,
    /// Relative L2 distance.
    pub error: f64,
    /// Largest one allowed.
    pub tolerance: f64,
    /// What went wrong instead of a comparison.
    pub failure: Option<String>,
}

impl Finding {
    /// True when the comparison took place and is within the tolerance.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.error <= self.tolerance
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { case, tensor, error, tolerance, failure } = self;
        match failure {
            Some(why) => write!(f, "{case}: {tensor}: {why}"),
            None => write!(f, "{case}: {tensor}: relative L2 {error:.2e}, allowed {tolerance:.0e}"),
        }
    }
}

/// What a check measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All comparisons, in order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds a comparison.
    pub fn compare(&mut self, case: &str, tensor: &str, got: &[f64], want: &[f64], tolerance: f64) {
        let failure =
            (got.len() != want.len()).then(|| format!("has {} elements, expected {}", got.len(), want.len()));
        let error = relative_l2(got, want);
        self.findings.push(Finding { case: case.into(), tensor: tensor.into(), error, tolerance, failure });
    }

    /// Adds a failure that is no comparison.
    pub fn fail(&mut self, case: &str, tensor: &str, why: impl Into<String>) {
        self.findings.push(Finding {
            case: case.into(),
            tensor: tensor.into(),
            error: f64::INFINITY,
            tolerance: 0.0,
            failure: Some(why.into()),
        });
    }

    /// Comparisons that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| !f.passed())
    }

    /// The largest error relative to its tolerance, of those that passed.
    pub fn worst(&self) -> Option<&Finding> {
        let share = |f: &Finding| if f.tolerance > 0.0 { f.error / f.tolerance } else { 0.0 };
        self.findings.iter().filter(|f| f.passed()).max_by(|a, b| share(a).total_cmp(&share(b)))
    }

    /// Panics with the first failures, and when nothing was compared at all. For tests.
    ///
    /// # Panics
    /// When a comparison failed.
    pub fn assert(&self) {
        assert!(!self.findings.is_empty(), "nothing was compared");
        let failed: Vec<String> = self.failures().map(|f| f.to_string()).collect();
        let shown = failed.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            failed.is_empty(),
            "{} of {} comparisons failed:\n{shown}",
            failed.len(),
            self.findings.len()
        );
    }

    /// Appends another report.
    pub fn extend(&mut self, other: Report) {
        self.findings.extend(other.findings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_see_what_matters() {
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_l2(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-15);
        assert!(relative_l2(&[f64::NAN], &[1.0]).is_infinite());
        assert!(relative_l2(&[1.0], &[0.0]).is_infinite());
        assert!(relative_l2(&[1.0], &[1.0, 2.0]).is_infinite());
        let mut r = Report::default();
        r.compare("case", "x", &[1.0], &[1.0], 0.0);
        assert_eq!(r.failures().count(), 0);
        r.compare("case", "x", &[1.1], &[1.0], 1e-3);
        r.fail("case", "y", "broke");
        assert_eq!(r.failures().count(), 2);
    }
}
