//! The library in ten lines: `cargo run --release -p flashlin --example generate -- runs/quickstart/latest`.

use std::path::Path;

use flashlin::{Device, Model, generate::GenerateOptions, generate::generate, tokenizer::Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: generate MODEL_FOLDER")?;
    write(dir.as_ref())?;
    Ok(())
}

/// Streams a continuation to stdout; returns the number of its tokens.
pub fn write(dir: &Path) -> Result<usize, Box<dyn std::error::Error>> {
    let model = Model::load(dir, None, &Device::Cpu)?;
    let tokenizer = Tokenizer::from_dir(dir)?;
    let prompt = tokenizer.encode("To be, or not to be", true)?;
    let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
    let (rows, _) = generate(&model, Some(&tokenizer), &[prompt], options, |event| print!("{}", event.text))?;
    println!();
    Ok(rows[0].ids.len())
}
