//! The decoding step.

use anyhow::Result;
use flashlin_kernels::Kernel;
use flashlin_ops::delta::reference::{Dims, Gate, Problem, forward};

use super::gpu::{Bufs, Gpu};
use super::host::{Noise, encode, relative, round, size};
use super::report::Errors;

const EPS: f64 = 1e-6;
const SLOTS: usize = 5;

/// Errors over a batch of three rows, the middle one skipped, three tokens each.
pub fn check(gpu: &Gpu<'_>, kernel: &Kernel) -> Result<Errors> {
    let (b, t, h, hv) = (3, 3, 2, 4);
    let (kd, vd) = (kernel.need_generic("K")? as usize, kernel.need_generic("V")? as usize);
    let (erase, raw) = (kernel.need_generic("ERASE")? == 1, kernel.need_generic("RAW")? == 1);
    let d = kernel.dtype.as_str();
    let slots = [3i32, -1, 0];
    let mut n = Noise::new(3);
    let q = round(d, &n.vec(b * t * h * kd, 1.0));
    let k = round(d, &n.vec(b * t * h * kd, 1.0));
    let v = round(d, &n.vec(b * t * hv * vd, 1.0));
    let (a, braw) = (round(d, &n.vec(b * t * hv, 2.0)), round(d, &n.vec(b * t * hv, 2.0)));
    let (a_log, dt_bias) = (round("f32", &n.vec(hv, 1.0)), round("f32", &n.vec(hv, 1.0)));
    let mut g = round("f32", &n.vec(b * t * hv, 1.0).iter().map(|x| -x * x).collect::<Vec<_>>());
    let mut beta = round("f32", &n.vec(b * t * hv, 1.0).iter().map(|x| (x + 1.0) / 2.0).collect::<Vec<_>>());
    let pool = round("f32", &n.vec(SLOTS * hv * kd * vd, 0.3));
    let mut bufs = Bufs::default();
    let arrays =
        [("q", d, &q), ("k", d, &k), ("v", d, &v), ("a", d, &a), ("braw", d, &braw), ("g", "f32", &g)];
    let more =
        [("beta", "f32", &beta), ("a_log", "f32", &a_log), ("dt_bias", "f32", &dt_bias), ("s", "f32", &pool)];
    for (name, dtype, data) in arrays.into_iter().chain(more) {
        bufs.0.insert(name.into(), gpu.upload(&encode(dtype, data))?);
    }
    bufs.0
        .insert("slot".into(), gpu.upload(&slots.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>())?);
    bufs.0.insert("o".into(), gpu.poisoned(b * t * hv * vd * size(d))?);
    bufs.0.insert("kept".into(), gpu.poisoned(b * t * hv * kd * vd * 4)?);
    launch(gpu, kernel, &bufs, [b, t, h, hv], 1.0)?;
    if raw {
        for (i, g) in g.iter_mut().enumerate() {
            *g = -a_log[i % hv].exp() * (1.0 + (a[i] + dt_bias[i % hv]).exp()).ln();
        }
        for (i, x) in beta.iter_mut().enumerate() {
            *x = 2.0 / (1.0 + (-braw[i]).exp());
        }
    }
    let o = gpu.download(&bufs.0["o"], d)?;
    let s = gpu.download(&bufs.0["s"], "f32")?;
    let kept = gpu.download(&bufs.0["kept"], "f32")?;
    let state = hv * kd * vd;
    let mut want_pool = pool.clone();
    let (mut got_o, mut want_o, mut got_kept, mut want_kept) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(*slot) else {
            continue;
        };
        let part = |x: &[f64], w: usize| x[row * t * w..(row + 1) * t * w].to_vec();
        let unit = |x: Vec<f64>| -> Vec<f64> {
            let norm = |r: &[f64]| (r.iter().map(|v| v * v).sum::<f64>() + EPS).sqrt();
            x.chunks_exact(kd).flat_map(|r| r.iter().map(move |v| v / norm(r))).collect()
        };
        let (q, k, v) = (unit(part(&q, h * kd)), unit(part(&k, h * kd)), part(&v, hv * vd));
        let (g, beta) = (part(&g, hv), part(&beta, hv));
        let before = pool[slot * state..][..state].to_vec();
        let mut last = before.clone();
        for tokens in 1..=t {
            let (o, after) = if erase {
                forward(&Problem {
                    dims: Dims { t: tokens, h, hv, k: kd, v: vd },
                    q: &q[..tokens * h * kd],
                    k: &k[..tokens * h * kd],
                    erase: None,
                    v: &v[..tokens * hv * vd],
                    beta: Some(&beta[..tokens * hv]),
                    gate: Gate::Scalar(&g[..tokens * hv]),
                    h0: Some(&before),
                    scale: (kd as f64).powf(-0.5),
                    erase_before_decay: false,
                })
            } else {
                decayed(&q, &k, &v, &g, &before, [tokens, h, hv, kd, vd])
            };
            if tokens == t {
                want_o.extend(o);
            }
            want_kept.extend(&after);
            last = after;
        }
        got_o.extend(part(&o, hv * vd));
        got_kept.extend(part(&kept, hv * kd * vd));
        want_pool[slot * state..][..state].copy_from_slice(&last);
    }
    Ok(vec![
        ("state".into(), relative(&s, &want_pool)),
        ("o".into(), relative(&got_o, &want_o)),
        ("kept".into(), relative(&got_kept, &want_kept)),
    ])
}

/// The recurrence without the erase term.
fn decayed(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    g: &[f64],
    before: &[f64],
    dims: [usize; 5],
) -> (Vec<f64>, Vec<f64>) {
    let [t, h, hv, kd, vd] = dims;
    let (mut s, mut o) = (before.to_vec(), vec![0.0; t * hv * vd]);
    for i in 0..t {
        for j in 0..hv {
            let key = (i * h + j / (hv / h)) * kd;
            for c in 0..kd {
                for x in 0..vd {
                    let at = &mut s[(j * kd + c) * vd + x];
                    *at = *at * g[i * hv + j].exp() + k[key + c] * v[(i * hv + j) * vd + x];
                    o[(i * hv + j) * vd + x] += *at * q[key + c] * (kd as f64).powf(-0.5);
                }
            }
        }
    }
    (o, s)
}

fn launch(gpu: &Gpu<'_>, kernel: &Kernel, bufs: &Bufs, [b, t, h, hv]: [usize; 4], keep: f64) -> Result<()> {
    let (kd, vd, bv) = (kernel.need_generic("K")?, kernel.need_generic("V")?, kernel.need_generic("BV")?);
    let numbers = [
        ("b", b as f64),
        ("t", t as f64),
        ("h", h as f64),
        ("hv", hv as f64),
        ("slots", if keep > 0.0 { SLOTS as f64 } else { b as f64 }),
        ("has_g", 1.0),
        ("has_beta", 1.0),
        ("norm", 1.0),
        ("keep", keep),
        ("has_slot", 1.0),
        ("eps", EPS),
        ("scale", (kd as f64).powf(-0.5)),
        ("bmax", 2.0),
    ];
    gpu.launch(kernel, [(vd / bv) as usize, hv, b], bufs, &[], &numbers)
}

/// Times one token at several batches.
pub fn time(gpu: &Gpu<'_>, kernels: &[&Kernel]) -> Result<()> {
    let mine = |k: &&&Kernel| {
        k.kernel == "delta_step"
            && k.generic("RAW") == Some(1)
            && k.dtype == "bf16"
            && k.generic("K") == Some(128)
            && k.generic("V") == Some(128)
    };
    for (b, hv) in [(1usize, 16usize), (8, 16), (64, 16), (256, 16), (256, 64)] {
        for kernel in kernels.iter().filter(mine) {
            let n = b * hv;
            let mut bufs = Bufs::default();
            for (name, bytes) in [
                ("q", n * 256),
                ("k", n * 256),
                ("v", n * 256),
                ("o", n * 256),
                ("a", n * 2),
                ("braw", n * 2),
            ] {
                bufs.0.insert(name.into(), gpu.upload(&vec![0x3c; bytes])?);
            }
            for (name, bytes) in [("a_log", hv * 4), ("dt_bias", hv * 4), ("s", n * 128 * 128 * 4)] {
                bufs.0.insert(name.into(), gpu.upload(&vec![0; bytes])?);
            }
            bufs.0.insert(
                "slot".into(),
                gpu.upload(&(0..b as i32).flat_map(i32::to_le_bytes).collect::<Vec<_>>())?,
            );
            let ms = gpu
                .time(|| (0..10).try_for_each(|_| launch(gpu, kernel, &bufs, [b, 1, hv, hv], 0.0)))?
                / 10.0;
            let rate = (n * 128 * 128 * 8) as f64 / ms / 1e9;
            println!("  step {b}x{hv} {:<60} {:8.2} us {rate:6.2} TB/s", kernel.name, ms * 1e3);
        }
    }
    Ok(())
}
