//! What the recurrent families have in common for a layer: arguments without surroundings, then one call that continues
//! from a state and leaves it advanced.
//!
//! Policy: a single token for each row updates the state where it lies, if nobody else holds it and nothing is being
//! recorded; everything else makes a new state. The results are the same.

use flashlin_tensor::{Error, Result, Tensor, Var, grad_enabled};

use crate::{
    Mode, PackedSeqs, RecurrentState, SeqOutput, StateLayout,
    decay::{self, DecayArgs, decay_attention},
    delta::{DeltaArgs, delta_rule, delta_step_on},
};

/// Arguments of a recurrence.
pub trait Recurrence<'a>: Sized {
    /// Sets packed boundaries, form of evaluation and layout of the states.
    fn within(&mut self, seqs: Option<&'a PackedSeqs>, mode: Mode, layout: StateLayout);

    /// Output `[B, T, HV, V]`. With a state, it continues from that and leaves the one after the last token in it; after
    /// an error the state may be lost.
    ///
    /// # Errors
    /// As the operator.
    fn run(self, state: Option<&mut RecurrentState>) -> Result<Var>;
}

impl<'a> Recurrence<'a> for DeltaArgs<'a> {
    fn within(&mut self, seqs: Option<&'a PackedSeqs>, mode: Mode, layout: StateLayout) {
        (self.seqs, self.mode, self.layout) = (seqs, mode, layout);
    }

    fn run(self, state: Option<&mut RecurrentState>) -> Result<Var> {
        let Some(state) = state else { return Ok(delta_rule(self)?.o) };
        if let Some(o) = delta_step_on(&self, state)? {
            return Ok(o);
        }
        let args = DeltaArgs { initial_state: Some(&*state), output_final_state: true, ..self };
        let out = delta_rule(args)?;
        advanced(out, state)
    }
}

impl<'a> Recurrence<'a> for DecayArgs<'a> {
    fn within(&mut self, seqs: Option<&'a PackedSeqs>, mode: Mode, layout: StateLayout) {
        (self.seqs, self.mode, self.layout) = (seqs, mode, layout);
    }

    fn run(self, state: Option<&mut RecurrentState>) -> Result<Var> {
        let Some(state) = state else { return Ok(decay_attention(self)?.o) };
        if let Some(o) = decay::step_on(&self, state)? {
            return Ok(o);
        }
        let args = DecayArgs { initial_state: Some(&*state), output_final_state: true, ..self };
        let out = decay_attention(args)?;
        advanced(out, state)
    }
}

pub(crate) fn advanced(out: SeqOutput, state: &mut RecurrentState) -> Result<Var> {
    *state = out
        .final_state
        .ok_or_else(|| Error::invalid("recurrence", "final_state", "was asked for but not returned"))?;
    Ok(out.o)
}

/// The rows that have a token, where none has more than one; None where some row has more, or no row has any.
pub(crate) fn single_tokens(seqs: Option<&PackedSeqs>, batch: usize, len: usize) -> Option<Vec<usize>> {
    let Some(seqs) = seqs else { return (batch > 0 && len == 1).then(|| (0..batch).collect()) };
    if batch != 1 || seqs.total() != len || seqs.longest() != 1 {
        return None;
    }
    Some(seqs.ranges().enumerate().filter(|(_, r)| !r.is_empty()).map(|(row, _)| row).collect())
}

/// A packed `[1, R, ..]` input as `[R, 1, ..]`, one token a row; a dense one as it is.
pub(crate) fn by_rows(x: &Tensor, packed: bool) -> Result<Tensor> {
    if packed { x.transpose(0, 1) } else { Ok(x.clone()) }
}

/// True where an operation on these would be recorded.
pub(crate) fn recorded<'v>(inputs: impl IntoIterator<Item = &'v Var>) -> bool {
    grad_enabled() && inputs.into_iter().any(Var::is_tracked)
}

#[cfg(test)]
mod tests {
    use flashlin_tensor::{DType, Device, Philox, no_grad};

    use super::*;
    use crate::conv::{ConvArgs, short_conv, short_conv_on};

    const H: usize = 2;
    const K: usize = 5;
    const V: usize = 3;

    fn random(stream: u64, dims: &[usize], dtype: DType) -> Var {
        Philox::new(11, stream).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap().into()
    }

    fn values(x: &Var) -> Vec<f64> {
        x.tensor().to_f64_vec().unwrap()
    }

    fn close(a: &Var, b: &Var) {
        assert_eq!(a.dims(), b.dims());
        let far = values(a).iter().zip(values(b)).any(|(a, b)| (a - b).abs() > 1e-2 * b.abs().max(1.0));
        assert!(!far, "{a:?} {b:?}");
    }

    /// Boundaries of a step, its tokens (B, T) and its rows.
    fn steps() -> [(Option<PackedSeqs>, [usize; 2], usize); 3] {
        let some_rows = PackedSeqs::from_lens(&[1, 0, 1]);
        [(None, [3, 1], 3), (Some(some_rows), [1, 2], 3), (Some(PackedSeqs::from_lens(&[2, 1])), [1, 3], 2)]
    }

    fn storage(x: &Var, dtype: DType) -> *const u8 {
        match dtype {
            DType::BF16 => x.tensor().as_slice::<half::bf16>().unwrap().as_ptr().cast(),
            _ => x.tensor().as_slice::<f32>().unwrap().as_ptr().cast(),
        }
    }

    #[test]
    fn a_delta_step_in_place_is_the_operator() {
        for layout in [StateLayout::KV, StateLayout::VK] {
            for (seqs, [b, t], rows) in steps() {
                let x = |i, h, d| random(i, &[b, t, h, d], DType::BF16);
                let (q, k, v) = (x(1, H, K), x(2, H, K), x(3, 2 * H, V));
                let (g, beta) =
                    (random(4, &[b, t, 2 * H], DType::BF16), random(5, &[b, t, 2 * H], DType::BF16));
                let g = g.tensor().neg().unwrap().abs().unwrap().neg().unwrap().into();
                let mut args = DeltaArgs::gated_delta_rule(&q, &k, &v, &g, &beta);
                args.beta_sigmoid = true;
                args.within(seqs.as_ref(), Mode::Auto, layout);
                let first = random(6, &layout.dims(rows, 2 * H, K, V), DType::F32);
                let first = RecurrentState { value: first, layout };
                let want = DeltaArgs { initial_state: Some(&first), output_final_state: true, ..args };
                let want = delta_rule(want).unwrap();

                // Somebody else holds the values: they stay as they are.
                let mut state = first.clone();
                close(&args.run(Some(&mut state)).unwrap(), &want.o);
                close(&state.value, &want.final_state.as_ref().unwrap().value);
                assert_eq!(values(&first.value), values(&random(6, first.value.dims(), DType::F32)));

                let mut own = RecurrentState { value: first.value.tensor().copy().unwrap().into(), layout };
                let at = storage(&own.value, DType::F32);
                close(&args.run(Some(&mut own)).unwrap(), &want.o);
                close(&own.value, &want.final_state.unwrap().value);
                let single = single_tokens(seqs.as_ref(), b, t).is_some();
                assert_eq!(storage(&own.value, DType::F32) == at, single);
            }
        }
    }

    #[test]
    fn a_decay_step_in_place_is_the_operator() {
        for layout in [StateLayout::KV, StateLayout::VK] {
            for (seqs, [b, t], rows) in steps() {
                let x = |i, h, d| random(i, &[b, t, h, d], DType::BF16);
                let (q, k, v, u) = (x(1, H, K), x(2, H, K), x(3, 2 * H, V), random(8, &[H, K], DType::BF16));
                let gate = |x: Var| Var::constant(x.tensor().abs().unwrap().neg().unwrap());
                let (g, gk) = (gate(random(4, &[b, t, 2 * H], DType::BF16)), gate(x(5, 2 * H, K)));
                let (gamma, gv) = (gate(random(7, &[2 * H], DType::F32)), gate(x(9, 2 * H, V)));
                for bonus in [None, Some(&u)] {
                    let gates = [Some(&g), Some(&gamma), Some(&gk), Some(&gv)];
                    for [g, g_gamma, gk, gv] in [gates, [None; 4]] {
                        let mut args = DecayArgs { g, g_gamma, gk, gv, bonus, ..DecayArgs::new(&q, &k, &v) };
                        args.within(seqs.as_ref(), Mode::Auto, layout);
                        let first = random(6, &layout.dims(rows, 2 * H, K, V), DType::F32);
                        let first = RecurrentState { value: first, layout };
                        let want =
                            DecayArgs { initial_state: Some(&first), output_final_state: true, ..args };
                        let want = decay_attention(want).unwrap();
                        let mut own =
                            RecurrentState { value: first.value.tensor().copy().unwrap().into(), layout };
                        let at = storage(&own.value, DType::F32);
                        close(&args.run(Some(&mut own)).unwrap(), &want.o);
                        close(&own.value, &want.final_state.unwrap().value);
                        let single = single_tokens(seqs.as_ref(), b, t).is_some();
                        assert_eq!(storage(&own.value, DType::F32) == at, single);
                        let mut shared = first.clone();
                        close(&args.run(Some(&mut shared)).unwrap(), &want.o);
                        assert_eq!(values(&first.value), values(&random(6, first.value.dims(), DType::F32)));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_recorded_is_not_written_in_place() {
        let x = |i, d| random(i, &[1, 1, 1, d], DType::F32);
        let (q, k, v) = (Var::leaf(x(1, K).into_tensor()), x(2, K), x(3, V));
        let run = || {
            let value = random(6, &[1, 1, K, V], DType::F32);
            let at = storage(&value, DType::F32);
            let mut state = RecurrentState { value, layout: StateLayout::KV };
            let o = DeltaArgs::new("delta_rule", &q, &k, &v).run(Some(&mut state)).unwrap();
            (o.is_tracked(), storage(&state.value, DType::F32) == at)
        };
        assert_eq!(run(), (true, false));
        assert_eq!(no_grad(run), (false, true));
    }

    #[test]
    fn a_wrong_state_is_refused_by_the_step_too() {
        let x = |i, d| random(i, &[1, 1, 1, d], DType::F32);
        let (q, k, v) = (x(1, K), x(2, K), x(3, V));
        for value in [random(6, &[1, 1, V, K], DType::F32), random(6, &[2, 1, K, V], DType::F32)] {
            let mut state = RecurrentState { value, layout: StateLayout::KV };
            assert!(DeltaArgs::new("delta_rule", &q, &k, &v).run(Some(&mut state)).is_err());
        }
    }

    #[test]
    fn a_convolution_step_in_place_is_the_operator() {
        for dtype in [DType::F32, DType::BF16] {
            for taps in [1, 2, 4, 5] {
                for (seqs, [b, t], rows) in steps() {
                    let (x, weight) = (random(1, &[b, t, 7], dtype), random(2, &[7, 1, taps], dtype));
                    let first = random(3, &[rows, 7, taps], dtype);
                    let args = ConvArgs { seqs: seqs.as_ref(), ..ConvArgs::new(&x, &weight) };
                    let want = ConvArgs { initial_state: Some(&first), final_state: true, ..args };
                    let want = short_conv(&want).unwrap();
                    let mut own = Var::constant(first.tensor().copy().unwrap());
                    let at = storage(&own, dtype);
                    close(&short_conv_on(&args, &mut own).unwrap(), &want.y);
                    close(&own, want.final_state.as_ref().unwrap());
                    let single = single_tokens(seqs.as_ref(), b, t).is_some();
                    assert_eq!(storage(&own, dtype) == at, single, "{taps} taps");
                    let mut shared = first.clone();
                    close(&short_conv_on(&args, &mut shared).unwrap(), &want.y);
                    assert_eq!(values(&first), values(&random(3, &[rows, 7, taps], dtype)));
                }
            }
        }
    }
}
