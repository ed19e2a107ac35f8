//! Tests of the family.

mod api;
mod step;

crate::conformance!(suite, crate::delta::Conformance);
