//! Small models for tests.

use flashlin::{Config, DType, Device, Model, tokenizer::Tokenizer};
use serde_json::json;

/// A model of two layers with weights large enough to have opinions, for the byte tokenizer.
pub(crate) fn model(family: &str) -> Model {
    let mut map = json!({
        "model_type": family, "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2,
        "intermediate_size": 48, "initializer_range": 0.2,
    });
    if family == "gated_deltanet" {
        map["head_dim"] = json!(16);
    }
    let config = Config::from_json(map.as_object().unwrap().clone()).unwrap();
    Model::new(&config, DType::F32, &Device::Cpu, 3).unwrap()
}

pub(crate) fn bytes() -> Tokenizer {
    Tokenizer::bytes().unwrap()
}
