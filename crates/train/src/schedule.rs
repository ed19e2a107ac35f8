//! Learning-rate schedules as a pure function of the step number.
//!
//! Policy: nothing here has a state, so a resumed run needs only its step. A schedule has three phases: linear warm-up, a stable
//! phase, a decay to `lr_min` times the peak. With `decay_ratio` unset the decay starts right after warm-up (no stable phase);
//! with it set the last `decay_ratio` of all steps decay (warm-up, stable, decay). The last step of a run is taken at exactly
//! `lr * lr_min`, the last warm-up step at exactly `lr`.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of the decay phase. `x` runs from 0 (its start) to 1 (the last step); the factor falls from 1 to `lr_min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DecayType {
    /// No decay: the peak rate from the end of warm-up on.
    Constant,
    /// `1 - x`.
    Linear,
    /// `(1 + cos(pi x)) / 2`.
    #[default]
    Cosine,
    /// `1 - sqrt(x)`: falls fast, then slowly.
    Sqrt,
    /// Warm-up, stable, decay with `1 - sqrt(x)` (Hägele et al. 2024); `decay_ratio` is 0.2 if unset.
    Wsd,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up; 0 starts at the peak.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub steps: u64,
    /// Shape of the decay.
    pub decay_type: DecayType,
    /// The last step's rate as a share of `lr`, in [0, 1].
    pub lr_min: f64,
    /// Share of all steps that decay, in [0, 1]; unset: everything after warm-up (for `wsd`: 0.2).
    pub decay_ratio: Option<f64>,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            lr: 3e-4,
            warmup_steps: 0,
            steps: 1000,
            decay_type: DecayType::default(),
            lr_min: 0.1,
            decay_ratio: None,
        }
    }
}

impl Schedule {
    /// Checks the values. Errors are [`Error::Config`] and name the key.
    pub fn validate(&self) -> Result<()> {
        if !(self.lr.is_finite() && self.lr >= 0.0) {
            return Err(Error::config("lr", format!("{} is not a finite number >= 0", self.lr)));
        }
        if !(0.0..=1.0).contains(&self.lr_min) {
            let problem = format!("{} is not in [0, 1] (it is a share of lr, not a rate)", self.lr_min);
            return Err(Error::config("lr_min", problem));
        }
        if let Some(r) = self.decay_ratio.filter(|r| !(0.0..=1.0).contains(r)) {
            return Err(Error::config("decay_ratio", format!("{r} is not in [0, 1]")));
        }
        if self.steps == 0 {
            return Err(Error::config("steps", "must be at least 1"));
        }
        if self.warmup_steps > self.steps {
            let problem = format!("{} is more than the {} steps of the run", self.warmup_steps, self.steps);
            return Err(Error::config("warmup_steps", problem));
        }
        Ok(())
    }

    /// How many of the last steps decay.
    fn decay_steps(&self) -> u64 {
        let rest = self.steps.saturating_sub(self.warmup_steps);
        match (self.decay_type, self.decay_ratio) {
            (DecayType::Constant, _) => 0,
            (DecayType::Wsd, None) => ((self.steps as f64 * 0.2).round() as u64).min(rest),
            (_, Some(ratio)) => ((self.steps as f64 * ratio).round() as u64).min(rest),
            (_, None) => rest,
        }
    }

    /// Learning rate of optimizer step `step` (from 0). Beyond the last step it stays at the last step's rate.
    pub fn lr(&self, step: u64) -> f64 {
        let step = step.min(self.steps.saturating_sub(1));
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.decay_steps();
        let first = self.steps - decay_steps;
        if step < first {
            return self.lr;
        }
        let x = (step + 1 - first) as f64 / decay_steps as f64;
        let shape = match self.decay_type {
            DecayType::Constant => 1.0,
            DecayType::Linear => 1.0 - x,
            DecayType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
            DecayType::Sqrt | DecayType::Wsd => 1.0 - x.sqrt(),
        };
        self.lr * (self.lr_min + (1.0 - self.lr_min) * shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [DecayType; 5] =
        [DecayType::Constant, DecayType::Linear, DecayType::Cosine, DecayType::Sqrt, DecayType::Wsd];

    fn make(decay_type: DecayType, decay_ratio: Option<f64>) -> Schedule {
        Schedule { lr: 2.0, warmup_steps: 10, steps: 110, decay_type, lr_min: 0.1, decay_ratio }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn ends_and_middles() {
        for kind in ALL {
            let s = make(kind, None);
            close(s.lr(0), 0.2);
            close(s.lr(9), 2.0);
            let last = if kind == DecayType::Constant { 2.0 } else { 0.2 };
            close(s.lr(109), last);
            close(s.lr(5000), last);
        }
        // Half of the 100 decay steps are done when step 59 is taken.
        close(make(DecayType::Linear, None).lr(59), 2.0 * (0.1 + 0.9 * 0.5));
        close(make(DecayType::Cosine, None).lr(59), 2.0 * (0.1 + 0.9 * 0.5));
        close(make(DecayType::Sqrt, None).lr(34), 2.0 * (0.1 + 0.9 * 0.5));
        close(make(DecayType::Wsd, None).lr(87), 2.0);
        assert!(make(DecayType::Wsd, None).lr(88) < 2.0);
        // decay_ratio makes a stable phase for every shape: half of 110 steps decay.
        close(make(DecayType::Linear, Some(0.5)).lr(54), 2.0);
        close(make(DecayType::Linear, Some(0.5)).lr(65), 2.0 * (0.1 + 0.9 * 0.8));
        close(make(DecayType::Cosine, Some(0.0)).lr(109), 2.0);
    }

    #[test]
    fn refusals_name_the_key() {
        let bad = |f: fn(&mut Schedule)| {
            let mut s = make(DecayType::Linear, None);
            f(&mut s);
            s.validate().unwrap_err().to_string()
        };
        assert!(bad(|s| s.lr = f64::NAN).starts_with("lr:"));
        assert!(bad(|s| s.lr_min = 1.5).starts_with("lr_min:"));
        assert!(bad(|s| s.decay_ratio = Some(-0.1)).starts_with("decay_ratio:"));
        assert!(bad(|s| s.warmup_steps = 111).starts_with("warmup_steps:"));
        assert!(bad(|s| s.steps = 0).starts_with("steps:"));
        assert!(toml::from_str::<Schedule>("lr = 1.0\nlr_minimum = 0.1").is_err());
        let s: Schedule = toml::from_str("decay_type = \"wsd\"\nsteps = 10").unwrap();
        assert_eq!((s.decay_type, s.steps), (DecayType::Wsd, 10));
    }

    proptest! {
        #[test]
        fn rises_then_never_rises(kind in 0usize..5, warmup in 0u64..50, rest in 1u64..200, min in 0.0f64..1.0,
                                  ratio in proptest::option::of(0.0f64..1.0)) {
            let s = Schedule { lr: 1.0, warmup_steps: warmup, steps: warmup + rest, decay_type: ALL[kind],
                               lr_min: min, decay_ratio: ratio };
            s.validate().unwrap();
            for step in 1..s.steps {
                let (a, b) = (s.lr(step - 1), s.lr(step));
                prop_assert!(if step < warmup { b > a } else { b <= a + 1e-15 }, "step {step}: {a} then {b}");
                prop_assert!(b >= min * s.lr - 1e-12 || step < warmup);
            }
        }
    }
}
