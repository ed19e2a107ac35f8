//! Speed of the chunked decay family beside a dense product: `cargo run --release -p flashlin-ops --example decay_speed`.
//!
//! Each line: a variant's forward, and forward with all gradients, as the best of a few runs, and the share of the
//! FLOP/s that a 2048^3 f32 product reached in the same process with the same threads. Matrix FLOPs are counted with
//! [`chunk_matrix_flops`], dense and (in brackets) causal pairs only.

use flashlin_ops::decay::{DecayArgs, chunk_matrix_flops, decay_attention};
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

fn main() -> Result<()> {
    let n = 2048;
    let rng = Philox::new(1, 0);
    let a = rng.randn(0.0, 1.0, &[n, n], DType::F32, &Device::Cpu)?;
    let seconds = best(4, || a.matmul(&a).map(drop))?;
    let peak = 2.0 * (n as f64).powi(3) / seconds;
    println!("gemm {n}^3 f32, {} threads: {:.0} GFLOP/s", rayon::current_num_threads(), peak / 1e9);
    let only = std::env::args().nth(1);
    for (t, h, k, v) in [(4096, 8, 64, 64), (4096, 4, 128, 128), (2048, 4, 256, 256), (4096, 8, 64, 128)] {
        for name in ["none", "g", "gk", "gk strong", "gk very strong", "gk gv", "gk bonus"] {
            if only.as_ref().is_some_and(|o| o != &format!("{k}x{v}:{name}") && o != &format!("{k}x{v}")) {
                continue;
            }
            line(name, (t, h, k, v), peak)?;
        }
    }
    Ok(())
}

fn line(name: &str, (t, h, k, v): (usize, usize, usize, usize), peak: f64) -> Result<()> {
    let randn = |s: u64, dims: &[usize]| Philox::new(2, s).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu);
    // Log-decays as trained gates have them: log-sigmoid of normals over 16; "strong" leaves out the 16.
    let gate = |s: u64, dims: &[usize]| -> Result<Tensor> {
        let divisor = if name.contains("strong") { 1.0 } else { 16.0 };
        let shift = if name.contains("very") { -4.0 } else { 0.0 };
        let x = Philox::new(2, s).randn(shift, 1.0, dims, DType::F32, &Device::Cpu)?;
        x.neg()?.softplus()?.affine(-1.0 / divisor, 0.0)
    };
    let (q, key, val) = (randn(1, &[1, t, h, k])?, randn(2, &[1, t, h, k])?, randn(3, &[1, t, h, v])?);
    let (g, gk, gv) = (gate(4, &[1, t, h])?, gate(5, &[1, t, h, k])?, gate(6, &[1, t, h, v])?);
    let u = randn(7, &[h, k])?;
    let has = |x: &str| name.split(' ').any(|part| part == x);
    let call = |leaf: fn(Tensor) -> Var| -> Result<Var> {
        let [q, key, val, g, gk, gv, u] = [&q, &key, &val, &g, &gk, &gv, &u].map(|t| leaf(t.clone()));
        let args = DecayArgs {
            g: has("g").then_some(&g),
            gk: has("gk").then_some(&gk),
            gv: has("gv").then_some(&gv),
            bonus: has("bonus").then_some(&u),
            mode: Mode::Chunk,
            ..DecayArgs::new(&q, &key, &val)
        };
        Ok(decay_attention(args)?.o)
    };
    let weights = randn(8, &[1, t, h, v])?;
    let forward = best(5, || no_grad(|| call(Var::constant)).map(drop))?;
    let both = best(5, || Var::backward_with(vec![(&call(Var::leaf)?, weights.clone())]).map(drop))?;
    let share =
        |causal, backward, s: f64| 100.0 * chunk_matrix_flops(t, h, (k, v), 64, causal, backward) / s / peak;
    println!(
        "T {t} H {h} K {k} V {v} {name:<15} forward {:6.1} ms {:3.0}% ({:2.0}%)   with backward {:6.1} ms {:3.0}% ({:2.0}%)",
        forward * 1e3,
        share(false, false, forward),
        share(true, false, forward),
        both * 1e3,
        share(false, true, both),
        share(true, true, both),
    );
    Ok(())
}
