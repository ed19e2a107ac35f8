//! The library in ten lines: `cargo run --release -p flashlin --example generate -- runs/quickstart/latest`.

use flashlin::{Device, Model, generate::GenerateOptions, generate::generate, tokenizer::Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: generate MODEL_FOLDER")?;
    let model = Model::load(dir.as_ref(), None, &Device::Cpu)?;
    let tokenizer = Tokenizer::from_dir(dir.as_ref())?;
    let prompt = tokenizer.encode("To be, or not to be", true)?;
    let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
    generate(&model, Some(&tokenizer), &[prompt], options, |event| print!("{}", event.text))?;
    println!();
    Ok(())
}
