//! The examples do what they say.

#[allow(dead_code)]
#[path = "../examples/generate.rs"]
mod generate;
#[allow(dead_code)]
#[path = "../examples/mixer.rs"]
mod mixer;

use flashlin::{Config, DType, Device, Model, tokenizer::Tokenizer};

#[test]
fn a_mixer_alone_learns_and_runs_token_by_token() {
    let (first, _) = mixer::train_and_step(1).unwrap();
    let (last, difference) = mixer::train_and_step(60).unwrap();
    assert!(last < 0.7 * first, "loss {first} at the first step, {last} after 60");
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn a_saved_model_writes_text() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    let keys = serde_json::json!({
        "model_type": "gla", "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "vocab_size": tokenizer.vocab_size(),
        "eos_token_id": null,
    });
    let config = Config::from_json(keys.as_object().unwrap().clone()).unwrap();
    Model::new(&config, DType::F32, &Device::Cpu, 1).unwrap().save(dir.path()).unwrap();
    assert!(generate::write(dir.path()).is_err(), "without a tokenizer");
    tokenizer.save(dir.path()).unwrap();
    assert_eq!(generate::write(dir.path()).unwrap(), 64);
}
