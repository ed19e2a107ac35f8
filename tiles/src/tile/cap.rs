//! Soft caps of logits.

/// Soft caps.
#[cutile::module]
pub mod cap {
    use cutile::core::*;

    /// `cap tanh(x / cap)`; x itself where cap is 0.
    pub fn capped<const N: i32>(x: Tile<f32, { [N] }>, cap: f32) -> Tile<f32, { [N] }> {
        let mut y: Tile<f32, { [N] }> = x;
        if cap > 0.0f32 {
            let c: Tile<f32, { [N] }> = broadcast_scalar(cap, const_shape![N]);
            let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
            let two: Tile<f32, { [N] }> = constant(2.0f32, const_shape![N]);
            // From one exponential: exact to the last bits of 1, which is what the cap multiplies.
            let t: Tile<f32, { [N] }> = one - true_div(two, exp(two * true_div(x, c)) + one);
            y = c * t;
        }
        y
    }

    /// The slope of `capped` where its value is y: 1 - (y / cap)^2; 1 where cap is 0.
    pub fn cap_slope<const N: i32>(y: Tile<f32, { [N] }>, cap: f32) -> Tile<f32, { [N] }> {
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let mut f: Tile<f32, { [N] }> = one;
        if cap > 0.0f32 {
            let c: Tile<f32, { [N] }> = broadcast_scalar(cap, const_shape![N]);
            let t: Tile<f32, { [N] }> = true_div(y, c);
            f = one - t * t;
        }
        f
    }
}
