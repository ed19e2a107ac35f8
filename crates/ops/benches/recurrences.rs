//! Speed of the recurrences, chunked (forward, and with all gradients) and a token at a time:
//! `cargo bench -p flashlin-ops --bench recurrences [-- FILTER]`. The throughput is matrix FLOP/s of the chunked algorithm,
//! and bytes of state read and written a second for steps.

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use flashlin_ops::{
    Mode,
    decay::{self, DecayArgs, cpu},
    delta::{self, DeltaArgs},
};
use flashlin_tensor::{DType, Device, Philox, Tensor, Var, no_grad};

const T: usize = 2048;
const H: usize = 8;
const D: usize = 64;
const CHUNK: usize = 64;

fn randn(seed: u64, dims: &[usize]) -> Tensor {
    Philox::new(seed, 0).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu).expect("memory")
}

/// Weak log-decays, as trained gates have them.
fn gate(seed: u64, dims: &[usize]) -> Tensor {
    randn(seed, dims).softplus().and_then(|x| x.affine(-1.0 / 16.0, 0.0)).expect("a float")
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

/// Times `f` without and with a backward pass; `flops` are those of either.
fn both(c: &mut Criterion, name: &str, flops: [f64; 2], inputs: &[Tensor], f: impl Fn(&[Var]) -> Var) {
    let mut group = group(c, &format!("{name} T {T} H {H} K=V={D} C {CHUNK} f32"));
    let constants: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
    let weights = randn(9, &[1, T, H, D]);
    group.throughput(Throughput::Elements(flops[0] as u64));
    group.bench_function("forward", |b| b.iter(|| no_grad(|| black_box(f(&constants)))));
    group.throughput(Throughput::Elements(flops[1] as u64));
    group.bench_function("forward+backward", |b| {
        b.iter(|| {
            let leaves: Vec<Var> = inputs.iter().cloned().map(Var::leaf).collect();
            Var::backward_with(vec![(&f(&leaves), weights.clone())]).expect("gradients")
        })
    });
    group.finish();
}

fn decays(c: &mut Criterion) {
    let flops = [false, true].map(|back| decay::chunk_matrix_flops(T, H, (D, D), CHUNK, true, back));
    let x = [1, 2, 3].map(|s| randn(s, &[1, T, H, D]));
    fn args<'a>(v: &'a [Var]) -> DecayArgs<'a> {
        DecayArgs { mode: Mode::Chunk, chunk_size: CHUNK, ..DecayArgs::new(&v[0], &v[1], &v[2]) }
    }
    let with = |g: Tensor| x.iter().cloned().chain([g]).collect::<Vec<_>>();
    both(c, "linear_attn", flops, &x, |v| decay::linear_attn(args(v)).expect("runs").o);
    both(c, "retention", flops, &x, |v| decay::retention(args(v)).expect("runs").o);
    both(c, "simple_gla", flops, &with(gate(4, &[1, T, H])), |v| {
        decay::simple_gla(DecayArgs { g: Some(&v[3]), ..args(v) }).expect("runs").o
    });
    both(c, "gla", flops, &with(gate(4, &[1, T, H, D])), |v| {
        decay::gla(DecayArgs { gk: Some(&v[3]), ..args(v) }).expect("runs").o
    });
}

fn deltas(c: &mut Criterion) {
    let [f, b] = delta::chunk_matrix_flops(T, H, D, D, CHUNK);
    let x = [randn(1, &[1, T, H, D]), randn(2, &[1, T, H, D]), randn(3, &[1, T, H, D]), randn(4, &[1, T, H])];
    let set = |args: DeltaArgs<'_>| {
        let args =
            DeltaArgs { qk_l2norm: true, beta_sigmoid: true, chunk_size: CHUNK, mode: Mode::Chunk, ..args };
        delta::delta_rule(args).expect("runs").o
    };
    for (name, dims) in [("gated_delta_rule", &[1, T, H][..]), ("kda", &[1, T, H, D])] {
        let inputs: Vec<Tensor> = x.iter().cloned().chain([gate(5, dims)]).collect();
        both(c, name, [f, f + b], &inputs, |v| {
            set(match name {
                "kda" => DeltaArgs::kda(&v[0], &v[1], &v[2], &v[4], &v[3]),
                _ => DeltaArgs::gated_delta_rule(&v[0], &v[1], &v[2], &v[4], &v[3]),
            })
        });
    }
}

/// One token of 16 rows against a pool of states in place.
fn steps(c: &mut Criterion) {
    let (rows, state) = (16, H * D * D);
    let data = |seed, dims: &[usize]| randn(seed, dims).to_vec::<f32>().expect("f32");
    let (q, k, v) = (data(1, &[rows, H, D]), data(2, &[rows, H, D]), data(3, &[rows, H, D]));
    let gk = gate(4, &[rows, H, D]).to_vec::<f32>().expect("f32");
    let (mut pool, mut o) = (data(5, &[rows, state]), vec![0f32; rows * H * D]);
    let slots: Vec<usize> = (0..rows).collect();
    let step = cpu::Step {
        slots: &slots,
        heads: H,
        value_heads: H,
        key_dim: D,
        value_dim: D,
        scale: 0.125,
        q: &q,
        k: &k,
        v: &v,
        g: None,
        g_gamma: None,
        gk: Some(&gk),
        gv: None,
        u: None,
        transposed: false,
    };
    let mut group = group(c, &format!("gla step, {rows} rows, H {H} K=V={D} f32"));
    group.throughput(Throughput::Bytes((2 * 4 * rows * state) as u64));
    group.bench_function("step", |b| b.iter(|| assert!(cpu::step(&step, &mut pool, &mut o), "slots fit")));
    group.finish();
}

criterion_group!(benches, decays, deltas, steps);
criterion_main!(benches);
