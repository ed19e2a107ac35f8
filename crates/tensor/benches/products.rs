//! Dense products and decode at the shapes of the 132M model (hidden 768, intermediate 2048, vocabulary 32000), against
//! this machine's measured ceilings. Each is verified before it is timed.
//!
//! `cargo bench -p flashlin-tensor --bench products [-- FILTER]`

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flashlin_tensor::{DType, Device, Philox, Tensor, cpu::ceiling};

const TOKENS: usize = 1024;
/// (in, out) of the projections, the two halves of the MLP, and the vocabulary.
const LAYERS: [(usize, usize); 4] = [(768, 768), (768, 2048), (2048, 768), (768, 32000)];

fn random(stream: u64, dims: &[usize], dtype: DType) -> Tensor {
    Philox::new(1, stream).randn(0.0, 1.0, dims, dtype, &Device::Cpu).expect("memory")
}

/// Panics unless `y` is near the f64 product of the first rows of `x` with the first rows of `w`.
fn verify(x: &Tensor, w: &Tensor, y: &Tensor) {
    let (rows, cols) = (x.dim(0).min(4), w.dim(0).min(64));
    let wide = |t: &Tensor, n| t.narrow(0, 0, n).and_then(|t| t.to_dtype(DType::F64)).expect("memory");
    let want = wide(x, rows).linear(&wide(w, cols)).expect("memory").to_f64_vec().expect("host");
    let got = y.narrow(0, 0, rows).and_then(|y| y.narrow(1, 0, cols)).expect("inside");
    let got = got.to_f64_vec().expect("host");
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let err = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    assert!(err <= 4e-3 * norm(&mut want.iter().copied()), "wrong product: error {err}");
}

fn ceilings(_: &mut Criterion) {
    let threads = rayon::current_num_threads();
    for t in [1, threads] {
        println!("fma peak, {t} threads: {:.1} GFLOP/s", ceiling::fma_peak_flops(t) / 1e9);
        if let Some(peak) = ceiling::bf16_peak_flops(t) {
            println!("bf16 dot peak, {t} threads: {:.1} GFLOP/s", peak / 1e9);
        }
        let gemm = ceiling::gemm_flops(2048, t).expect("memory");
        println!("gemm 2048^3 f32, {t} threads: {:.1} GFLOP/s", gemm / 1e9);
        for streams in [1, 2, 4, 8] {
            let read = ceiling::read_bandwidth(t, streams).expect("memory");
            println!("read, {t} threads, {streams} streams: {:.1} GB/s", read / 1e9);
        }
    }
}

/// Forward and both backward products of a linear layer.
fn training(c: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let mut group = c.benchmark_group(format!("training/{dtype}"));
        for (inner, outer) in LAYERS {
            let (x, w) = (random(1, &[TOKENS, inner], dtype), random(2, &[outer, inner], dtype));
            let g = random(3, &[TOKENS, outer], dtype);
            verify(&x, &w, &x.linear(&w).expect("shapes fit"));
            let gt = g.transpose(0, 1).expect("a matrix");
            group.throughput(Throughput::Elements((2 * TOKENS * inner * outer) as u64));
            let name = |what| format!("{what}/{inner}x{outer}");
            group.bench_function(name("y"), |b| b.iter(|| black_box(x.linear(&w))));
            group.bench_function(name("dx"), |b| b.iter(|| black_box(g.matmul(&w))));
            group.bench_function(name("dw"), |b| b.iter(|| black_box(gt.matmul_to(&x, DType::F32))));
        }
        group.finish();
    }
}

/// One layer's weight after another, more of them than the caches hold.
fn decode(c: &mut Criterion) {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let mut group = c.benchmark_group(format!("decode/{dtype}"));
        for (inner, outer) in LAYERS {
            let count = (128 << 20) / (inner * outer * dtype.size()) + 1;
            let all = random(1, &[outer, inner], dtype);
            let weights: Vec<Tensor> = (0..count).map(|_| all.copy().expect("memory")).collect();
            for rows in [1, 4, 16] {
                let x = random(2, &[rows, inner], dtype);
                verify(&x, &all, &x.linear(&all).expect("shapes fit"));
                group.throughput(Throughput::Bytes((count * inner * outer * dtype.size()) as u64));
                group.bench_function(format!("{rows}/{inner}x{outer}"), |b| {
                    // On the pool, as a decoding loop should be: entering it from outside costs a wake-up.
                    rayon::scope(|_| b.iter(|| weights.iter().for_each(|w| drop(black_box(x.linear(w))))))
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots();
    targets = ceilings, training, decode
}
criterion_main!(benches);
