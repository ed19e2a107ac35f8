//! One folder a model: its config keys, its mixer, its registry entry, its tests, its README.

pub mod delta_net;
pub mod gated_deltanet;
pub mod gla;
pub mod kda;
pub mod mamba2;
pub mod retnet;
pub mod transformer;
