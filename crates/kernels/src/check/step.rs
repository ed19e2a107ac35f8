//! The check of the decoding step: a few tokens of the recurrence on states in slots.

use super::{Case, Data, Expected, Inputs, KernelCheck, Value, tolerance};
use crate::{Error, Kernel, Result};

const INPUTS: Inputs = Inputs { seed: 31 };
const EPS: f64 = 1e-6;
const BETA_MAX: f64 = 2.0;
const B: usize = 3;
const T: usize = 2;
const H: usize = 2;
const HV: usize = 4;
const SLOTS: usize = 5;
/// The slot of each row.
const SLOT: [usize; B] = [4, 0, 2];

/// The check of `delta_step`.
pub(super) struct Step;

/// Options of a case.
#[derive(Clone, Copy)]
struct Options {
    norm: bool,
    keep: bool,
    gate: bool,
    beta: bool,
    slots: bool,
}

/// Operands, as the device sees them.
struct Operands {
    q: Data,
    k: Data,
    v: Data,
    g: Data,
    beta: Data,
    a: Data,
    braw: Data,
    a_log: Data,
    dt_bias: Data,
    s: Data,
}

/// What comes out.
struct Results {
    o: Vec<f64>,
    s: Vec<f64>,
    kept: Vec<f64>,
}

impl KernelCheck for Step {
    fn kernel(&self) -> &'static str {
        "delta_step"
    }

    fn cases(&self, kernel: &Kernel) -> Result<Vec<Case>> {
        let all = [
            ("normalised, kept", Options { norm: true, keep: true, gate: true, beta: true, slots: true }),
            ("plain", Options { norm: false, keep: false, gate: true, beta: true, slots: false }),
            ("no gate, no beta", Options { norm: true, keep: false, gate: false, beta: false, slots: true }),
        ];
        all.into_iter().map(|(label, options)| case(kernel, label, options)).collect()
    }
}

fn operands(dtype: &str, k: usize, v: usize) -> Result<Operands> {
    let side = (3.0 / k as f64).sqrt() * 0.9;
    let main = |stream, len, x: f64| Data::round(dtype, &INPUTS.uniform(stream, len, -x, x));
    let f32s = |stream, len, low, high| Data::round("f32", &INPUTS.uniform(stream, len, low, high));
    Ok(Operands {
        q: main(1, B * T * H * k, side)?,
        k: main(2, B * T * H * k, side)?,
        v: main(3, B * T * HV * v, 1.0)?,
        g: f32s(4, B * T * HV, -0.3, 0.0)?,
        beta: f32s(5, B * T * HV, 0.0, 1.0)?,
        a: main(6, B * T * HV, 1.0)?,
        braw: main(7, B * T * HV, 2.0)?,
        a_log: f32s(8, HV, -1.0, 0.5)?,
        dt_bias: f32s(9, HV, -1.0, 1.0)?,
        s: f32s(10, SLOTS * HV * k * v, -0.5, 0.5)?,
    })
}

fn case(kernel: &Kernel, label: &str, options: Options) -> Result<Case> {
    let (k, v) = (kernel.need_generic("K")? as usize, kernel.need_generic("V")? as usize);
    let raw = kernel.need_generic("RAW")? == 1;
    let x = operands(&kernel.dtype, k, v)?;
    let out = reference(&x, [k, v], kernel.need_generic("ERASE")? == 1, raw, options);
    let dtype = x.q.dtype();
    let expected = |values: Vec<f64>, dtype: &str| Expected { values, tolerance: tolerance(dtype) };
    let kept = if options.keep {
        Value::Out { dtype: "f32", expected: expected(out.kept, "f32") }
    } else {
        Value::Scratch(256)
    };
    let flag = |on: bool| Value::I32(i32::from(on));
    let args = vec![
        ("q", Value::In(x.q)),
        ("k", Value::In(x.k)),
        ("v", Value::In(x.v)),
        ("g", Value::In(x.g)),
        ("beta", Value::In(x.beta)),
        ("a", Value::In(x.a)),
        ("braw", Value::In(x.braw)),
        ("a_log", Value::In(x.a_log)),
        ("dt_bias", Value::In(x.dt_bias)),
        ("slot", Value::In(Data::I32(SLOT.map(|s| s as i32).to_vec()))),
        ("s", Value::InOut { data: x.s, expected: expected(out.s, "f32") }),
        ("o", Value::Out { dtype, expected: expected(out.o, dtype) }),
        ("kept", kept),
        ("b", Value::size(B)),
        ("t", Value::size(T)),
        ("h", Value::size(H)),
        ("hv", Value::size(HV)),
        ("slots", Value::size(SLOTS)),
        ("has_g", flag(options.gate)),
        ("has_beta", flag(options.beta)),
        ("norm", flag(options.norm)),
        ("keep", flag(options.keep)),
        ("has_slot", flag(options.slots)),
        ("eps", Value::F32(EPS as f32)),
        ("scale", Value::F32((k as f64).powf(-0.5) as f32)),
        ("bmax", Value::F32(BETA_MAX as f32)),
    ];
    let blocks = v / kernel.need_generic("BV")? as usize;
    let case = Case { label: label.into(), args, grid: [blocks as u32, HV as u32, B as u32] };
    case.fits(kernel).map_err(|e| Error::Entry { name: kernel.name.clone(), why: e.to_string() })?;
    Ok(case)
}

/// Token by token in f64.
fn reference(x: &Operands, [k, v]: [usize; 2], erase: bool, raw: bool, options: Options) -> Results {
    let [q, ks, vs, g, beta] = [&x.q, &x.k, &x.v, &x.g, &x.beta].map(Data::to_f64);
    let [a, braw, a_log, dt_bias] = [&x.a, &x.braw, &x.a_log, &x.dt_bias].map(Data::to_f64);
    let mut out =
        Results { o: vec![0.0; B * T * HV * v], s: x.s.to_f64(), kept: vec![0.0; B * T * HV * k * v] };
    let unit = |row: &[f64]| -> Vec<f64> {
        let r =
            if options.norm { (row.iter().map(|x| x * x).sum::<f64>() + EPS).sqrt().recip() } else { 1.0 };
        row.iter().map(|x| x * r).collect()
    };
    for (b, slot) in SLOT.into_iter().enumerate() {
        let slot = if options.slots { slot } else { b };
        for head in 0..HV {
            let state = &mut out.s[(slot * HV + head) * k * v..][..k * v];
            for t in 0..T {
                let (row, group) = ((b * T + t) * HV + head, (b * T + t) * H + head / (HV / H));
                let (qt, kt) = (unit(&q[group * k..][..k]), unit(&ks[group * k..][..k]));
                let (decay, strength) = if raw {
                    let x = a[row] + dt_bias[head];
                    ((-a_log[head].exp() * x.exp().ln_1p()).exp(), BETA_MAX / (1.0 + (-braw[row]).exp()))
                } else {
                    (
                        if options.gate { g[row].exp() } else { 1.0 },
                        if options.beta { beta[row] } else { 1.0 },
                    )
                };
                state.iter_mut().for_each(|s| *s *= decay);
                for j in 0..v {
                    let read: f64 = (0..k).map(|i| kt[i] * state[i * v + j]).sum();
                    let value = vs[row * v + j];
                    let u = if erase { strength * (value - read) } else { value };
                    (0..k).for_each(|i| state[i * v + j] += kt[i] * u);
                    let read: f64 = (0..k).map(|i| qt[i] * state[i * v + j]).sum();
                    out.o[row * v + j] = read * (k as f64).powf(-0.5);
                }
                out.kept[row * k * v..][..k * v].copy_from_slice(state);
            }
        }
    }
    out
}
