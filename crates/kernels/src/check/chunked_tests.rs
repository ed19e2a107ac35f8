//! The arrays against the recurrence token by token, and the gradients against differences.

use super::*;

fn setup(delta: bool) -> Setup {
    Setup {
        label: "t",
        lens: vec![70, 0, 131],
        packed: true,
        h: 1,
        hv: 2,
        k: 8,
        v: 6,
        norm: delta,
        gate: Gate::Token,
        beta: true,
        state: true,
        delta,
        dtype: None,
    }
}

/// The recurrence itself: outputs and final states.
fn recurrence(s: &Setup, x: &Arrays) -> (Vec<f64>, Vec<f64>) {
    let mut o = vec![0.0; s.tokens() * s.hv * s.v];
    let mut states = x["h0"].1.clone();
    let mut start = 0;
    for (n, &len) in s.lens.iter().enumerate() {
        for head in 0..s.hv {
            let state = &mut states[(n * s.hv + head) * s.k * s.v..][..s.k * s.v];
            for t in start..start + len {
                let unit = |name: &str| -> Vec<f64> {
                    let row = &x[name].1[(t * s.h + head / (s.hv / s.h)) * s.k..][..s.k];
                    let r = if s.norm {
                        (row.iter().map(|x| x * x).sum::<f64>() + EPS).sqrt().recip()
                    } else {
                        1.0
                    };
                    row.iter().map(|x| x * r).collect()
                };
                let (q, k, v) = (unit("q"), unit("k"), &x["v"].1[(t * s.hv + head) * s.v..][..s.v]);
                let (g, beta) = (x["g"].1[t * s.hv + head].exp(), x["beta"].1[t * s.hv + head]);
                state.iter_mut().for_each(|x| *x *= g);
                for j in 0..s.v {
                    let read: f64 = (0..s.k).map(|i| k[i] * state[i * s.v + j]).sum();
                    let u = if s.delta { beta * (v[j] - read) } else { v[j] };
                    (0..s.k).for_each(|i| state[i * s.v + j] += k[i] * u);
                    let read: f64 = (0..s.k).map(|i| q[i] * state[i * s.v + j]).sum();
                    o[(t * s.hv + head) * s.v + j] = read * s.scale();
                }
            }
        }
        start += len;
    }
    (o, states)
}

fn close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    let error = super::super::relative_error(a, b);
    assert!(error < tolerance, "{what}: {error:e}");
}

#[test]
fn chunks_compute_the_recurrence() {
    for delta in [false, true] {
        let s = setup(delta);
        let x = s.arrays();
        let (o, ht) = recurrence(&s, &x);
        close(&x["o"].1, &o, 1e-12, "o");
        close(&x["ht"].1, &ht, 1e-12, "ht");
    }
}

/// <o, d_o> + <ht, dht>, whose gradients the backward gives.
fn loss(s: &Setup, x: &Arrays) -> f64 {
    let (o, ht) = recurrence(s, x);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&o, &x["d_o"].1) + dot(&ht, &x["dht"].1)
}

#[test]
fn gradients_match_differences() {
    for delta in [false, true] {
        let s = setup(delta);
        let made = s.arrays();
        let names = [("q", "dq"), ("k", "dk"), ("v", "dv"), ("g", "dg"), ("beta", "dbeta"), ("h0", "dh0")];
        for (input, gradient) in names.into_iter().filter(|(n, _)| delta || *n != "beta") {
            let mut x = s.operands();
            let len = x[input].1.len();
            let direction = INPUTS.uniform(99, len, -1.0, 1.0);
            let mut at = |step: f64| {
                let moved = made[input].1.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                x.insert(input, ("f32", moved));
                loss(&s, &x)
            };
            let measured = (at(1e-5) - at(-1e-5)) / 2e-5;
            // Gradients of q and k come for each value head; heads of a group add up.
            let per_head = made[gradient].1.len() / len;
            let width = if matches!(input, "q" | "k") { s.k } else { 1 };
            let slope: f64 = made[gradient]
                .1
                .iter()
                .enumerate()
                .map(|(i, d)| {
                    let from = if per_head == 1 { i } else { i / (width * s.hv) * width * s.h + i % width };
                    d * direction[from]
                })
                .sum();
            assert!(
                (slope - measured).abs() < 1e-6 * measured.abs().max(1.0),
                "{gradient}: {slope} {measured}"
            );
        }
    }
}
