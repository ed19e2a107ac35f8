//! Linear maps of few rows: bound by reading the weights once.

pub mod thin_glu;
pub mod thin_linear;
