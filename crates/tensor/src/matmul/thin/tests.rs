//! Every instruction set of this machine against f64, and what decode promises: rows and threads do not matter.

use half::{bf16, f16};

use super::*;
use crate::Philox;

fn numbers<T: Element>(stream: u64, n: usize) -> Vec<T> {
    let rng = Philox::new(7, stream);
    (0..n as u64).map(|i| T::from_f64(rng.normal(i))).collect()
}

fn exact<X: Element, W: Element>(x: &[X], w: &WeightRows<W>) -> Vec<f64> {
    let dot = |x: &[X], w: &[W]| x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum::<f64>();
    x.chunks(w.k).flat_map(|x| (0..w.rows).map(|o| dot(x, w.row(o))).collect::<Vec<_>>()).collect()
}

fn check<X: Stored, W: Stored>(rows: usize, n: usize, k: usize, gap: usize) {
    let (x, data) = (numbers::<X>(1, rows * k), numbers::<W>(2, n * (k + gap)));
    let w = WeightRows { data: &data, rows: n, k, stride: k + gap };
    let want = exact(&x, &w);
    let norm = want.iter().map(|y| y * y).sum::<f64>().sqrt();
    for isa in Isa::available() {
        let mut got = vec![f32::NAN; rows * n];
        products_on(isa, &x, &mut [Part { weight: w, out: &mut got }]);
        let err = got.iter().zip(&want).map(|(g, y)| (*g as f64 - y).powi(2)).sum::<f64>().sqrt();
        let what = (isa, X::DTYPE, W::DTYPE, rows, n, k);
        assert!(err <= 3e-7 * (k as f64).sqrt() * norm.max(1e-30), "{what:?}: {err} {norm}");
    }
}

#[test]
fn odd_shapes_match_f64() {
    let rng = Philox::new(3, 0);
    for i in 0..60u64 {
        let rows = 1 + rng.below(4 * i, 16) as usize;
        let (n, k) = (1 + rng.below(4 * i + 1, 70) as usize, 1 + rng.below(4 * i + 2, 150) as usize);
        let gap = rng.below(4 * i + 3, 5) as usize;
        check::<bf16, bf16>(rows, n, k, gap);
        check::<f32, bf16>(rows, n, k, gap);
        check::<f16, f16>(rows, n, k, gap);
        check::<f32, f16>(rows, n, k, gap);
        check::<f32, f32>(rows, n, k, gap);
    }
    // Past the serial limit, past the portable path's pieces, and rows a cache way apart.
    check::<bf16, bf16>(3, 301, 768, 0);
    check::<f32, f32>(16, 100, 2048, 0);
    check::<f16, f16>(5, 33, 2051, 0);
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_or_on_threads() {
    fn run<T: Stored>() {
        let (n, k) = (333, 517);
        let (x, data) = (numbers::<T>(1, 16 * k), numbers::<T>(2, n * k));
        let w = WeightRows { data: &data, rows: n, k, stride: k };
        for isa in Isa::available() {
            let product = |x: &[T]| {
                let mut out = vec![f32::NAN; x.len() / k * n];
                products_on(isa, x, &mut [Part { weight: w, out: &mut out }]);
                out
            };
            let whole = product(&x);
            for rows in 1..16 {
                assert_eq!(product(&x[..rows * k]), whole[..rows * n], "{isa:?} {rows}");
                assert_eq!(product(&x[rows * k..]), whole[rows * n..], "{isa:?} {rows}");
            }
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| product(&x)), whole);
            }
        }
    }
    run::<bf16>();
    run::<f16>();
    run::<f32>();
}

#[test]
fn nan_and_infinity_come_through_and_stay_in_their_row() {
    fn run<T: Stored>() {
        for isa in Isa::available() {
            let k = 37;
            let mut data = vec![T::from_f64(1.0); 9 * k];
            data[3 * k + 36] = T::from_f64(f64::NAN);
            data[5 * k] = T::from_f64(f64::INFINITY);
            let w = WeightRows { data: &data, rows: 9, k, stride: k };
            let mut out = vec![0f32; 2 * 9];
            products_on(isa, &vec![T::from_f64(1.0); 2 * k], &mut [Part { weight: w, out: &mut out }]);
            for (i, y) in out.iter().enumerate() {
                match i % 9 {
                    3 => assert!(y.is_nan()),
                    5 => assert_eq!(*y, f32::INFINITY),
                    _ => assert_eq!(*y, 37.0),
                }
            }
        }
    }
    run::<bf16>();
    run::<f16>();
    run::<f32>();
}
