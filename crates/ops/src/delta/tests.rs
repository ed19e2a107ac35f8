//! Tests of the family.

mod api;
mod kernels;
mod step;

crate::conformance!(suite, crate::delta::Conformance);
