//! Norms of rows.

pub mod bwd;
pub mod column_sum;
pub mod fwd;
pub mod norm_any_bwd;
pub mod norm_any_fwd;
