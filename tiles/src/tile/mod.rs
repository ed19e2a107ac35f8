//! What several kernels share: views of the arrays they read and write, and tile arithmetic.

pub mod cap;
pub mod functions;
pub mod group;
pub mod ints;
pub mod lane;
pub mod math;
pub mod rows;
pub mod slide;
pub mod solve;
pub mod strided;
pub mod strip;
pub mod taps;
pub mod thin;
pub mod vectors;
pub mod view;
pub mod window;
