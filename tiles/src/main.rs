//! Turns one kernel of this crate into Tile IR bytecode, without a GPU.
//!
//! `flashlin-tiles <kernel> <out.bc> <target> <warps> <occupancy> <generics...>`: 0 is no hint, the generics come in the
//! order in which the entry declares them. `flashlin-tiles --list` prints the kernels. The Tile IR text goes to stdout.

#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod activation;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod decay;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod delta;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod norm;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod tile;

use cutile_compiler::ast::Module;
use cutile_compiler::compile_api::KernelCompiler;
use cutile_compiler::hints::CompileOptions;
use cutile_ir::bytecode::BytecodeVersion;

/// Entry, module, and the module's syntax tree.
type Kernel = (&'static str, &'static str, fn() -> Module);

const KERNELS: &[Kernel] = &[
    ("norm_fwd", "fwd", norm::fwd::fwd::__module_ast_self),
    ("norm_bwd", "bwd", norm::bwd::bwd::__module_ast_self),
    ("column_sum", "column_sum", norm::column_sum::column_sum::__module_ast_self),
    ("swiglu_fwd", "swiglu", activation::swiglu::swiglu::__module_ast_self),
    ("swiglu_bwd", "swiglu_bwd", activation::swiglu_bwd::swiglu_bwd::__module_ast_self),
    ("decay_cumsum", "cumsum", decay::cumsum::cumsum::__module_ast_self),
    ("decay_fwd", "fwd", decay::fwd::fwd::__module_ast_self),
    ("decay_out", "out", decay::out::out::__module_ast_self),
    ("decay_dstate", "dstate", decay::dstate::dstate::__module_ast_self),
    ("decay_bwd", "bwd", decay::bwd::bwd::__module_ast_self),
    ("delta_gates", "gates_", delta::gates::gates_::__module_ast_self),
    ("delta_prep", "prep", delta::prep::prep::__module_ast_self),
    ("delta_fwd", "fwd", delta::fwd::fwd::__module_ast_self),
    ("delta_dstate", "dstate", delta::dstate::dstate::__module_ast_self),
    ("delta_qk", "qk", delta::qk::qk::__module_ast_self),
    ("delta_step", "step", delta::step::step::__module_ast_self),
    ("delta_bwd", "bwd", delta::bwd::bwd::__module_ast_self),
];

fn main() {
    if let Err(e) = run(std::env::args().skip(1).collect()) {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn run(args: Vec<String>) -> Result<(), String> {
    if args == ["--list"] {
        KERNELS.iter().for_each(|k| println!("{}", k.0));
        return Ok(());
    }
    let [kernel, out, target, warps, occupancy, generics @ ..] = &args[..] else {
        return Err(
            "usage: flashlin-tiles <kernel> <out.bc> <target> <warps> <occupancy> <generics...>".into()
        );
    };
    let hint = |s: &String| s.parse::<i32>().map_err(|_| format!("not a number: {s}"));
    let mut options = CompileOptions::new();
    if hint(warps)? > 0 {
        options = options.num_worker_warps_per_cta(hint(warps)?);
    }
    if hint(occupancy)? > 0 {
        options = options.occupancy(hint(occupancy)?);
    }
    let (name, module, ast) = *KERNELS.iter().find(|k| k.0 == kernel).ok_or(format!("no kernel {kernel}"))?;
    let artifacts = KernelCompiler::new(ast, module, name)
        .target(target)
        .bytecode_version(BytecodeVersion::V13_3)
        .generics(generics.to_vec())
        .options(options)
        .compile()
        .map_err(|e| e.to_string())?;
    println!("{}", artifacts.ir_text());
    let bytecode = artifacts.bytecode().map_err(|e| e.to_string())?;
    std::fs::write(out, bytecode).map_err(|e| format!("{out}: {e}"))
}
