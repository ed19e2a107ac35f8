//! The delta family: `S <- e^g S; S += k (beta (v - S^T k))^T; o = scale S^T q`.
//!
//! Chunked: with `S` the state before the chunk, `Y = V - e^G K S`, `U = T (beta Y)`, `O = scale e^G Q S + P U`,
//! `S <- e^(G_last) S + K^T (e^(G_last - G) U)`; `T` and `P` as in `intra`.

pub mod bwd;
pub mod dstate;
pub mod fwd;
pub mod gates;
pub mod intra;
pub mod join;
pub mod step;
pub mod through;
