//! Norms of rows.

pub mod bwd;
pub mod column_sum;
pub mod fwd;
