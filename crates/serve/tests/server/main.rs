//! A whole server on a free port of this machine, and clients.

mod abuse;
mod answers;
mod load;
mod support;
