//! One folder a model: its config keys, its mixer, its registry entry, its tests, its README.

pub mod abc;
pub mod delta_net;
pub mod forgetting_transformer;
pub mod gated_deltanet;
pub mod gla;
pub mod gsa;
pub mod hgrn;
pub mod hgrn2;
pub mod kda;
pub mod lightnet;
pub mod linear_attn;
pub mod mamba;
pub mod mamba2;
pub mod mla;
pub mod mom;
pub mod retnet;
pub mod rodimus;
pub mod samba;
pub mod transformer;
