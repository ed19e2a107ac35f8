//! The decay family with one decay a head and token: `S <- e^g S + k v^T; o = scale S^T q` (linear attention, retention, lightning attention,
//! simple GLA, Mamba2).

pub mod bwd;
pub mod cumsum;
pub mod dstate;
pub mod fwd;
pub mod group_sum;
pub mod join;
pub mod out;
