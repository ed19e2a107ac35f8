//! Turns one kernel of this crate into Tile IR bytecode, without a GPU.
//!
//! `flashlin-tiles <kernel> <out.bc> <target> <warps> <occupancy> <generics...>`: 0 is no hint, the generics come in the
//! order in which the entry declares them. `flashlin-tiles --list` prints the kernels. The Tile IR text goes to stdout.

#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod delta;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod tile;

use cutile_compiler::ast::Module;
use cutile_compiler::compile_api::KernelCompiler;
use cutile_compiler::hints::CompileOptions;
use cutile_ir::bytecode::BytecodeVersion;

/// Entry, module, and the module's syntax tree.
type Kernel = (&'static str, &'static str, fn() -> Module);

const KERNELS: &[Kernel] = &[
    ("delta_prep", "prep", delta::prep::prep::__module_ast_self),
    ("delta_fwd", "fwd", delta::fwd::fwd::__module_ast_self),
    ("delta_dstate", "dstate", delta::dstate::dstate::__module_ast_self),
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
        return Err("usage: flashlin-tiles <kernel> <out.bc> <target> <warps> <occupancy> <generics...>".into());
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
