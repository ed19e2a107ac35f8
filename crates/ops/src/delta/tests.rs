//! Tests of the family.

mod api;
mod kernels;
mod step;
