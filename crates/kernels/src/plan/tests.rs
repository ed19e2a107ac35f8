//! Plans against a bundle of names, and against the bundles of this build.

use super::*;
use crate::{Arch, BundleWriter, Place, embedded, kernel_name};

/// (name, dtype, generics)
type Named<'a> = (&'a str, &'a str, Vec<(&'a str, i64)>);

/// A bundle that holds these kernels.
fn bundle(kernels: &[Named<'_>]) -> Bundle {
    let mut w = BundleWriter::new(Arch::Sm90, "x86_64", "t");
    for (i, (kernel, dtype, generics)) in kernels.iter().enumerate() {
        let generics: Vec<(String, i64)> = generics.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        let entry = Kernel {
            name: kernel_name(kernel, dtype, &generics, 4, 2),
            entry: format!("{kernel}_entry"),
            family: "f".into(),
            kernel: kernel.to_string(),
            dtype: dtype.to_string(),
            generics,
            warps: 4,
            occupancy: 2,
            abi: Vec::new(),
            grid: "g".into(),
            registers: 0,
            shared_bytes: 0,
            spills: 0,
            cubin: Place::default(),
            source: String::new(),
            toolchain: String::new(),
            checked: None,
        };
        w.add(entry, vec![i as u8 + 1]).unwrap();
    }
    Bundle::new("names", w.bytes().unwrap()).unwrap()
}

fn names() -> Bundle {
    let with = |more: &[(&'static str, i64)]| {
        [("C", 64), ("K", 128), ("V", 128)].iter().chain(more).copied().collect::<Vec<(&str, i64)>>()
    };
    let sum = |vl| vec![("C", 64), ("MODE", 2), ("VL", vl)];
    let norm = || vec![("R", 4), ("DT", 1024), ("MEAN", 0), ("GATE", 0)];
    bundle(&[
        ("decay_cumsum", "f32", sum(0)),
        ("decay_cumsum", "f32", sum(1)),
        ("decay_fwd", "bf16", with(&[("BV", 64), ("OUT", 1), ("SAVE", 0), ("ST", 1), ("VL", 0)])),
        ("decay_fwd", "bf16", with(&[("BV", 32), ("OUT", 1), ("SAVE", 0), ("ST", 0), ("VL", 0)])),
        ("decay_fwd", "bf16", with(&[("BV", 64), ("OUT", 0), ("SAVE", 1), ("ST", 1), ("VL", 0)])),
        ("decay_fwd", "bf16", with(&[("BV", 64), ("OUT", 1), ("SAVE", 0), ("ST", 1), ("VL", 1)])),
        ("decay_out", "bf16", with(&[("BV", 128), ("VL", 0)])),
        ("decay_dstate", "bf16", with(&[("BV", 64), ("ST", 1), ("VL", 0)])),
        ("decay_bwd", "bf16", with(&[("BV", 64), ("VL", 0)])),
        ("norm_fwd", "bf16", norm()),
        ("norm_bwd", "bf16", norm()),
        ("column_sum", "f32", vec![("R", 16), ("DT", 128)]),
        ("swiglu_fwd", "bf16", vec![("R", 4), ("DT", 256)]),
        ("sum_squares", "f32", vec![("N", 1024)]),
        ("adamw_decide", "f32", vec![("N", 1024)]),
        ("adamw_update", "bf16", vec![("N", 1024), ("V", 1)]),
        ("adamw_update", "bf16", vec![("N", 1024), ("V", 8)]),
    ])
}

fn shape(sequences: Sequences, heads: usize, value_heads: usize) -> RecurrentShape {
    RecurrentShape { sequences, heads, value_heads, key_dim: 128, value_dim: 128 }
}

fn machine<'a>(bundle: &'a Bundle, tuning: &'a Tuning) -> Machine<'a> {
    Machine { bundle, tuning, sm_count: 132, free_bytes: 1 << 40 }
}

#[test]
fn sequences_and_their_tables() {
    let rows = Sequences::rows(3, 130);
    assert_eq!((rows.count(), rows.chunks(), rows.chunk_grid()), (3, 9, [3, 3]));
    assert!(rows.chunk_table().unwrap().is_empty());
    let packed = Sequences::packed(&[0, 65, 65, 100]).unwrap();
    assert_eq!((packed.count(), packed.chunks(), packed.tokens, packed.chunk_grid()), (3, 3, 100, [3, 1]));
    assert_eq!(packed.sequence_table().unwrap(), [0, 65, 0, 0, 65, 0, 2, 0, 65, 35, 2, 0]);
    assert_eq!(packed.chunk_table().unwrap(), [0, 65, 0, 0, 0, 65, 1, 0, 65, 35, 0, 2]);
    for (bounds, part) in
        [(&[1, 2][..], "expected 0"), (&[0, 5, 4], "falls from 5 to 4"), (&[], "expected 0")]
    {
        assert!(Sequences::packed(bounds).unwrap_err().to_string().contains(part));
    }
    assert!(Sequences::packed(&[0, 1 << 32]).unwrap().sequence_table().is_err());
}

#[test]
fn many_heads_take_one_serial_launch_and_few_heads_two() {
    let (b, t) = (names(), Tuning::default());
    let m = machine(&b, &t);
    let wide = shape(Sequences::rows(1, 8192), 96, 96);
    let plan = forward(&m, &wide, Recurrence::Decay(Gate::Token), "bf16", false).unwrap();
    let grids: Vec<_> = plan.launches.iter().map(|l| (l.kernel.split('@').next().unwrap(), l.grid)).collect();
    // ST = 0 exists and is taken where no state is given.
    assert_eq!(grids, [("decay_cumsum", [96, 128, 1]), ("decay_fwd", [4, 96, 1])]);
    let plan = forward(&m, &wide, Recurrence::Decay(Gate::Token), "bf16", true).unwrap();
    assert_eq!(plan.launches[1].grid, [2, 96, 1]);
    let few = shape(Sequences::rows(1, 32768), 4, 16);
    let split = forward(&m, &few, Recurrence::Decay(Gate::Token), "bf16", false).unwrap();
    assert_eq!(split.launches.last().unwrap().grid, [16, 512, 1]);
    assert_eq!(split.bytes(), 512 * 16 * 64 * 4 + 512 * 16 * 128 * 128 * 2);
    // Without memory for the states the serial launch does it alone, and without any it is an error.
    let poor = Machine { free_bytes: 4 << 20, ..m };
    assert_eq!(
        forward(&poor, &few, Recurrence::Decay(Gate::Token), "bf16", false).unwrap().launches.len(),
        2
    );
    let poorer = Machine { free_bytes: 1 << 20, ..m };
    let text = forward(&poorer, &few, Recurrence::Decay(Gate::Token), "bf16", false).unwrap_err().to_string();
    assert!(text.contains("2097152") && text.contains("1048576"), "{text}");
}

#[test]
fn what_is_not_there_is_an_error_and_nothing_is_nothing() {
    let (b, t) = (names(), Tuning::default());
    let m = machine(&b, &t);
    let packed = shape(Sequences::packed(&[0, 100, 200]).unwrap(), 96, 96);
    let plan = forward(&m, &packed, Recurrence::Decay(Gate::Token), "bf16", false).unwrap();
    assert_eq!((plan.launches[0].grid, plan.launches[1].grid), ([96, 4, 1], [2, 96, 2]));
    assert!(backward(&m, &packed, Recurrence::Decay(Gate::Token), "bf16", false).is_err());
    let rows = shape(Sequences::rows(1, 100), 96, 96);
    let plan = backward(&m, &rows, Recurrence::Decay(Gate::Token), "bf16", false).unwrap();
    assert_eq!((plan.launches.len(), plan.workspace.len()), (4, 3));
    let odd = RecurrentShape { key_dim: 96, ..packed.clone() };
    let text = forward(&m, &odd, Recurrence::Decay(Gate::Token), "bf16", false).unwrap_err().to_string();
    assert!(text.contains("K=96") && text.contains("decay_fwd@bf16_C64_K128"), "{text}");
    assert!(forward(&m, &packed, Recurrence::Delta, "bf16", false).is_err());
    let uneven = RecurrentShape { heads: 5, ..packed };
    assert!(
        forward(&m, &uneven, Recurrence::Decay(Gate::Token), "bf16", false)
            .unwrap_err()
            .to_string()
            .contains("evenly")
    );
    let empty = shape(Sequences::rows(2, 0), 4, 4);
    assert_eq!(forward(&m, &empty, Recurrence::Decay(Gate::Token), "bf16", false).unwrap(), Plan::default());
    let long = shape(Sequences::rows(1, 64 * 70_000), 96, 96);
    let text = forward(&m, &long, Recurrence::Decay(Gate::Token), "bf16", false).unwrap_err().to_string();
    assert!(text.contains("4480000 tokens") && text.contains("174762"), "{text}");
    let many = shape(Sequences::rows(70_000, 64), 2, 2);
    assert!(
        backward(&m, &many, Recurrence::Decay(Gate::Token), "bf16", false)
            .unwrap_err()
            .to_string()
            .contains("70000")
    );
}

#[test]
fn rows_are_divided_over_the_gpu() {
    let (b, t) = (names(), Tuning::default());
    let m = machine(&b, &t);
    assert_eq!(norm_forward(&m, 10, 1000, "bf16", false, 0).unwrap().launches[0].grid, [3, 1, 1]);
    let (plan, steps) = norm_backward(&m, 16384, 1000, "bf16", false, 0).unwrap();
    assert_eq!((steps, plan.launches[0].grid, plan.launches[1].grid), (8, [512, 1, 1], [8, 1, 1]));
    assert_eq!(plan.bytes(), 2 * 512 * 1000 * 4);
    assert_eq!(swiglu_forward(&m, 9, 600, "bf16").unwrap().launches[0].grid, [3, 3, 1]);
    assert!(norm_forward(&m, 10, 1000, "bf16", true, 0).is_err());
}

/// Every recurrence x shape class of the architectures of this build finds its kernels. A family that a bundle does not hold yet is left out; one that it holds is
/// whole.
#[test]
fn plans_name_kernels_of_the_embedded_bundles() {
    for arch in Arch::ALL {
        let (Ok(bundle), Ok(tuning)) = (embedded(arch), Tuning::of(arch)) else { continue };
        for sm_count in [8, 108, 132] {
            let m = Machine { bundle, tuning, sm_count, free_bytes: 1 << 42 };
            let decays = [Gate::None, Gate::Head, Gate::Token].map(|g| (Recurrence::Decay(g), "decay_fwd"));
            for (recurrence, name) in decays.into_iter().chain([(Recurrence::Delta, "delta_fwd")]) {
                if bundle.kernels().iter().any(|k| k.kernel == name) {
                    recurrent_classes(&m, recurrence);
                    let fit = |dims| head_dims(&m, &name.replace("fwd", "bwd"), "bf16", dims);
                    assert_eq!(
                        (fit([5, 64]), fit([65, 65]), fit([513, 8])),
                        (Some([64, 64]), Some([128, 128]), None)
                    );
                }
            }
        }
    }
}

/// Few and many heads, grouped, packed, ragged, with and without states.
fn recurrent_classes(m: &Machine<'_>, recurrence: Recurrence) {
    let packed = Sequences::packed(&[0, 100, 100, 357]).unwrap();
    for sequences in [Sequences::rows(1, 8192), Sequences::rows(2, 1), Sequences::rows(3, 131), packed] {
        for (heads, value_heads) in [(1, 1), (16, 16), (16, 64), (96, 96)] {
            for state in [false, true] {
                let shape = shape(sequences.clone(), heads, value_heads);
                let plans = [
                    forward(m, &shape, recurrence, "bf16", state).unwrap(),
                    backward(m, &shape, recurrence, "bf16", state).unwrap(),
                ];
                for launch in plans.iter().flat_map(|p| &p.launches) {
                    m.bundle.get(&launch.kernel).unwrap();
                    assert!(!launch.grid.contains(&0), "{launch:?}");
                }
            }
        }
    }
}

/// What the modules of `flashlin-ops` without a recurrence look up by name, in every type that they serve; and norms of the widths that models have.
#[test]
fn modules_find_their_kernels() {
    const ONE: [&str; 23] = [
        "array_unary",
        "array_zip",
        "array_select",
        "array_row_sum",
        "array_gather",
        "array_scatter_add",
        "array_row_max",
        "array_compare",
        "act_fwd",
        "act_bwd",
        "glu_fwd",
        "glu_bwd",
        "decay_gate_fwd",
        "decay_gate_bwd",
        "rope",
        "conv_fwd",
        "conv_state",
        "conv_dz",
        "conv_dw",
        "conv_dx",
        "conv_dstate",
        "conv_step",
        "cross_entropy",
    ];
    for arch in Arch::ALL {
        let (Ok(bundle), Ok(tuning)) = (embedded(arch), Tuning::of(arch)) else { continue };
        for dtype in ["f32", "bf16", "f16"] {
            for name in ONE {
                bundle.find(name, dtype, &[]).unwrap();
            }
            for (name, lanes) in
                ["norm_any_fwd", "norm_any_bwd"].into_iter().flat_map(|n| [(n, 128), (n, 1024)])
            {
                bundle.find(name, dtype, &[("N", lanes)]).unwrap();
            }
        }
        let m = Machine { bundle, tuning, sm_count: 132, free_bytes: 1 << 42 };
        for (width, gate) in [(64, 1), (128, 1), (256, 2), (768, 0), (1024, 0), (2048, 0), (4096, 0)] {
            for rows in [1, 77, 1 << 18] {
                let plan = norm_forward(&m, rows, width, "bf16", false, gate).unwrap();
                let (back, _) = norm_backward(&m, rows, width, "bf16", false, gate).unwrap();
                assert_eq!((plan.launches.len(), back.launches.len()), (1, 3));
            }
        }
    }
}

#[test]
fn an_optimizer_step_covers_every_parameter_once() {
    let (bundle, tuning) = (names(), Tuning::default());
    let m = machine(&bundle, &tuning);
    let block = 16 * 1024;
    let plan = global_norm(&m, &[1, 0, block, 2 * block + 1]).unwrap();
    let grids: Vec<u32> = plan.launches.iter().map(|l| l.grid[0]).collect();
    assert_eq!(grids, [1, 1, 3, 1]);
    assert!(plan.launches[3].kernel.starts_with("adamw_decide"));
    assert_eq!(plan.workspace, [Array::new("part", "f32", &[5])]);
    // Nothing to add is a norm of 0.
    assert_eq!(global_norm(&m, &[]).unwrap().launches.len(), 1);
    let plan = adamw(&m, &[("bf16", 1025), ("bf16", 0), ("bf16", 7), ("bf16", 2048)]).unwrap();
    assert_eq!(plan.launches.iter().map(|l| l.grid[0]).collect::<Vec<_>>(), [2, 1, 2]);
    // Whole vectors where the length is a multiple of them.
    let vectors = plan.launches.iter().map(|l| l.kernel.contains("_V8_"));
    assert_eq!(vectors.collect::<Vec<_>>(), [false, false, true]);
    assert!(adamw(&m, &[("f64", 3)]).is_err());
    let little = Machine { free_bytes: 100, ..m };
    assert!(matches!(global_norm(&little, &[block << 10]), Err(Error::Workspace { .. })));
}

#[test]
fn every_bundle_of_this_build_has_the_optimizer() {
    let tuning = Tuning::default();
    for bundle in Arch::ALL.into_iter().filter_map(|a| embedded(a).ok()) {
        let m = machine(bundle, &tuning);
        global_norm(&m, &[3]).unwrap();
        adamw(&m, &["f32", "bf16", "f16"].map(|t| (t, 3))).unwrap();
        adamw(&m, &["f32", "bf16", "f16"].map(|t| (t, 8))).unwrap();
    }
}
