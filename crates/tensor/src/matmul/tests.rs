//! Products in every dtype, layout and path against f64.

use super::*;
use crate::Philox;

fn naive(a: &Tensor, b: &Tensor) -> Vec<f64> {
    let (m, k, n) = (a.dim(0), a.dim(1), b.dim(1));
    let (x, y) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
    (0..m * n).map(|i| (0..k).map(|l| x[i / n * k + l] * y[l * n + i % n]).sum()).collect()
}

fn close(a: &[f64], b: &[f64], tol: f64) {
    let err: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = b.iter().map(|y| y * y).sum::<f64>().sqrt();
    assert!(err <= tol * norm.max(1e-30), "{err} {norm}");
}

#[test]
fn products_in_every_float_type_and_layout() {
    for (d, tol) in [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 6e-3), (DType::F16, 1e-3)] {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (64, 33, 2), (1, 64, 65), (17, 1, 9)] {
            let a = Philox::new(1, 0).randn(0.0, 1.0, &[m, k], d, &Device::Cpu).unwrap();
            let b = Philox::new(2, 0).randn(0.0, 1.0, &[n, k], d, &Device::Cpu).unwrap();
            let bt = b.transpose(0, 1).unwrap();
            close(&a.matmul(&bt).unwrap().to_f64_vec().unwrap(), &naive(&a, &bt), tol);
            close(&a.linear(&b).unwrap().to_f64_vec().unwrap(), &naive(&a, &bt), tol);
        }
    }
}

#[test]
fn batches_broadcast() {
    let a = Philox::new(1, 0).randn(0.0, 1.0, &[3, 2, 4, 5], DType::F64, &Device::Cpu).unwrap();
    let b = Philox::new(2, 0).randn(0.0, 1.0, &[2, 5, 6], DType::F64, &Device::Cpu).unwrap();
    let c = a.matmul(&b).unwrap();
    assert_eq!(c.dims(), [3, 2, 4, 6]);
    let one = c.select(0, 2).unwrap().select(0, 1).unwrap();
    let (x, y) = (a.select(0, 2).unwrap().select(0, 1).unwrap(), b.select(0, 1).unwrap());
    close(&one.to_f64_vec().unwrap(), &naive(&x, &y), 1e-14);
}

#[test]
fn empty_and_wrong_shapes() {
    let z = |d: &[usize]| Tensor::zeros(d, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(z(&[2, 0]).matmul(&z(&[0, 3])).unwrap().to_f64_vec().unwrap(), [0.0; 6]);
    assert_eq!(z(&[0, 4]).matmul(&z(&[4, 3])).unwrap().dims(), [0, 3]);
    assert!(z(&[2, 3]).matmul(&z(&[2, 3])).is_err());
    assert!(z(&[3]).matmul(&z(&[3, 3])).is_err());
    assert!(z(&[2, 3]).linear(&z(&[4, 2])).is_err());
}

#[test]
fn the_bits_do_not_depend_on_threads() {
    let a = Philox::new(1, 0).randn(0.0, 1.0, &[200, 700], DType::F32, &Device::Cpu).unwrap();
    let b = Philox::new(2, 0).randn(0.0, 1.0, &[700, 300], DType::F32, &Device::Cpu).unwrap();
    let with =
        |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| a.matmul(&b).unwrap());
    assert_eq!(with(1).to_vec::<f32>().unwrap(), with(2).to_vec::<f32>().unwrap());
    assert_eq!(with(1).to_vec::<f32>().unwrap(), with(3).to_vec::<f32>().unwrap());
}

fn random(stream: u64, dims: &[usize], dtype: DType) -> Tensor {
    Philox::new(5, stream).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
}

/// [rows, cols] in one of four layouts: row-major, transposed, a slice of something wider, every second column.
fn laid_out(kind: usize, stream: u64, rows: usize, cols: usize, dtype: DType) -> Tensor {
    match kind {
        0 => random(stream, &[rows, cols], dtype),
        1 => random(stream, &[cols, rows], dtype).transpose(0, 1).unwrap(),
        2 => random(stream, &[rows, cols + 3], dtype).narrow(1, 2, cols).unwrap(),
        _ => random(stream, &[rows, cols, 2], dtype).select(2, 1).unwrap(),
    }
}

#[test]
fn odd_sizes_and_strides_in_every_combination() {
    let rng = Philox::new(11, 0);
    let tol = |d: DType, out: DType| match (d, out) {
        (_, DType::BF16) => 3e-3,
        (_, DType::F16) => 4e-4,
        (DType::F64, _) => 1e-14,
        _ => 1e-6,
    };
    for i in 0..120u64 {
        let size = |j: u64| 1 + rng.below(8 * i + j, 70) as usize;
        let (m, k, n) = (size(0), size(1), size(2));
        let (ka, kb) = (rng.below(8 * i + 3, 4) as usize, rng.below(8 * i + 4, 4) as usize);
        for (da, db, out) in [
            (DType::F64, DType::F64, DType::F64),
            (DType::F32, DType::F32, DType::F32),
            (DType::BF16, DType::BF16, DType::BF16),
            (DType::BF16, DType::BF16, DType::F32),
            (DType::F16, DType::F16, DType::F16),
            (DType::F16, DType::F32, DType::F32),
            (DType::F32, DType::BF16, DType::F32),
        ] {
            let (a, b) = (laid_out(ka, 2 * i, m, k, da), laid_out(kb, 2 * i + 1, k, n, db));
            let y = a.matmul_to(&b, out).unwrap();
            assert_eq!((y.dims(), y.dtype()), (&[m, n][..], out));
            close(&y.to_f64_vec().unwrap(), &naive(&a, &b), tol(da, out));
        }
    }
}

#[test]
fn sizes_past_every_block() {
    // More than one block of k, of rows and of columns in each path; tails everywhere.
    for (m, k, n) in [(131, 2051, 400), (300, 1030, 390), (17, 3000, 49)] {
        for d in [DType::BF16, DType::F16] {
            let (a, b) = (random(1, &[m, k], d), random(2, &[k, n], d));
            let want = a.to_dtype(DType::F64).unwrap().matmul(&b.to_dtype(DType::F64).unwrap()).unwrap();
            let want = want.to_f64_vec().unwrap();
            close(&a.matmul_to(&b, DType::F32).unwrap().to_f64_vec().unwrap(), &want, 1e-6);
            close(&a.matmul(&b).unwrap().to_f64_vec().unwrap(), &want, 3e-3);
        }
    }
}

#[test]
fn both_ways_to_multiply_halves_agree() {
    let (a, b) = (random(1, &[77, 1100], DType::BF16), random(2, &[1100, 290], DType::BF16));
    let mut out = Tensor::zeros(&[77, 290], DType::F32, &Device::Cpu).unwrap();
    batched(&a, &b, &mut out, panels::gemm::<half::bf16, half::bf16, f32>).unwrap();
    let y = a.matmul_to(&b, DType::F32).unwrap();
    close(&out.to_f64_vec().unwrap(), &y.to_f64_vec().unwrap(), 1e-6);
}

#[test]
fn half_precision_bits_do_not_depend_on_threads() {
    for d in [DType::BF16, DType::F16] {
        let (a, b) = (random(1, &[200, 1500], d), random(2, &[1500, 500], d));
        let with = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| a.matmul_to(&b, DType::F32).unwrap().to_vec::<f32>().unwrap())
        };
        let one = with(1);
        assert!(one == with(2) && one == with(3));
        // Nor does a row depend on the others, nor one matrix on being in a batch.
        let rows = a.narrow(0, 50, 100).unwrap().matmul_to(&b, DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert!(rows == one[50 * 500..150 * 500] || d == DType::F16);
        let batch = a.unsqueeze(0).unwrap().expand(&[3, 200, 1500]).unwrap();
        let b = b.unsqueeze(0).unwrap().expand(&[3, 1500, 500]).unwrap();
        let all = batch.matmul_to(&b, DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert!(all.chunks(one.len()).all(|c| c == one));
    }
}

#[test]
fn nan_and_infinity_reach_their_row_and_column_only() {
    for d in [DType::F32, DType::BF16, DType::F16] {
        let mut a = vec![1f32; 40 * 33];
        (a[3 * 33 + 32], a[7 * 33]) = (f32::NAN, f32::INFINITY);
        let a = Tensor::from_vec(a, &[40, 33]).unwrap().to_dtype(d).unwrap();
        let b = Tensor::ones(&[33, 21], d, &Device::Cpu).unwrap();
        for (i, y) in a.matmul(&b).unwrap().to_f64_vec().unwrap().into_iter().enumerate() {
            match i / 21 {
                3 => assert!(y.is_nan()),
                7 => assert_eq!(y, f64::INFINITY),
                _ => assert_eq!(y, 33.0),
            }
        }
    }
}

#[test]
fn outputs_are_written_whole() {
    crate::poison_outputs(true);
    for d in [DType::F32, DType::BF16, DType::F16] {
        for (m, k, n) in [(5, 40, 300), (37, 40, 301), (90, 1100, 70)] {
            let (a, w) = (random(1, &[m, k], d), random(2, &[n, k], d));
            assert!(a.linear(&w).unwrap().to_f64_vec().unwrap().iter().all(|y| y.is_finite()));
        }
    }
}

#[test]
fn dtypes_that_do_not_multiply_are_errors() {
    let z = |d| Tensor::zeros(&[4, 4], d, &Device::Cpu).unwrap();
    assert!(z(DType::F32).matmul(&z(DType::BF16)).is_err());
    assert!(z(DType::BF16).matmul_to(&z(DType::F16), DType::F32).is_err());
    assert!(z(DType::F32).matmul_to(&z(DType::F32), DType::BF16).is_err());
    assert!(z(DType::F64).matmul_to(&z(DType::F32), DType::F32).is_err());
    assert!(z(DType::I64).matmul(&z(DType::I64)).is_err());
    assert!(z(DType::F32).linear(&z(DType::BF16)).is_err());
}

#[test]
fn slices_accumulate_in_f32_with_gaps_between_rows() {
    fn run<T: Element>() {
        let (m, k, n, ld) = (33, 1100, 270, 275);
        let (a, b) = (random(1, &[m, k], T::DTYPE), random(2, &[n, k], T::DTYPE));
        let (sa, sb) = (a.as_slice::<T>().unwrap(), b.as_slice::<T>().unwrap());
        let a_mat = Matrix { data: sa, rows: m, cols: k, row_stride: k, col_stride: 1 };
        let b_mat = Matrix { data: sb, rows: k, cols: n, row_stride: 1, col_stride: k };
        let mut out = vec![7f32; m * ld];
        gemm_f32_into(&mut out, ld, false, a_mat, b_mat, true).unwrap();
        gemm_f32_into(&mut out, ld, true, a_mat, b_mat, false).unwrap();
        let twice: Vec<f64> =
            out.chunks(ld).flat_map(|row| row[..n].iter().map(|&y| y as f64 / 2.0)).collect();
        close(&twice, &naive(&a, &b.transpose(0, 1).unwrap()), 1e-6);
        assert!(out.chunks(ld).all(|row| row[n..] == [7.0; 5]));
    }
    run::<f32>();
    run::<half::bf16>();
    run::<half::f16>();
    let i = Matrix { data: &[1i64], rows: 1, cols: 1, row_stride: 1, col_stride: 1 };
    assert!(gemm_f32_into(&mut [0.0], 1, false, i, i, false).is_err());
}

#[test]
fn linear_many_is_linear_of_each() {
    let normal = |stream, dims: &[usize], dtype| {
        Philox::new(5, stream).randn(0.0, 1.0, dims, dtype, &Device::Cpu).unwrap()
    };
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        // Few rows and many; widths on both sides of what one thread reads alone; a view of a larger weight.
        for (rows, k) in [(1, 70), (3, 768), (16, 40), (17, 40)] {
            let x = normal(0, &[1, rows, k], dtype);
            let wide = normal(1, &[90, k + 8], dtype).narrow(1, 3, k).unwrap();
            let ws = [wide, normal(2, &[1, k], dtype), normal(3, &[333, k], dtype)];
            let got = x.linear_many(&ws.each_ref()).unwrap();
            for (y, w) in got.iter().zip(&ws) {
                let want = x.linear(w).unwrap();
                assert_eq!(y.dims(), want.dims());
                assert_eq!(y.to_f64_vec().unwrap(), want.to_f64_vec().unwrap(), "{dtype} {rows} {k}");
            }
        }
    }
    let z = |d: &[usize]| Tensor::zeros(d, DType::F32, &Device::Cpu).unwrap();
    assert!(z(&[2, 3]).linear_many(&[&z(&[4, 3]), &z(&[4, 2])]).is_err());
    assert_eq!(z(&[0, 3]).linear_many(&[&z(&[4, 3]), &z(&[5, 3])]).unwrap()[1].dims(), [0, 5]);
    assert!(z(&[2, 3]).linear_many(&[]).unwrap().is_empty());
}

#[test]
fn rows_alike_gives_a_row_the_same_bits_among_any_number() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let (x, w) = (random(1, &[70, 93], dtype), random(2, &[41, 93], dtype));
        let bits = |t: &Tensor| t.to_f64_vec().unwrap();
        let alone = bits(&x.narrow(0, 5, 1).unwrap().linear(&w).unwrap());
        let whole = rows_alike(|| x.linear(&w).unwrap());
        assert_eq!(bits(&whole.narrow(0, 5, 1).unwrap()), alone);
        let many = rows_alike(|| x.linear_many(&[&w, &w]).unwrap());
        assert_eq!(bits(&many[1]), bits(&whole));
    }
}
