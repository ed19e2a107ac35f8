#![doc = include_str!("README.md")]

mod api;
mod composed;
mod conform;
pub mod cpu;
mod cuda;
mod named;
mod problem;
pub mod reference;
mod resume;
#[cfg(test)]
mod tests;

pub use api::{DecayArgs, chunk_matrix_flops, decay_attention};
pub use conform::Conformance;
pub use named::{
    GLA, LIGHTNING_ATTN, LINEAR_ATTN, RETENTION, RWKV6, SIMPLE_GLA, SSD, gla, lightning_attn,
    lightning_gamma, linear_attn, retention, retention_gamma, rwkv6, simple_gla, ssd,
};
pub(crate) use resume::step_on;
