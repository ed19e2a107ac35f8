//! Softmax attention in blocks of queries and keys, never a whole matrix of scores.
//!
//! A block of queries is one row of lse and delta: a *slot*, filled up to BM with queries that see nothing. Where `VL` = 1 the blocks are those of
//! packed sequences or of a cache, in any order, each described by 8 integers of `table`: (first query, queries, first key, keys, number of the block
//! in its sequence, slot; 0, 0), of `attention_dkv` for blocks of keys with the first slot of the sequence. The last query of a sequence stands at its last key.

pub mod dkv;
pub mod dq;
pub mod fwd;
pub mod merge;
pub mod step;
