//! Speed of the chunked delta family against the machine's matrix product, in one run.
//!
//! `cargo run --release -p flashlin-ops --example delta_speed [tokens]`

use std::time::Instant;

use flashlin_ops::delta::{DeltaArgs, DeltaGate, chunk_matrix_flops, delta_rule};
use flashlin_ops::{Mode, Result};
use flashlin_tensor::{DType, Device, Philox, Tensor, Var};

/// Shortest of several runs, in seconds.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn measure(name: &str, [h, k, v, t]: [usize; 4], gemm: f64) -> Result<()> {
    let randn =
        |stream, dims: &[usize]| Philox::new(1, stream).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu);
    let leaf = |stream, dims: &[usize]| Ok::<_, flashlin_ops::Error>(Var::leaf(randn(stream, dims)?));
    let (q, key, val, beta) =
        (leaf(1, &[1, t, h, k])?, leaf(2, &[1, t, h, k])?, leaf(3, &[1, t, h, v])?, leaf(4, &[1, t, h])?);
    let n = if name == "kda" { vec![1, t, h, k] } else { vec![1, t, h] };
    let g = Var::leaf(Philox::new(1, 5).rand(-0.2, 0.0, &n, DType::F32, &Device::Cpu)?);
    let gate = match name {
        "delta_rule" => DeltaGate::None,
        "kda" => DeltaGate::Channel { g: &g, activation: None },
        _ => DeltaGate::Scalar { g: &g, activation: None },
    };
    let args = DeltaArgs {
        beta: Some(&beta),
        beta_sigmoid: true,
        qk_l2norm: true,
        gate,
        mode: Mode::Chunk,
        ..DeltaArgs::new("delta_rule", &q, &key, &val)
    };
    let weight = randn(6, &[1, t, h, v])?;
    let forward = best(10, || delta_rule(args).map(drop))?;
    let both = best(10, || {
        let o = delta_rule(args)?.o;
        Var::backward_with(vec![(&o, weight.clone())]).map(drop)
    })?;
    let [f, b] = chunk_matrix_flops(t, h, k, v, 64);
    println!(
        "{name:16} H {h} K {k} V {v} T {t}: forward {:.2} ms, both {:.2} ms, {:.1} GFLOP/s, {:.1}% of gemm (forward {:.1}%)",
        forward * 1e3,
        both * 1e3,
        (f + b) / both / 1e9,
        100.0 * (f + b) / both / gemm,
        100.0 * f / forward / gemm
    );
    Ok(())
}

fn main() -> Result<()> {
    let t = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(4096);
    let n = 2048;
    let square = Philox::new(1, 0).randn(0.0, 1.0, &[n, n], DType::F32, &Device::Cpu)?;
    let product = || -> Result<()> { square.matmul(&square).map(|y: Tensor| drop(y)) };
    let gemm = 2.0 * (n as f64).powi(3) / best(5, product)?;
    println!("gemm {n}: {:.1} GFLOP/s with {} threads", gemm / 1e9, rayon::current_num_threads());
    for (name, dims) in [
        ("gated_delta_rule", [8, 64, 64, t]),
        ("delta_rule", [8, 64, 64, t]),
        ("kda", [8, 64, 64, t]),
        ("gated_delta_rule", [6, 128, 128, t / 2]),
        ("gated_delta_rule", [4, 256, 256, t / 4]),
    ] {
        measure(name, dims, gemm)?;
    }
    Ok(())
}
