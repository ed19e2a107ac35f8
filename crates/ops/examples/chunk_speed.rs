//! Speed of the chunked recurrences beside a dense product:
//!
//! `cargo run --release -p flashlin-ops --example chunk_speed [FILTER [RUNS]]`
//!
//! Each line: a recurrence's forward, and forward with all gradients, as the best of a few runs, and the share of the FLOP/s
//! that a 2048^3 f32 product reached in the same process with the same threads. Matrix FLOPs are those of
//! `decay::chunk_matrix_flops` (pairs of tokens at or before each other only; no recomputation) and
//! `delta::chunk_matrix_flops`. FILTER keeps the lines whose name begins with it.

use flashlin_ops::decay::{self, DecayArgs, decay_attention};
use flashlin_ops::delta::{self, DeltaArgs, DeltaGate, delta_rule};
use flashlin_ops::{Mode, Result};
use flashlin_tensor::{DType, Device, Philox, Tensor, Var, no_grad};

/// Processor seconds that this process's threads have used (Linux), so that other processes do not count.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    tasks.filter_map(|t| nanos(t.path())).sum::<f64>() * 1e-9
}

/// Best of `runs` in processor seconds a thread: what a quiet machine would need.
fn best(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = cpu_seconds();
        f()?;
        best = best.min((cpu_seconds() - start) / rayon::current_num_threads() as f64);
    }
    Ok(best)
}

#[derive(Clone, Copy)]
struct Size {
    t: usize,
    h: usize,
    k: usize,
    v: usize,
}

const CHUNK: usize = 64;
const SIZES: [Size; 4] = [
    Size { t: 4096, h: 8, k: 64, v: 64 },
    Size { t: 4096, h: 4, k: 128, v: 128 },
    Size { t: 2048, h: 4, k: 256, v: 256 },
    Size { t: 512, h: 8, k: 64, v: 64 },
];
/// Gates by their letters; "strong": of a few nats a token.
const DECAY: [&str; 7] = ["none", "g", "gk", "gk strong", "gk very strong", "gk gv", "gk bonus"];
const DELTA: [&str; 4] = ["delta_rule", "gated_delta_rule", "kda", "kda strong"];

fn randn(stream: u64, dims: &[usize]) -> Result<Tensor> {
    Philox::new(2, stream).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu)
}

/// Log-decays as trained gates have them: log-sigmoid of normals over 16; "strong" leaves out the 16.
fn gate(name: &str, stream: u64, dims: &[usize]) -> Result<Tensor> {
    let divisor = if name.contains("strong") { 1.0 } else { 16.0 };
    let shift = if name.contains("very") { -4.0 } else { 0.0 };
    let x = Philox::new(2, stream).randn(shift, 1.0, dims, DType::F32, &Device::Cpu)?;
    x.neg()?.softplus()?.affine(-1.0 / divisor, 0.0)
}

/// Inputs in the order in which `call` reads them.
fn inputs(name: &str, Size { t, h, k, v }: Size) -> Result<Vec<Tensor>> {
    let scalar = name == "g" || name == "gated_delta_rule";
    let g = if scalar { gate(name, 4, &[1, t, h])? } else { gate(name, 4, &[1, t, h, k])? };
    Ok(vec![
        randn(1, &[1, t, h, k])?,
        randn(2, &[1, t, h, k])?,
        randn(3, &[1, t, h, v])?,
        g,
        gate(name, 5, &[1, t, h, v])?,
        randn(6, &[h, k])?,
        randn(7, &[1, t, h])?,
    ])
}

fn call(name: &str, x: &[Var]) -> Result<Var> {
    let [q, k, v, g, gv, u, beta] = x else {
        return Err(flashlin_ops::Error::invalid("chunk_speed", "inputs", "do not fit"));
    };
    let has = |part: &str| name.split(' ').any(|p| p == part);
    if DECAY.contains(&name) {
        let args = DecayArgs {
            g: has("g").then_some(g),
            gk: has("gk").then_some(g),
            gv: has("gv").then_some(gv),
            bonus: has("bonus").then_some(u),
            mode: Mode::Chunk,
            chunk_size: CHUNK,
            ..DecayArgs::new(q, k, v)
        };
        return Ok(decay_attention(args)?.o);
    }
    let gate = match name {
        "delta_rule" => DeltaGate::None,
        "gated_delta_rule" => DeltaGate::Scalar { g, activation: None },
        _ => DeltaGate::Channel { g, activation: None },
    };
    let args = DeltaArgs {
        beta: Some(beta),
        beta_sigmoid: true,
        qk_l2norm: true,
        gate,
        mode: Mode::Chunk,
        chunk_size: CHUNK,
        ..DeltaArgs::new("delta_rule", q, k, v)
    };
    Ok(delta_rule(args)?.o)
}

/// Forward, and both.
fn flops(name: &str, Size { t, h, k, v }: Size) -> [f64; 2] {
    if DECAY.contains(&name) {
        return [false, true].map(|back| decay::chunk_matrix_flops(t, h, (k, v), CHUNK, true, back));
    }
    let [forward, backward] = delta::chunk_matrix_flops(t, h, k, v, CHUNK);
    [forward, forward + backward]
}

fn line(name: &str, label: &str, size: Size, runs: usize, peak: f64) -> Result<()> {
    let inputs = inputs(name, size)?;
    let vars = |leaf: fn(Tensor) -> Var| inputs.iter().cloned().map(leaf).collect::<Vec<_>>();
    let weights = randn(8, &[1, size.t, size.h, size.v])?;
    let constants = vars(Var::constant);
    let forward = best(runs, || no_grad(|| call(name, &constants)).map(drop))?;
    let both = best(runs, || {
        let leaves = vars(Var::leaf);
        Var::backward_with(vec![(&call(name, &leaves)?, weights.clone())]).map(drop)
    })?;
    let [f, b] = flops(name, size);
    println!(
        "{label:<36} forward {:6.2} ms {:4.1}%   with backward {:6.2} ms {:4.1}%",
        forward * 1e3,
        100.0 * f / forward / peak,
        both * 1e3,
        100.0 * b / both / peak,
    );
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let filter = args.next().unwrap_or_default();
    let runs = args.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    let n = 2048;
    let a = randn(0, &[n, n])?;
    let peak = 2.0 * (n as f64).powi(3) / best(4, || a.matmul(&a).map(drop))?;
    println!("gemm {n}^3 f32, {} threads: {:.0} GFLOP/s", rayon::current_num_threads(), peak / 1e9);
    for size in SIZES {
        for name in DECAY.into_iter().chain(DELTA) {
            let label = format!("{}x{} T {} H {}: {name}", size.k, size.v, size.t, size.h);
            if label.starts_with(&filter) {
                line(name, &label, size, runs, peak)?;
            }
        }
    }
    Ok(())
}
