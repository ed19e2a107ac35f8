//! An OpenAI-compatible server: continuous batching over state slots.
//!
//! [`engine`] owns the model and does one thing at a time on a thread of its own; [`api`] speaks HTTP; [`Server`] joins them. What a sequence
//! remembers has a fixed size where the model is linear, so memory is bounded by the number of slots. A request's tokens do not depend on who else
//! is served.

pub mod api;
mod auth;
pub mod engine;
pub mod load;
mod metrics;
mod server;
mod template;

pub use auth::Key;
pub use metrics::Metrics;
pub use server::{ServeOptions, Server};
