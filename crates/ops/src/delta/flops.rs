//! What the chunked form multiplies: the count that benchmarks divide by time.

/// Floating-point operations (2 a multiply-add) of the matrix products of the chunked delta rule with a scalar gate or
/// none, for `tokens` tokens of `value_heads` heads: forward, and backward (which computes the scores again).
///
/// With C the chunk and `tri = (C + 1) / 2 C` the part of a C x C matrix on and below its diagonal (the kernels multiply
/// little beyond it), a chunk of C tokens takes, in multiply-adds,
/// ```text
/// forward   Aq, Ap           2 C C K tri      backward   Aq, Ap again       2 C C K tri
///           Q~ S, P~ S       2 C K V                     dU                 C C V tri + C K V
///           solving for U    C C V tri                   solving for dY     C C V tri
///           Aq U             C C V tri                   dX~, dK^           3 C K V
///           K^^T U           C K V                       dA                 2 C C V tri
///                                                        dS                 2 C K V
///                                                        dQ, dP, dK         4 C C K tri
/// ```
/// Not counted: gates, decays, norms, transposes, elementwise work, and the extra score products of a gate a channel.
pub fn chunk_matrix_flops(tokens: usize, value_heads: usize, k: usize, v: usize, chunk: usize) -> [f64; 2] {
    let (c, k, v) = (chunk as f64, k as f64, v as f64);
    let tri = (c + 1.0) / (2.0 * c);
    let (cck, ccv, ckv) = (c * c * k * tri, c * c * v * tri, c * k * v);
    let forward = 2.0 * cck + 2.0 * ccv + 3.0 * ckv;
    let backward = 6.0 * cck + 4.0 * ccv + 6.0 * ckv;
    let chunks = tokens as f64 / c * value_heads as f64;
    [2.0 * forward * chunks, 2.0 * backward * chunks]
}
