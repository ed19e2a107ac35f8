//! Speed of the module operators, forward and backward, at the sizes of a 132M model: `cargo bench --bench modules`.
//! Each prints its throughput: bytes that must move (norm, conv, swiglu, decode) or multiplications and additions of
//! the matrix products (linear cross entropy, attention).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flashlin_ops::{
    activation::{Activation, activate, softplus, swiglu},
    conv::{ConvArgs, short_conv},
    gate::{DecayGate, DecayGateArgs, decay_gate, log_sigmoid_gate},
    loss::{LossOptions, cross_entropy, linear_cross_entropy},
    norm::{group_norm, layer_norm, rms_norm, rms_norm_gated},
    rope::{Positions, Rotary},
    softmax::{AttentionArgs, attention},
};
use flashlin_tensor::{DType, Device, Philox, Tensor, Var};

fn randn(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    Philox::new(seed, 0).randn(0.0, 1.0, dims, dtype, &Device::Cpu).expect("memory")
}

/// Times `f` on constants (forward) and on leaves with a backward of a given output gradient.
fn both(c: &mut Criterion, name: &str, t: [Throughput; 2], inputs: &[Tensor], f: impl Fn(&[Var]) -> Var) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(300));
    group.measurement_time(std::time::Duration::from_secs(1));
    let constants: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
    let dy = f(&constants).tensor().affine(0.5, 0.1).expect("float");
    let [forward, all] = t;
    group.throughput(forward);
    group.bench_function("forward", |b| b.iter(|| f(&constants)));
    group.throughput(all);
    group.bench_function("forward+backward", |b| {
        b.iter(|| {
            let leaves: Vec<Var> = inputs.iter().cloned().map(Var::leaf).collect();
            Var::backward_with(vec![(&f(&leaves), dy.clone())]).expect("gradients")
        })
    });
    group.finish();
}

/// Bytes of `reads_and_writes` arrays of the size of `t`, forward and in total.
fn bytes(t: &Tensor, forward: usize, all: usize) -> [Throughput; 2] {
    [forward, all].map(|n| Throughput::Bytes((n * t.numel() * t.dtype().size()) as u64))
}

fn pointwise(c: &mut Criterion) {
    for d in [DType::F32, DType::BF16] {
        let x = randn(1, &[4096, 768], d);
        let w = randn(2, &[768], d);
        both(c, &format!("rms_norm 4096x768 {d}"), bytes(&x, 2, 5), &[x, w], |v| {
            rms_norm(&v[0], Some(&v[1]), 1e-5).expect("norm")
        });
        let x = randn(1, &[1, 4096, 1024], d);
        let w = randn(2, &[1024, 4], d);
        both(c, &format!("short_conv 4096x1024 W=4 {d}"), bytes(&x, 2, 5), &[x, w], |v| {
            short_conv(&ConvArgs::new(&v[0], &v[1])).expect("conv").y
        });
        let x = randn(1, &[4096, 2048], d);
        let u = randn(2, &[4096, 2048], d);
        both(c, &format!("swiglu 4096x2048 {d}"), bytes(&x, 3, 8), &[x, u], |v| {
            swiglu(&v[0], &v[1]).expect("swiglu")
        });
    }
}

/// The other norms and the activations, in f32.
fn more_pointwise(c: &mut Criterion) {
    let (x, g) = (randn(1, &[4096, 768], DType::F32), randn(2, &[4096, 768], DType::F32));
    let w = randn(3, &[768], DType::F32);
    let two = [x.clone(), w.clone()];
    both(c, "layer_norm 4096x768 f32", bytes(&x, 2, 5), &two, |v| {
        layer_norm(&v[0], Some(&v[1]), None, 1e-5).expect("norm")
    });
    both(c, "group_norm of 6 4096x768 f32", bytes(&x, 2, 5), &two, |v| {
        group_norm(&v[0], Some(&v[1]), None, 6, true, 1e-5).expect("norm")
    });
    both(c, "rms_norm_gated 4096x768 f32", bytes(&x, 3, 8), &[x.clone(), g, w], |v| {
        rms_norm_gated(&v[0], &v[1], Some(&v[2]), Activation::Silu, 1e-5).expect("norm")
    });
    for act in ["silu", "gelu", "gelu_erf", "logsigmoid"] {
        let kind: Activation = act.parse().expect("a known name");
        both(c, &format!("{act} 4096x768 f32"), bytes(&x, 2, 5), std::slice::from_ref(&x), |v| {
            activate(&v[0], kind).expect("activation")
        });
    }
    both(c, "softplus 4096x768 f32", bytes(&x, 2, 5), std::slice::from_ref(&x), |v| {
        softplus(&v[0], 1.0, 20.0).expect("softplus")
    });
}

fn gates_and_rope(c: &mut Criterion) {
    let x = randn(1, &[1, 4096, 6, 128], DType::F32);
    let params = [x.clone(), randn(2, &[6], DType::F32), randn(3, &[6 * 128], DType::F32)];
    both(c, "decay_gate (kda) 4096x6x128 f32", bytes(&x, 2, 5), &params, |v| {
        let (a_log, dt_bias) = (Some(&v[1]), Some(&v[2]));
        let formula = DecayGate::Softplus;
        decay_gate(DecayGateArgs { x: &v[0], per_channel: true, formula, a_log, dt_bias }).expect("gate")
    });
    both(c, "log_sigmoid_gate 4096x6x128 f32", bytes(&x, 2, 5), std::slice::from_ref(&x), |v| {
        log_sigmoid_gate(&v[0], 16.0, None).expect("gate")
    });
    let rotary = Rotary::new(128, 10_000.0).expect("even");
    both(c, "rope 4096x6x128 f32", bytes(&x, 2, 4), std::slice::from_ref(&x), |v| {
        rotary.apply(&v[0], &v[0].detach(), Positions::default()).expect("rope").0
    });
}

fn linear_ce(c: &mut Criterion) {
    let (n, h, v) = (512, 768, 32_000);
    let labels: Vec<i64> = (0..n as i64).map(|i| i * 997 % v as i64).collect();
    let labels = Tensor::from_vec(labels, &[n]).expect("labels");
    let logits = randn(3, &[n, v], DType::F32);
    both(c, "cross_entropy 512x32000 f32", bytes(&logits, 1, 3), std::slice::from_ref(&logits), |v| {
        cross_entropy(&v[0], &labels, &LossOptions::default()).expect("loss").loss
    });
    let flops = |k: usize| Throughput::Elements((2 * k * n * h * v) as u64);
    let t = [randn(1, &[n, h], DType::F32), randn(2, &[v, h], DType::F32)];
    both(c, "linear_cross_entropy 512x768->32000 f32", [flops(1), flops(3)], &t, |v| {
        linear_cross_entropy(&v[0], &v[1], None, &labels, &LossOptions::default()).expect("loss").loss
    });
}

fn softmax(c: &mut Criterion) {
    let (t, h, d) = (2048, 6, 128);
    let q = [1, 2, 3].map(|s| randn(s, &[1, t, h, d], DType::F32));
    // Half of the scores are hidden; two products forward, five backward.
    let flops = |k: usize| Throughput::Elements((k * 2 * t * t / 2 * h * d) as u64);
    both(c, "attention T=2048 H=6 D=128 f32", [flops(2), flops(7)], &q, |v| {
        attention(&AttentionArgs::new(&v[0], &v[1], &v[2])).expect("attention").o
    });
    let mut group = c.benchmark_group("attention decode, cache of 8192, H=6 D=128");
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(300));
    for dtype in [DType::F32, DType::BF16] {
        let q = Var::constant(randn(1, &[1, 1, h, d], dtype));
        let k = Var::constant(randn(2, &[1, 8192, h, d], dtype));
        group.throughput(Throughput::Bytes((2 * 8192 * h * d * dtype.size()) as u64));
        group.bench_function(dtype.to_string(), |b| {
            b.iter(|| attention(&AttentionArgs::new(&q, &k, &k)).expect("attention").o)
        });
    }
    group.finish();
}

criterion_group!(benches, pointwise, more_pointwise, gates_and_rope, linear_ce, softmax);
criterion_main!(benches);
