//! Runs the model on the golden inputs and compares.

use flashlin_ops::{Mode, PackedSeqs};
use flashlin_tensor::{
    DType, Device, Tensor,
    cuda::{Products, products},
    no_grad,
};

use super::{
    Golden, Line, Measure, Tag,
    golden::{GREEDY_PROMPT, VARLEN},
    tolerance,
};
use crate::{Error, ForwardOptions, Input, Logits, Model, Result, Tokens};

/// The line of a key that was not compared, if it was not.
fn absent(golden: &Golden, key: &str, mode: Mode) -> Option<Line> {
    let line = |pass, tag: &str, note: String| {
        let (key, mode, tag) = (key.to_string(), mode.to_string(), tag.to_string());
        Some(Line { key, mode, tag, error: None, tolerance: None, pass, note: Some(note) })
    };
    let excused = golden.peer_cannot.iter().any(|k| k == key);
    match (golden.has(key), golden.tag(key)) {
        (false, _) if excused => line(true, "-", "the reference has no right path for it".into()),
        (false, _) => line(false, "-", "is absent and not listed in peer_cannot".into()),
        (true, Err(why)) => line(false, golden.precision.get(key).map_or("-", String::as_str), why),
        (true, Ok(_)) => None,
    }
}

/// The row of tolerances for a value of this tag: products in TF32 reach no more than TF32's, however the golden value was made.
fn in_force(tag: Tag, model: &Model) -> Tag {
    if tag == Tag::F32 && rounds(model) { Tag::Tf32 } else { tag }
}

/// Products in TF32 were asked for, on a device that has them.
fn rounds(model: &Model) -> bool {
    model.device() != Device::Cpu && products() == Products::Tf32
}

fn compared(
    golden: &Golden,
    key: &str,
    name: String,
    mode: Mode,
    measure: Measure,
    model: &Model,
    error: f64,
) -> Line {
    // absent() has checked the tag.
    let (tag, allowed) = match golden.tag(key) {
        Ok(tag) => {
            let allowed = tolerance(in_force(tag, model), measure, model.config().model_type());
            (format!("{tag:?}").to_lowercase(), allowed)
        }
        Err(_) => ("-".into(), 0.0),
    };
    Line {
        key: name,
        mode: mode.to_string(),
        tag,
        error: Some(error),
        tolerance: Some(allowed),
        pass: error <= allowed,
        note: (!error.is_finite()).then(|| "the result is not finite".into()),
    }
}

/// |ours - golden| / |golden|, infinite where shapes differ or something is not finite.
fn relative_l2(ours: &Tensor, golden: &Tensor) -> Result<f64> {
    if ours.dims() != golden.dims() {
        return Ok(f64::INFINITY);
    }
    let (a, b) = (ours.to_f64_vec()?, golden.to_f64_vec()?);
    let diff: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    let error = (diff / norm).sqrt();
    Ok(if error.is_finite() { error } else { f64::INFINITY })
}

fn options(mode: Mode) -> ForwardOptions {
    ForwardOptions { mode, ..ForwardOptions::default() }
}

fn logits(model: &Model, input: &Input, mode: Mode) -> Result<Tensor> {
    let out = no_grad(|| model.forward(input, None, &options(mode)))?;
    let logits = out.logits.ok_or_else(|| Error::argument("logits", "were not returned"))?;
    Ok(logits.into_tensor().to_dtype(DType::F32)?)
}

/// `logits`, `logits_long`, `logits_varlen`.
pub(super) fn forward_keys(model: &Model, golden: &Golden, mode: Mode, lines: &mut Vec<Line>) -> Result<()> {
    for (key, ids) in
        [("logits", "input_ids"), ("logits_long", "input_ids_long"), ("logits_varlen", "input_ids_long")]
    {
        if let Some(line) = absent(golden, key, mode) {
            lines.push(line);
            continue;
        }
        let input = Input::ids(golden.ids(ids)?);
        if key == "logits_varlen" {
            lines.push(varlen(model, golden, input, mode)?);
            continue;
        }
        let error = relative_l2(&logits(model, &input, mode)?, &golden.tensors[key])?;
        lines.push(compared(golden, key, key.into(), mode, Measure::Logits, model, error));
    }
    Ok(())
}

/// The packed documents. Where the reference ignored their boundaries, its numbers are no guide: there, the documents must equal themselves run
/// alone. It did so where its packed logits are those of the whole input, bit for bit, and where its mixers are known to ([`crate::ModelFamily`]) but
/// the softmax layers beside them are not, so that its numbers are those of neither.
fn varlen(model: &Model, golden: &Golden, input: Input, mode: Mode) -> Result<Line> {
    const KEY: &str = "logits_varlen";
    let seqs = PackedSeqs::new(&VARLEN, golden.ids("input_ids_long")?.dim(1))?;
    let packed = logits(model, &Input { seqs: Some(seqs.clone()), ..input.clone() }, mode)?;
    let want = &golden.tensors[KEY];
    let same = match golden.tensors.get("logits_long") {
        Some(long) => long.dims() == want.dims() && long.as_bytes()? == want.as_bytes()?,
        None => false,
    };
    let error = relative_l2(&packed, want)?;
    let line = compared(golden, KEY, KEY.into(), mode, Measure::Logits, model, error);
    let config = model.config();
    let mixed = config.family().peer_crosses_boundaries() && !config.base().attention()?.is_empty();
    if !same && (line.pass || !mixed) {
        return Ok(line);
    }
    let Tokens::Ids(ids) = &input.tokens else { return Err(Error::argument(KEY, "needs token ids")) };
    let alone = seqs.ranges().map(|r| logits(model, &Input::ids(ids.narrow(1, r.start, r.len())?), mode));
    let alone = alone.collect::<Result<Vec<_>>>()?;
    let alone = Tensor::cat(&alone.iter().collect::<Vec<_>>(), 1)?;
    let mut line =
        compared(golden, KEY, KEY.into(), mode, Measure::Logits, model, relative_l2(&packed, &alone)?);
    line.note = Some("the reference ignored the boundaries; compared with the documents run alone".into());
    Ok(line)
}

/// Greedy continuation of the short input's first tokens, through the state: prefill, then one token at a time.
pub(super) fn greedy(model: &Model, golden: &Golden, mode: Mode, lines: &mut Vec<Line>) -> Result<()> {
    const KEY: &str = "greedy";
    if let Some(line) = absent(golden, KEY, mode) {
        lines.push(line);
        return Ok(());
    }
    let want = golden.ids(KEY)?.to_vec::<i64>()?;
    let prompt =
        want.get(..GREEDY_PROMPT).ok_or_else(|| Error::argument(KEY, "is shorter than its prompt"))?;
    let mut state = model.new_state(1)?;
    let mut ids: Vec<i64> = prompt.to_vec();
    let mut next = prompt.to_vec();
    let mut mismatch = None;
    while ids.len() < want.len() {
        let input = Input::ids(Tensor::from_slice(&next, &[1, next.len()])?);
        let opts = ForwardOptions { logits: Logits::Last(1), ..options(mode) };
        let out = no_grad(|| model.forward(&input, Some(&mut state), &opts))?;
        let row = out
            .logits
            .ok_or_else(|| Error::argument("logits", "were not returned"))?
            .into_tensor()
            .to_f64_vec()?;
        let best = row.iter().enumerate().fold(0, |b, (i, x)| if *x > row[b] { i } else { b });
        let expected = want[ids.len()];
        let loose = match golden.tag(KEY) {
            Ok(Tag::Bf16) => Some(Tag::Bf16),
            _ => rounds(model).then_some(Tag::Tf32),
        };
        if best as i64 != expected && mismatch.is_none() && !near_tie(loose, &row, best, expected) {
            mismatch = Some(format!("token {} is {best}, expected {expected}", ids.len()));
        }
        // Follow the golden continuation, so that one near tie does not fail all that follows.
        ids.push(expected);
        next = vec![expected];
    }
    lines.push(Line {
        key: KEY.into(),
        mode: mode.to_string(),
        tag: golden.precision.get(KEY).cloned().unwrap_or_default(),
        error: Some(if mismatch.is_some() { 1.0 } else { 0.0 }),
        tolerance: Some(0.0),
        pass: mismatch.is_none(),
        note: mismatch,
    });
    Ok(())
}

/// Under bf16 and TF32 a differing token passes where the two logits lie within the tolerance; exact products give the very token.
fn near_tie(loose: Option<Tag>, row: &[f64], best: usize, expected: i64) -> bool {
    let Some(tag) = loose else { return false };
    let Some(other) = usize::try_from(expected).ok().and_then(|e| row.get(e)) else { return false };
    let scale = (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64).sqrt();
    (row[best] - other).abs() <= tolerance(tag, Measure::Logits, "") * scale
}

/// `loss` of the long input and the norm of every parameter's gradient.
pub(super) fn loss_and_gradients(
    model: &Model,
    golden: &Golden,
    mode: Mode,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let (no_loss, no_grads) = (absent(golden, "loss", mode), absent(golden, "grad_norm", mode));
    let (want_loss, want_grads) = (no_loss.is_none(), no_grads.is_none());
    lines.extend(no_loss);
    lines.extend(no_grads);
    if !want_loss && !want_grads {
        return Ok(());
    }
    let ids = golden.ids("input_ids_long")?;
    let input = Input::ids(ids.clone()).with_labels(ids);
    let out = model.forward(&input, None, &ForwardOptions { logits: Logits::None, ..options(mode) })?;
    let loss = out.loss.ok_or_else(|| Error::argument("loss", "was not returned"))?;
    if let (true, Some(golden_loss)) = (want_loss, golden.loss) {
        let error = (loss.tensor().to_scalar()? - golden_loss).abs() / golden_loss.abs();
        lines.push(compared(golden, "loss", "loss".into(), mode, Measure::Loss, model, error));
    }
    let Some(norms) = golden.grad_norm.as_ref().filter(|_| want_grads) else { return Ok(()) };
    let grads = loss.backward()?;
    let floor = 1e-4 * norms.values().fold(0.0, |a: f64, b| a.max(*b));
    for param in model.params() {
        let name = format!("grad_norm.{}", param.name());
        let Some(&want) = norms.get(param.name()) else {
            lines.push(unmatched(name, mode, "the golden file has no such parameter"));
            continue;
        };
        let host = |g: &Tensor| g.to_device(&Device::Cpu)?.sum_squares();
        let ours = grads.get_param(param).map_or(Ok(0.0), host)?.sqrt();
        let error = (ours - want).abs() / want.max(floor);
        lines.push(compared(golden, "grad_norm", name, mode, Measure::GradNorm, model, error));
    }
    let known = |name: &str| {
        model.params().iter().any(|p| p.name() == name)
            || model.tied_keys().iter().any(|(alias, _)| alias == name)
    };
    for name in norms.keys().filter(|n| !known(n)) {
        lines.push(unmatched(format!("grad_norm.{name}"), mode, "the model has no such parameter"));
    }
    Ok(())
}

fn unmatched(key: String, mode: Mode, why: &str) -> Line {
    let (mode, note) = (mode.to_string(), Some(why.to_string()));
    Line { key, mode, tag: "-".into(), error: None, tolerance: None, pass: false, note }
}
