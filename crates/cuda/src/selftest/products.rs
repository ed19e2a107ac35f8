//! Dense products against f64.

use half::{bf16, f16};

use super::{expect, median_ms, numbers};
use crate::{Buffer, Capture, Epilogue, Gpu, MatmulArgs, MatmulSpec, Operand, Result, Scalar, bytes_of};

/// Values rounded to a type: their bytes, and what they are then.
fn rounded(scalar: Scalar, values: &[f64]) -> (Vec<u8>, Vec<f64>) {
    match scalar {
        Scalar::Bf16 => {
            let v: Vec<_> = values.iter().map(|x| bf16::from_f64(*x)).collect();
            (bytes_of(&v).to_vec(), v.iter().map(|x| x.to_f64()).collect())
        }
        Scalar::F16 => {
            let v: Vec<_> = values.iter().map(|x| f16::from_f64(*x)).collect();
            (bytes_of(&v).to_vec(), v.iter().map(|x| x.to_f64()).collect())
        }
        Scalar::F32 => {
            let v: Vec<_> = values.iter().map(|x| *x as f32).collect();
            (bytes_of(&v).to_vec(), v.iter().map(|x| f64::from(*x)).collect())
        }
        Scalar::F64 => (bytes_of(values).to_vec(), values.to_vec()),
    }
}

fn to_f64(scalar: Scalar, bytes: &[u8]) -> Vec<f64> {
    let halves =
        |f: fn(u16) -> f64| bytes.chunks_exact(2).map(|b| f(u16::from_le_bytes([b[0], b[1]]))).collect();
    match scalar {
        Scalar::Bf16 => halves(|x| bf16::from_bits(x).to_f64()),
        Scalar::F16 => halves(|x| f16::from_bits(x).to_f64()),
        Scalar::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Scalar::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
    }
}

/// Element (row, col) of matrix `batch`.
fn at(o: &Operand, batch: usize, row: usize, col: usize) -> usize {
    batch * o.batch_stride + if o.transposed { col * o.ld + row } else { row * o.ld + col }
}

fn extent(o: &Operand, batch: usize, rows: usize, cols: usize) -> usize {
    at(o, batch - 1, rows.max(1) - 1, cols.max(1) - 1) + 1
}

/// Largest relative L2 error of a product with f32 accumulation that is stored in `output`.
fn tolerance(spec: &MatmulSpec) -> f64 {
    match (spec.output, spec.tf32) {
        (Scalar::Bf16, _) => 3e-3,
        (Scalar::F16, _) => 4e-4,
        (Scalar::F32, true) => 1e-3,
        (Scalar::F32, false) => 1e-6,
        (Scalar::F64, _) => 1e-14,
    }
}

/// Runs one product and gives its relative error; what lies between C's rows must stay as it was.
fn error_of(gpu: Gpu, spec: &MatmulSpec, alpha: f64, beta: f64) -> Result<f64> {
    let (m, n, k) = (spec.m, spec.n, spec.k);
    let c = Operand { transposed: false, ld: spec.c_ld, batch_stride: spec.c_batch_stride };
    let (ab, a) = rounded(spec.input, &numbers(1, extent(&spec.a, spec.batch, m, k)));
    let (bb, b) = rounded(spec.input, &numbers(2, extent(&spec.b, spec.batch, k, n)));
    let (cb, old) = rounded(spec.output, &numbers(3, extent(&c, spec.batch, m, n)));
    let bias = rounded(spec.output, &numbers(4, n));
    let (ga, gb, gc, gbias) = (gpu.upload(&ab)?, gpu.upload(&bb)?, gpu.upload(&cb)?, gpu.upload(&bias.0)?);
    let mut args = MatmulArgs { alpha, beta, ..MatmulArgs::new(ga.address(), gb.address(), gc.address()) };
    if spec.epilogue == Epilogue::Bias {
        args = args.bias(gbias.address());
    }
    // SAFETY: the buffers have the extents of the spec and live until the read below.
    unsafe { gpu.matmul(spec, &args)? };
    let got = to_f64(spec.output, &gc.to_vec()?);
    let mut want = old.clone();
    for batch in 0..spec.batch {
        for i in 0..m {
            for j in 0..n {
                let sum: f64 =
                    (0..k).map(|x| a[at(&spec.a, batch, i, x)] * b[at(&spec.b, batch, x, j)]).sum();
                let c = &mut want[at(&c, batch, i, j)];
                *c = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *c };
                if spec.epilogue == Epilogue::Bias {
                    *c += bias.1[j];
                }
            }
        }
    }
    let square = |f: &mut dyn Iterator<Item = f64>| f.map(|x| x * x).sum::<f64>();
    let off = square(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    let norm = square(&mut want.iter().copied());
    let error = (off / norm).sqrt();
    Ok(if error.is_nan() { f64::INFINITY } else { error })
}

/// (input, output, tf32)
const TYPES: [(Scalar, Scalar, bool); 7] = [
    (Scalar::Bf16, Scalar::Bf16, false),
    (Scalar::Bf16, Scalar::F32, false),
    (Scalar::F16, Scalar::F16, false),
    (Scalar::F16, Scalar::F32, false),
    (Scalar::F32, Scalar::F32, false),
    (Scalar::F32, Scalar::F32, true),
    (Scalar::F64, Scalar::F64, false),
];

/// Every type with every transposition, single and batched (one B for all of a batch too), accumulating and not, dense and strided.
pub fn numerics(gpu: Gpu) -> Result<String> {
    let (m, n, k) = (70, 48, 130);
    let mut worst = Vec::new();
    let mut count = 0;
    for (input, output, tf32) in TYPES {
        let mut most: f64 = 0.0;
        for bits in 0..32u32 {
            let on = |bit: u32| bits & (1 << bit) != 0;
            let pad = if on(4) { 8 } else { 0 };
            let a = if on(0) { Operand::dense_transposed(m + pad) } else { Operand::dense(k + pad) };
            let b = if on(1) { Operand::dense_transposed(k + pad) } else { Operand::dense(n + pad) };
            let batch = if on(2) { 3 } else { 1 };
            let spec = MatmulSpec {
                batch,
                a: a.batched(if on(2) { extent(&a, 1, m, k) + pad } else { 0 }),
                // With rows padded, all of a batch share one B.
                b: b.batched(if on(2) && !on(4) { extent(&b, 1, k, n) } else { 0 }),
                c_ld: n + pad,
                c_batch_stride: (n + pad) * m,
                output,
                tf32,
                ..MatmulSpec::dense(m, n, k, input)
            };
            let (alpha, beta) = if on(3) { (0.5, 1.0) } else { (1.0, 0.0) };
            let error = error_of(gpu, &spec, alpha, beta)?;
            expect(error <= tolerance(&spec), || format!("{spec:?}: off by {error:.2e}"))?;
            most = most.max(error);
            count += 1;
        }
        let name = if tf32 { "tf32".into() } else { format!("{input}>{output}") };
        worst.push(format!("{name} {most:.1e}"));
    }
    Ok(format!("{count} products; {}", worst.join(", ")))
}

/// A bias is added to each row.
pub fn bias(gpu: Gpu) -> Result<String> {
    let mut said = Vec::new();
    for (input, output, tf32) in TYPES {
        if input == Scalar::F64 {
            continue;
        }
        let spec =
            MatmulSpec { output, tf32, epilogue: Epilogue::Bias, ..MatmulSpec::dense(33, 64, 96, input) };
        let error = error_of(gpu, &spec, 1.0, 0.0)?;
        expect(error <= tolerance(&spec), || format!("{spec:?}: off by {error:.2e}"))?;
        said.push(format!("{input}>{output} {error:.1e}"));
    }
    Ok(said.join(", "))
}

/// Sizes of 0 and 1, odd strides and unaligned addresses.
pub fn degenerate(gpu: Gpu) -> Result<String> {
    for (m, n, k) in [(1, 1, 1), (1, 300, 7), (257, 1, 33), (3, 5, 1), (17, 19, 23)] {
        for input in Scalar::ALL {
            let spec = MatmulSpec::dense(m, n, k, input);
            let error = error_of(gpu, &spec, 1.0, 0.0)?;
            expect(error <= tolerance(&spec), || format!("{m}x{n}x{k} {input}: off by {error:.2e}"))?;
        }
    }
    let c = gpu.upload(bytes_of(&[1f32; 12]))?;
    let run = |spec: MatmulSpec, beta: f64| {
        let args = MatmulArgs { beta, ..MatmulArgs::new(0, 0, c.address()) };
        // SAFETY: nothing is read, and C holds 3 x 4 floats.
        unsafe { gpu.matmul(&spec, &args) }
    };
    run(MatmulSpec::dense(0, 4, 5, Scalar::F32), 0.0)?;
    run(MatmulSpec::dense(3, 4, 0, Scalar::F32), 1.0)?;
    expect(to_f64(Scalar::F32, &c.to_vec()?) == [1.0; 12], || "an empty product wrote".into())?;
    run(MatmulSpec::dense(3, 4, 0, Scalar::F32), 0.0)?;
    expect(to_f64(Scalar::F32, &c.to_vec()?) == [0.0; 12], || "a sum over nothing is not zero".into())?;
    unaligned(gpu)
}

/// Operands that begin one element into their buffers.
fn unaligned(gpu: Gpu) -> Result<String> {
    let (m, n, k) = (40, 24, 56);
    for scalar in Scalar::ALL {
        let size = scalar.bytes();
        let (ab, a) = rounded(scalar, &numbers(5, m * k + 1));
        let (bb, b) = rounded(scalar, &numbers(6, k * n + 1));
        let (ga, gb, gc) = (gpu.upload(&ab)?, gpu.upload(&bb)?, gpu.zeros((m * n + 1) * size)?);
        let [pa, pb, pc] = [&ga, &gb, &gc].map(|g| g.address() + size as u64);
        // SAFETY: each buffer holds one element more than the product needs.
        unsafe { gpu.matmul(&MatmulSpec::dense(m, n, k, scalar), &MatmulArgs::new(pa, pb, pc))? };
        let got = to_f64(scalar, &gc.to_vec()?);
        for (i, j) in [(0, 0), (m - 1, n - 1), (7, 11)] {
            let want: f64 = (0..k).map(|x| a[1 + i * k + x] * b[1 + x * n + j]).sum();
            let g = got[1 + i * n + j];
            expect((g - want).abs() <= 2e-2 * want.abs().max(1.0), || {
                format!("{scalar} at ({i}, {j}): {g}, {want}")
            })?;
        }
        expect(got[0] == 0.0, || "the product wrote before C".into())?;
    }
    Ok("sizes 0 and 1, odd sizes, unaligned operands".into())
}

/// A product repeated gives the same bits; batch-invariant rows do not depend on how many there are.
pub fn same_bits(gpu: Gpu) -> Result<String> {
    let (n, k, most) = (768, 4096, 300);
    let a = gpu.upload(&rounded(Scalar::Bf16, &numbers(7, most * k)).0)?;
    let b = gpu.upload(&rounded(Scalar::Bf16, &numbers(8, k * n)).0)?;
    let run = |m: usize, batch_invariant: bool| -> Result<Vec<u8>> {
        let c = gpu.alloc(m * n * 2)?;
        let spec = MatmulSpec {
            batch_invariant,
            b: Operand::dense_transposed(k),
            ..MatmulSpec::dense(m, n, k, Scalar::Bf16)
        };
        // SAFETY: the buffers hold at least what the spec says.
        unsafe { gpu.matmul(&spec, &MatmulArgs::new(a.address(), b.address(), c.address()))? };
        c.to_vec()
    };
    for m in [1, 64, 300] {
        let first = run(m, false)?;
        for _ in 0..5 {
            expect(run(m, false)? == first, || format!("m = {m} differs between runs"))?;
        }
    }
    let all = run(most, true)?;
    let rows = [1, 2, 7, 16, 33, 64, 65, 128, 255];
    for m in rows {
        expect(run(m, true)? == all[..m * n * 2], || format!("rows differ between m = {m} and {most}"))?;
    }
    Ok(format!("m of {rows:?} against {most}"))
}

/// A product is recorded and replayed.
pub fn in_graph(gpu: Gpu) -> Result<String> {
    let spec = MatmulSpec::dense(64, 64, 64, Scalar::F32);
    let a = gpu.upload(bytes_of(&vec![1f32; 64 * 64]))?;
    let b = gpu.upload(bytes_of(&vec![2f32; 64 * 64]))?;
    let (graph, c) = gpu.capture(Capture::Arena, || -> Result<Buffer> {
        let c = gpu.alloc(4 * 64 * 64)?;
        // SAFETY: all three hold 64 x 64 floats and outlive the graph.
        unsafe { gpu.matmul(&spec, &MatmulArgs::new(a.address(), b.address(), c.address()))? };
        Ok(c)
    })?;
    for value in [1f32, 3.0] {
        a.write(0, bytes_of(&vec![value; 64 * 64]))?;
        graph.launch()?;
        let want = f64::from(value) * 128.0;
        expect(to_f64(Scalar::F32, &c.to_vec()?).iter().all(|x| *x == want), || format!("not {want}"))?;
    }
    Ok(format!("{} nodes", graph.nodes()))
}

/// The ceiling of everything that multiplies: 8192 cubed (f32 and f64: 4096), random data.
pub fn speed(gpu: Gpu) -> Result<String> {
    let mut said = Vec::new();
    for (input, output, tf32, size) in [
        (Scalar::Bf16, Scalar::Bf16, false, 8192usize),
        (Scalar::Bf16, Scalar::F32, false, 8192),
        (Scalar::F16, Scalar::F16, false, 8192),
        (Scalar::F32, Scalar::F32, true, 8192),
        (Scalar::F32, Scalar::F32, false, 4096),
        (Scalar::F64, Scalar::F64, false, 4096),
    ] {
        let name = if tf32 { "tf32".into() } else { format!("{input}>{output}") };
        said.push(format!("{name} {:.0}", product_flops(gpu, [input, output], tf32, size)? / 1e12));
    }
    Ok(format!("TFLOP/s: {}", said.join(", ")))
}

/// Operations a second of a product of two square matrices: the ceiling of what arithmetic bounds.
///
/// # Errors
/// Memory, types that do not go together, no library of products.
pub fn product_flops(gpu: Gpu, [input, output]: [Scalar; 2], tf32: bool, size: usize) -> Result<f64> {
    // One row of random numbers, repeated at the device's speed.
    let row = gpu.upload(&rounded(input, &numbers(9, size * 61)).0)?;
    let bytes = size * size * input.bytes();
    let (a, b) = (gpu.alloc(bytes)?, gpu.alloc(bytes)?);
    for target in [&a, &b] {
        for offset in (0..bytes).step_by(row.len()) {
            target.copy_from(offset, &row, 0, row.len().min(bytes - offset))?;
        }
    }
    let c = gpu.alloc(size * size * output.bytes())?;
    let spec = MatmulSpec {
        output,
        tf32,
        b: Operand::dense_transposed(size),
        ..MatmulSpec::dense(size, size, size, input)
    };
    let args = MatmulArgs::new(a.address(), b.address(), c.address());
    // SAFETY: the buffers hold size x size elements.
    let ms = median_ms(gpu, 10, || unsafe { gpu.matmul(&spec, &args) })?;
    Ok(spec.flops() / ms * 1e3)
}
