//! The optimizer: everything that a step decides stays on the device.

pub mod adamw_decide;
pub mod adamw_update;
pub mod sum_squares;
