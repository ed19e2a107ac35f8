//! Tile arithmetic: causal masks, decay matrices, the inverse of a unit lower triangle.

/// Tile arithmetic.
#[cutile::module]
pub mod math {
    use cutile::core::*;

    /// True where row >= column.
    pub fn lower<const C: i32>() -> Tile<bool, { [C, C] }> {
        let i: Tile<i32, { [C] }> = iota(const_shape![C]);
        let r: Tile<i32, { [C, C] }> = i.reshape(const_shape![C, 1]).broadcast(const_shape![C, C]);
        let c: Tile<i32, { [C, C] }> = i.reshape(const_shape![1, C]).broadcast(const_shape![C, C]);
        let m: Tile<bool, { [C, C] }> = ge_tile(r, c);
        m
    }

    /// True where row = column.
    pub fn diagonal<const C: i32>() -> Tile<bool, { [C, C] }> {
        let i: Tile<i32, { [C] }> = iota(const_shape![C]);
        let r: Tile<i32, { [C, C] }> = i.reshape(const_shape![C, 1]).broadcast(const_shape![C, C]);
        let c: Tile<i32, { [C, C] }> = i.reshape(const_shape![1, C]).broadcast(const_shape![C, C]);
        let m: Tile<bool, { [C, C] }> = eq_tile(r, c);
        m
    }

    /// True where row > column.
    pub fn below<const C: i32>() -> Tile<bool, { [C, C] }> {
        let i: Tile<i32, { [C] }> = iota(const_shape![C]);
        let r: Tile<i32, { [C, C] }> = i.reshape(const_shape![C, 1]).broadcast(const_shape![C, C]);
        let c: Tile<i32, { [C, C] }> = i.reshape(const_shape![1, C]).broadcast(const_shape![C, C]);
        let m: Tile<bool, { [C, C] }> = gt_tile(r, c);
        m
    }

    /// `2^(g_i - g_j)` for `i >= j`, else 0; `g` is a cumulative sum of log2 decays.
    pub fn decay<const C: i32>(g: Tile<f32, { [C] }>, m: Tile<bool, { [C, C] }>) -> Tile<f32, { [C, C] }> {
        let gi: Tile<f32, { [C, C] }> = g.reshape(const_shape![C, 1]).broadcast(const_shape![C, C]);
        let gj: Tile<f32, { [C, C] }> = g.reshape(const_shape![1, C]).broadcast(const_shape![C, C]);
        let neg: Tile<f32, { [C, C] }> = constant(-1.0e30f32, const_shape![C, C]);
        let d: Tile<f32, { [C, C] }> = exp2(select(m, gi - gj, neg), ftz::Enabled);
        d
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid<const C: i32>(x: Tile<f32, { [C] }>) -> Tile<f32, { [C] }> {
        let one: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        let z: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        let e: Tile<f32, { [C] }> = exp(z - x);
        let y: Tile<f32, { [C] }> = one / (one + e);
        y
    }

    /// `ln(1 + e^x)`, as `max(x, 0) + ln(1 + e^-|x|)`.
    pub fn softplus<const C: i32>(x: Tile<f32, { [C] }>) -> Tile<f32, { [C] }> {
        let one: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        let z: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        let m: Tile<f32, { [C] }> = max_tile(x, z);
        let n: Tile<f32, { [C] }> = max_tile(z - x, z);
        let e: Tile<f32, { [C] }> = exp(z - (m + n));
        let y: Tile<f32, { [C] }> = m + log(one + e);
        y
    }

    /// Repeats a column over `D` columns.
    pub fn col<const C: i32, const D: i32>(x: Tile<f32, { [C] }>) -> Tile<f32, { [C, D] }> {
        let y: Tile<f32, { [C, D] }> = x.reshape(const_shape![C, 1]).broadcast(const_shape![C, D]);
        y
    }

    /// Two rows as a matrix.
    pub fn rows2<const C: i32>(x: Tile<f32, { [C] }>, y: Tile<f32, { [C] }>) -> Tile<f32, { [2, C] }> {
        let a: Tile<f32, { [1, C] }> = x.reshape(const_shape![1, C]);
        let b: Tile<f32, { [1, C] }> = y.reshape(const_shape![1, C]);
        let z: Tile<f32, { [2, C] }> = cat(a, b, 0i32);
        z
    }

    /// Repeats a row over `C` rows.
    pub fn row<const C: i32, const D: i32>(x: Tile<f32, { [D] }>) -> Tile<f32, { [C, D] }> {
        let y: Tile<f32, { [C, D] }> = x.reshape(const_shape![1, D]).broadcast(const_shape![C, D]);
        y
    }

    /// True in the lower and upper off-diagonal blocks of side `2^s` of every diagonal block of side `2^(s+1)`.
    ///
    /// The mask must be written with the exclusive or: written as `(row >> s) == (col >> s) + 1` with `row >> s` odd,
    /// the compiler folds it to false at 8 warps and `s` = 3.
    pub fn level<const C: i32>(s: i32) -> Tile<bool, { [C, C] }> {
        let i: Tile<i32, { [C] }> = iota(const_shape![C]);
        let r: Tile<i32, { [C, C] }> = i.reshape(const_shape![C, 1]).broadcast(const_shape![C, C]);
        let c: Tile<i32, { [C, C] }> = i.reshape(const_shape![1, C]).broadcast(const_shape![C, C]);
        let sh: Tile<i32, { [C, C] }> = broadcast_scalar(s, const_shape![C, C]);
        let x: Tile<i32, { [C, C] }> = shri(xori(r, c), sh);
        let one: Tile<i32, { [C, C] }> = constant(1i32, const_shape![C, C]);
        let p: Tile<bool, { [C, C] }> = eq_tile(x, one);
        p
    }
}
