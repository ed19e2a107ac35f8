//! Turns one kernel of this crate into Tile IR bytecode, without a GPU.
//!
//! `flashlin-tiles <kernel> <out.bc> <target> <warps> <occupancy> <generics...>`: 0 is no hint, the generics come in the
//! order in which the entry declares them. `flashlin-tiles --list` prints the kernels. The Tile IR text goes to stdout.

// Apart, because this file is hashed with the toolchain: a new kernel leaves the others as they are.
include!("kernels.rs");

use cutile_compiler::ast::Module;
use cutile_compiler::compile_api::KernelCompiler;
use cutile_compiler::hints::CompileOptions;
use cutile_ir::bytecode::BytecodeVersion;

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
