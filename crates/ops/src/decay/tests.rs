use flashlin_tensor::{DType, Device, Philox, Tensor, Var};

use super::*;
use crate::conformance::{Report, relative_l2, tolerance};
use crate::{Mode, PackedSeqs, RecurrentState, StateLayout};

crate::conformance!(suite, super::Conformance);

fn randn(stream: u64, dims: &[usize]) -> Var {
    Var::leaf(Philox::new(3, stream).randn(0.0, 1.0, dims, DType::F32, &Device::Cpu).unwrap())
}

/// A second definition, written from the papers' parallel form: `O = (Q K^T o D) V` with `D` explicit.
#[test]
fn agrees_with_the_parallel_form() {
    let (t, k, v) = (70, 8, 6);
    let (q, key, val) = (randn(1, &[1, t, 1, k]), randn(2, &[1, t, 1, k]), randn(3, &[1, t, 1, v]));
    let g = Var::leaf(Philox::new(3, 4).rand(-2.0, 0.0, &[1, t, 1], DType::F32, &Device::Cpu).unwrap());
    let args = DecayArgs { g: Some(&g), mode: Mode::Chunk, ..DecayArgs::new(&q, &key, &val) };
    let got = simple_gla(args).unwrap().o.tensor().to_f64_vec().unwrap();
    let (q, key, val, g) = [&q, &key, &val, &g].map(|x| x.tensor().to_f64_vec().unwrap()).into();
    let mut want = vec![0.0; t * v];
    for i in 0..t {
        for j in 0..=i {
            let decay = g[j + 1..=i].iter().sum::<f64>().exp();
            let score: f64 = (0..k).map(|c| q[i * k + c] * key[j * k + c]).sum();
            for c in 0..v {
                want[i * v + c] += score * decay * val[j * v + c] / (k as f64).sqrt();
            }
        }
    }
    assert!(relative_l2(&got, &want) < tolerance(DType::F32));
}

#[test]
fn step_equals_the_recurrent_mode_in_both_layouts() {
    let (b, h, hv, k, v) = (3, 2, 4, 5, 7);
    let (q, key, val) = (randn(1, &[b, 1, h, k]), randn(2, &[b, 1, h, k]), randn(3, &[b, 1, hv, v]));
    let gate = |s, dims: &[usize]| Philox::new(4, s).rand(-2.0, 0.0, dims, DType::F32, &Device::Cpu).unwrap();
    let (gk, gv) = (Var::leaf(gate(5, &[b, 1, hv, k])), Var::leaf(gate(6, &[b, 1, hv, v])));
    let (g, gamma) = (Var::leaf(gate(7, &[b, 1, hv])), Var::leaf(gate(8, &[hv])));
    let u = randn(9, &[h, k]);
    for layout in [StateLayout::KV, StateLayout::VK] {
        for bonus in [None, Some(&u)] {
            let state = randn(10, &layout.dims(b, hv, k, v));
            let h0 = RecurrentState { value: state.clone(), layout };
            let out = decay_attention(DecayArgs {
                g: Some(&g),
                g_gamma: Some(&gamma),
                gk: Some(&gk),
                gv: Some(&gv),
                bonus,
                initial_state: Some(&h0),
                output_final_state: true,
                layout,
                ..DecayArgs::new(&q, &key, &val)
            })
            .unwrap();
            // Row r lives in slot `slots[r]` of a pool of 5.
            let slots = [4, 0, 2];
            let row = hv * k * v;
            let mut pool = vec![f32::NAN; 5 * row];
            let first = state.tensor().to_vec::<f32>().unwrap();
            for (r, &s) in slots.iter().enumerate() {
                pool[s * row..(s + 1) * row].copy_from_slice(&first[r * row..(r + 1) * row]);
            }
            let data = |x: &Var| x.tensor().to_vec::<f32>().unwrap();
            let u_row = bonus.map(data);
            let step = cpu::Step {
                slots: &slots,
                heads: h,
                value_heads: hv,
                key_dim: k,
                value_dim: v,
                scale: (k as f32).powf(-0.5),
                q: &data(&q),
                k: &data(&key),
                v: &data(&val),
                g: Some(&data(&g)),
                g_gamma: Some(&data(&gamma)),
                gk: Some(&data(&gk)),
                gv: Some(&data(&gv)),
                u: u_row.as_deref(),
                transposed: layout == StateLayout::VK,
            };
            let mut o = vec![f32::NAN; b * hv * v];
            assert!(cpu::step(&step, &mut pool, &mut o));
            let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
            let mut report = Report::default();
            let limit = tolerance(DType::F32);
            report.compare("step", "o", &wide(&o), &out.o.tensor().to_f64_vec().unwrap(), limit);
            let last = out.final_state.unwrap().value.tensor().to_f64_vec().unwrap();
            let stepped: Vec<f64> = slots.iter().flat_map(|s| wide(&pool[s * row..(s + 1) * row])).collect();
            report.compare("step", "state", &stepped, &last, limit);
            report.assert();
            assert!(pool[row..2 * row].iter().all(|x| x.is_nan()), "an unnamed slot was touched");
            // Twice the same slot, or one that does not exist, is refused before anything is written.
            assert!(!cpu::step(&cpu::Step { slots: &[1, 1, 2], ..step }, &mut pool, &mut o));
            assert!(!cpu::step(&cpu::Step { slots: &[1, 5, 2], ..step }, &mut pool, &mut o));
        }
    }
}

#[test]
fn named_operators_fix_their_gates() {
    let (q, k, v) = (randn(1, &[2, 9, 4, 8]), randn(2, &[2, 9, 4, 8]), randn(3, &[2, 9, 4, 8]));
    let plain = || DecayArgs::new(&q, &k, &v);
    let gamma: Vec<f64> = (0..4).map(|h| (1.0 - 2f64.powi(-5 - h)).ln()).collect();
    for (a, b) in retention_gamma(4).iter().zip(&gamma) {
        assert!((a - b).abs() < 1e-15);
    }
    assert_eq!(lightning_gamma(4, 1, 4).unwrap(), [-0.0, -1.5, -3.0, -4.5]);
    assert!(lightning_gamma(4, 4, 4).unwrap_err().to_string().contains("layer"));
    let by_hand = Var::constant(Tensor::from_vec(gamma.iter().map(|&g| g as f32).collect(), &[4]).unwrap());
    let want = decay_attention(DecayArgs { g_gamma: Some(&by_hand), ..plain() }).unwrap();
    let got = retention(plain()).unwrap();
    assert_eq!(got.o.tensor().to_vec::<f32>().unwrap(), want.o.tensor().to_vec::<f32>().unwrap());
    assert!(lightning_attn(plain(), 0, 2).is_ok());
    for (err, word) in [
        (linear_attn(DecayArgs { g_gamma: Some(&by_hand), ..plain() }), "gates"),
        (gla(plain()), "gk"),
        (rwkv6(DecayArgs { gk: Some(&q), ..plain() }), "bonus"),
        (ssd(plain()), "`g`"),
        (simple_gla(DecayArgs { gk: Some(&q), ..plain() }), "channel"),
    ] {
        let message = err.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
    // ssd's scale is 1, not K^-0.5.
    let g = randn(4, &[2, 9, 4]);
    let a = ssd(DecayArgs { g: Some(&g), ..plain() }).unwrap().o.tensor().to_vec::<f32>().unwrap();
    let b = simple_gla(DecayArgs { g: Some(&g), scale: Some(1.0), ..plain() }).unwrap();
    assert_eq!(a, b.o.tensor().to_vec::<f32>().unwrap());
}

#[test]
fn wrong_arguments_are_named() {
    let (q, k, v) = (randn(1, &[2, 9, 2, 8]), randn(2, &[2, 9, 2, 8]), randn(3, &[2, 9, 4, 6]));
    let base = || DecayArgs::new(&q, &k, &v);
    let odd = randn(4, &[2, 9, 3, 6]);
    let short = randn(4, &[2, 8, 2, 8]);
    let half = Var::constant(k.tensor().to_dtype(DType::BF16).unwrap());
    let wide = Var::constant(Tensor::zeros(&[2, 9, 4], DType::F64, &Device::Cpu).unwrap());
    let rank = randn(4, &[2, 9, 16]);
    let seqs = PackedSeqs::from_lens(&[4, 5]);
    let state = |dims: &[usize], layout| RecurrentState { value: randn(5, dims), layout };
    let turned = state(&[2, 4, 6, 8], StateLayout::VK);
    let few = state(&[1, 4, 8, 6], StateLayout::KV);
    for (args, words) in [
        (DecayArgs { q: &rank, ..base() }, ["`q`", "[2, 9, 16]"]),
        (DecayArgs { k: &short, ..base() }, ["`k`", "[2, 8, 2, 8]"]),
        (DecayArgs { v: &odd, ..base() }, ["`v`", "multiple of H = 2"]),
        (DecayArgs { k: &half, ..base() }, ["`k`", "bf16"]),
        (DecayArgs { g: Some(&wide), ..base() }, ["`g`", "f64"]),
        (DecayArgs { g: Some(&q), ..base() }, ["`g`", "[B, T, HV]"]),
        (DecayArgs { gk: Some(&v), ..base() }, ["`gk`", "[2, 9, 4, 8]"]),
        (DecayArgs { gv: Some(&q), ..base() }, ["`gv`", "shape of v"]),
        (DecayArgs { bonus: Some(&q), ..base() }, ["`bonus`", "[H, K]"]),
        (DecayArgs { chunk_size: 48, ..base() }, ["`chunk_size`", "48"]),
        (DecayArgs { scale: Some(f64::NAN), ..base() }, ["`scale`", "finite"]),
        (DecayArgs { seqs: Some(&seqs), ..base() }, ["`cu_seqlens`", "batch of 1"]),
        (DecayArgs { initial_state: Some(&turned), ..base() }, ["`initial_state`", "layout vk"]),
        (DecayArgs { initial_state: Some(&few), ..base() }, ["`initial_state`", "[2, 4, 8, 6]"]),
    ] {
        let message = decay_attention(args).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message} should name {words:?}");
    }
}
