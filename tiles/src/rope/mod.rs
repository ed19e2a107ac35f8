//! The rotary embedding.

pub mod rope;
