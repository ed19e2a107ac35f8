//! The output side of a model: logits for the tokens that were asked for, and the loss.

use flashlin_ops::{
    PackedSeqs,
    loss::{LossOptions, cross_entropy, linear_cross_entropy, shift_labels},
};
use flashlin_tensor::{Tensor, Var, cuda};

use crate::{Logits, Result, padding::Padding};

/// Factor of the L2-warp gradient, a constant of the peer.
const L2_WARP: f64 = 1e-4;

/// What the head reads.
pub(crate) struct HeadInput<'a> {
    /// Final hidden states `[B, T, D]` (packed where the input was padded).
    pub hidden: Var,
    /// Output projection `[V, D]`.
    pub weight: Var,
    /// The sequences in `hidden`.
    pub sequences: &'a PackedSeqs,
    /// How to undo the packing.
    pub padding: Option<&'a Padding>,
    /// Labels in the layout of `hidden`.
    pub labels: Option<Tensor>,
    /// Each label stands at its own token and is to be shifted; otherwise it stands at the token before.
    pub shift: bool,
    /// Which logits to return.
    pub logits: Logits,
    /// Add the L2-warp gradient.
    pub l2warp: bool,
}

/// Logits, loss and the number of counted labels.
pub(crate) fn run(input: HeadInput<'_>) -> Result<(Option<Var>, Option<Var>, usize)> {
    let logits = match input.logits {
        Logits::All => Some(input.hidden.linear(&input.weight)?),
        Logits::Last(n) => Some(last(&input.hidden, input.sequences, n)?.linear(&input.weight)?),
        Logits::None => None,
    };
    let (mut loss, mut count) = (None, 0);
    if let Some(labels) = &input.labels {
        let flat = labels.reshape(&[1, labels.numel()])?;
        let aligned = if input.shift { shift_labels(&flat, Some(input.sequences))? } else { flat };
        let shifted = aligned.reshape(&[labels.numel()])?;
        let options = LossOptions { l2_warp: input.l2warp.then_some(L2_WARP), ..LossOptions::default() };
        let out = match (&logits, input.logits) {
            (Some(all), Logits::All) => cross_entropy(&rows(all)?, &shifted, &options)?,
            _ => linear_cross_entropy(&rows(&input.hidden)?, &input.weight, None, &shifted, &options)?,
        };
        (loss, count) = (Some(out.loss), out.count);
    }
    let logits = match (logits, input.padding, input.logits) {
        (Some(all), Some(padding), Logits::All) => Some(padding.unpack(&all)?),
        (logits, ..) => logits,
    };
    Ok((logits, loss, count))
}

/// `[.., D]` as `[tokens, D]`.
fn rows(x: &Var) -> Result<Var> {
    let d = x.dims().last().copied().unwrap_or(1);
    Ok(x.reshape(&[x.tensor().numel() / d.max(1), d])?)
}

/// The last `n` tokens of every sequence, `[N, n, D]`; zeros stand before a shorter one's first token.
fn last(hidden: &Var, sequences: &PackedSeqs, n: usize) -> Result<Var> {
    let [b, t, d] = hidden.tensor().dims_n::<3>("head", "hidden")?;
    if b == sequences.len() && n <= t && sequences.ranges().all(|r| r.len() == t) {
        return Ok(hidden.narrow(1, t - n, n)?);
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (row, r) in sequences.ranges().enumerate() {
        for (i, token) in r.clone().rev().take(n).enumerate() {
            from.push(token as i64);
            to.push((row * n + n - 1 - i) as i64);
        }
    }
    let count = from.len();
    let index = |rows: Vec<i64>| cuda::kept(&Tensor::from_vec(rows, &[count])?, &hidden.device());
    let (from, to) = (index(from)?, index(to)?);
    let picked = rows(hidden)?.index_select(&from)?.index_add(&to, sequences.len() * n)?;
    Ok(picked.reshape(&[sequences.len(), n, d])?)
}
