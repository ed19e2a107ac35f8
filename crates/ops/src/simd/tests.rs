use super::*;

fn fill(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn products_match_a_plain_loop() {
    let arch = Arch::new();
    for (m, n, k) in [(1, 16, 1), (5, 32, 7), (64, 64, 64), (17, 48, 33), (3, 80, 16), (31, 128, 31)] {
        let lda = m.max(k) + 3;
        let a = fill(lda * lda, 1);
        let b = fill(k * n, 2);
        for tn in [false, true] {
            for store in [Store::Set, Store::Add] {
                for extent in [Extent::Full, Extent::LowerInner, Extent::UpperInner, Extent::LowerOut] {
                    let mut a = a.clone();
                    let at = |i: usize, l: usize| if tn { l * lda + i } else { i * lda + l };
                    for i in 0..m {
                        for l in 0..k {
                            let zero = (extent == Extent::LowerInner && l > i)
                                || (extent == Extent::UpperInner && l < i);
                            if zero {
                                a[at(i, l)] = 0.0;
                            }
                        }
                    }
                    let mut c = fill(m * n, 3);
                    let before = c.clone();
                    let mm = if tn { mm_tn::<f32> } else { mm_nn::<f32> };
                    mm(arch, (m, n, k), Mat::new(&a, lda), Mat::new(&b, n), (&mut c, n), store, extent);
                    for i in 0..m {
                        for j in 0..n {
                            if extent == Extent::LowerOut && j > i {
                                continue;
                            }
                            let mut want: f64 =
                                (0..k).map(|l| a[at(i, l)] as f64 * b[l * n + j] as f64).sum();
                            if store == Store::Add {
                                want += before[i * n + j] as f64;
                            }
                            assert!(
                                (c[i * n + j] as f64 - want).abs() < 1e-5,
                                "{m}x{n}x{k} tn {tn} at {i},{j}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn transpose_handles_any_size() {
    for (r, c) in [(1, 1), (16, 16), (64, 64), (17, 33), (5, 40)] {
        let src = fill(r * c, 4);
        let mut dst = vec![0.0; r * c];
        transpose(Arch::new(), &src, c, r, c, &mut dst, r);
        for i in 0..r {
            for j in 0..c {
                assert_eq!(dst[j * r + i], src[i * c + j]);
            }
        }
    }
}

#[test]
fn scratch_is_zero_and_aligned_also_when_it_comes_back() {
    for round in 0..3 {
        let mut many: Vec<Buf<f32>> = [1000, 16, 1000, 0, 5].map(Buf::zeros).into();
        for b in &mut many {
            assert!(b.iter().all(|&x| x == 0.0), "round {round}");
            assert!(b.as_ptr().addr().is_multiple_of(64));
            b.fill(f32::NAN);
        }
        let copy = many[0].clone();
        drop(many);
        assert!(copy.iter().all(|x| x.is_nan()));
        assert!(Buf::<f64>::zeros(500).iter().all(|&x| x == 0.0));
    }
    // More than a thread keeps.
    drop((0..40).map(|_| Buf::<f32>::zeros(1 << 18)).collect::<Vec<_>>());
    assert!(Buf::<f32>::zeros(1 << 18).iter().all(|&x| x == 0.0));
}
