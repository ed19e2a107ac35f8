//! Slot attention from its definition, token by token: keys and values of the slots, and a softmax over them.

use flashlin_tensor::Real;

/// Inputs: q, k `[tokens, H, K]`, v `[tokens, H, V]`, s, g `[tokens, H, M]`; states `[N, H, K, M]`, `[N, H, M, V]`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Inputs<'a, R> {
    /// (first token, tokens) of each sequence.
    pub seqs: &'a [(usize, usize)],
    pub heads: usize,
    /// K, V, M
    pub dims: [usize; 3],
    pub scale: f64,
    pub q: &'a [R],
    pub k: &'a [R],
    pub v: &'a [R],
    pub s: &'a [R],
    pub g: &'a [R],
    pub keys: &'a [R],
    pub values: &'a [R],
}

/// What a forward pass leaves: o, the last states, and by token the slots' probabilities and the states after it.
#[allow(missing_docs)]
pub struct Trace<R> {
    pub o: Vec<R>,
    pub keys: Vec<R>,
    pub values: Vec<R>,
    p: Vec<R>,
    all_keys: Vec<R>,
    all_values: Vec<R>,
}

/// The recurrence.
pub fn forward<R: Real>(x: &Inputs<R>) -> Trace<R> {
    let ([dk, dv, m], h, scale) = (x.dims, x.heads, R::from_f64(x.scale));
    let tokens = x.q.len() / (h * dk);
    let mut out = Trace {
        o: vec![R::ZERO; tokens * h * dv],
        keys: x.keys.to_vec(),
        values: x.values.to_vec(),
        p: vec![R::ZERO; tokens * h * m],
        all_keys: Vec::new(),
        all_values: Vec::new(),
    };
    out.all_keys = vec![R::ZERO; tokens * h * dk * m];
    out.all_values = vec![R::ZERO; tokens * h * m * dv];
    for (row, &(start, len)) in x.seqs.iter().enumerate() {
        for at in (start..start + len).flat_map(|t| (0..h).map(move |head| t * h + head)) {
            let state = row * h + at % h;
            let keys = &mut out.keys[state * dk * m..][..dk * m];
            let values = &mut out.values[state * m * dv..][..m * dv];
            let (s, g) = (&x.s[at * m..][..m], &x.g[at * m..][..m]);
            let mut scores = vec![R::ZERO; m];
            for i in 0..dk {
                for j in 0..m {
                    keys[i * m + j] = keys[i * m + j] * g[j].exp() + x.k[at * dk + i] * s[j];
                    scores[j] += scale * x.q[at * dk + i] * keys[i * m + j];
                }
            }
            let total: R = scores.iter().map(|s| s.exp()).sum();
            for j in 0..m {
                let p = scores[j].exp() / total;
                out.p[at * m + j] = p;
                for c in 0..dv {
                    values[j * dv + c] = values[j * dv + c] * g[j].exp() + s[j] * x.v[at * dv + c];
                    out.o[at * dv + c] += p * values[j * dv + c];
                }
            }
            out.all_keys[at * dk * m..][..dk * m].copy_from_slice(keys);
            out.all_values[at * m * dv..][..m * dv].copy_from_slice(values);
        }
    }
    out
}

/// Gradients of q, k, v, s, g and both initial states, from those of what [`forward`] gives.
pub fn backward<R: Real>(x: &Inputs<R>, [d_o, d_keys, d_values]: [&[R]; 3]) -> [Vec<R>; 7] {
    let ([dk, dv, m], h, scale) = (x.dims, x.heads, R::from_f64(x.scale));
    let trace = forward(x);
    let zeros = |like: &[R]| vec![R::ZERO; like.len()];
    let (mut dq, mut dkey, mut dval, mut ds, mut dg) =
        (zeros(x.q), zeros(x.k), zeros(x.v), zeros(x.s), zeros(x.g));
    let (mut flow_k, mut flow_v) = (d_keys.to_vec(), d_values.to_vec());
    for (row, &(start, len)) in x.seqs.iter().enumerate() {
        for t in (start..start + len).rev() {
            for head in 0..h {
                let (at, state) = (t * h + head, row * h + head);
                let prior = |all: &[R], first: &[R], n: usize| match t == start {
                    true => first[state * n..][..n].to_vec(),
                    false => all[(at - h) * n..][..n].to_vec(),
                };
                let old_keys = prior(&trace.all_keys, x.keys, dk * m);
                let old_values = prior(&trace.all_values, x.values, m * dv);
                let new_keys = &trace.all_keys[at * dk * m..][..dk * m];
                let new_values = &trace.all_values[at * m * dv..][..m * dv];
                let p = &trace.p[at * m..][..m];
                let flow_k = &mut flow_k[state * dk * m..][..dk * m];
                let flow_v = &mut flow_v[state * m * dv..][..m * dv];
                let mut dp = vec![R::ZERO; m];
                for j in 0..m {
                    let keep = x.g[at * m + j].exp();
                    for c in 0..dv {
                        let i = j * dv + c;
                        dp[j] += d_o[at * dv + c] * new_values[i];
                        flow_v[i] += p[j] * d_o[at * dv + c];
                        ds[at * m + j] += flow_v[i] * x.v[at * dv + c];
                        dval[at * dv + c] += flow_v[i] * x.s[at * m + j];
                        dg[at * m + j] += flow_v[i] * keep * old_values[i];
                        flow_v[i] *= keep;
                    }
                }
                let mean: R = (0..m).map(|j| p[j] * dp[j]).sum();
                for j in 0..m {
                    let d_score = scale * p[j] * (dp[j] - mean);
                    let keep = x.g[at * m + j].exp();
                    for c in 0..dk {
                        let i = c * m + j;
                        dq[at * dk + c] += d_score * new_keys[i];
                        flow_k[i] += d_score * x.q[at * dk + c];
                        dkey[at * dk + c] += flow_k[i] * x.s[at * m + j];
                        ds[at * m + j] += flow_k[i] * x.k[at * dk + c];
                        dg[at * m + j] += flow_k[i] * keep * old_keys[i];
                        flow_k[i] *= keep;
                    }
                }
            }
        }
    }
    [dq, dkey, dval, ds, dg, flow_k, flow_v]
}
