//! The inverse of a unit lower triangle of 64 rows.

/// Inverses.
#[cutile::module]
pub mod solve {
    use crate::tile::math::math::*;
    use cutile::core::*;

    /// True in the diagonal blocks of 16 of a tile `[4, 16, 4, 16]`.
    pub fn own_block() -> Tile<bool, { [4, 16, 4, 16] }> {
        let i: Tile<i32, { [4] }> = iota(const_shape![4]);
        let r: Tile<i32, { [4, 16, 4, 16] }> = i.reshape(const_shape![4, 1, 1, 1]).broadcast(const_shape![4, 16, 4, 16]);
        let c: Tile<i32, { [4, 16, 4, 16] }> = i.reshape(const_shape![1, 1, 4, 1]).broadcast(const_shape![4, 16, 4, 16]);
        let m: Tile<bool, { [4, 16, 4, 16] }> = eq_tile(r, c);
        m
    }

    /// As `level`, for four blocks of 16.
    pub fn level16(s: i32) -> Tile<bool, { [4, 16, 16] }> {
        let i: Tile<i32, { [16] }> = iota(const_shape![16]);
        let r: Tile<i32, { [4, 16, 16] }> = i.reshape(const_shape![1, 16, 1]).broadcast(const_shape![4, 16, 16]);
        let c: Tile<i32, { [4, 16, 16] }> = i.reshape(const_shape![1, 1, 16]).broadcast(const_shape![4, 16, 16]);
        let sh: Tile<i32, { [4, 16, 16] }> = broadcast_scalar(s, const_shape![4, 16, 16]);
        let x: Tile<i32, { [4, 16, 16] }> = shri(xori(r, c), sh);
        let one: Tile<i32, { [4, 16, 16] }> = constant(1i32, const_shape![4, 16, 16]);
        let p: Tile<bool, { [4, 16, 16] }> = eq_tile(x, one);
        p
    }

    /// Inverse of `I + L`, C = 64, `L` strictly lower up to its diagonal, which is not read; above that it must be zero. Block
    /// doubling: `T_2b = T_b - (T_b L T_b) o M_b`, exact because `T_b` is block diagonal; up to blocks of 16 in four small products side by side, whose operands stay
    /// with their warps. Products run in `F`: f16 suffices where the recurrence is stable (then the inverse's entries are bounded by beta |k|^2 <= 2); tf32 has f32's
    /// range at twice the cost.
    pub fn tri_inv<F: ElementType, const C: i32>(l: Tile<f32, { [C, C] }>) -> Tile<f32, { [C, C] }> {
        let z4: Tile<f32, { [4, 16, 4, 16] }> = constant(0.0f32, const_shape![4, 16, 4, 16]);
        let z3: Tile<f32, { [4, 16, 16] }> = constant(0.0f32, const_shape![4, 16, 16]);
        let own: Tile<bool, { [4, 16, 4, 16] }> = own_block();
        let lw: Tile<f32, { [4, 16, 4, 16] }> = select(own, l.reshape(const_shape![4, 16, 4, 16]), z4);
        let ld: Tile<f32, { [4, 16, 16] }> = reduce_sum(lw, 2i32);
        let ld: Tile<f32, { [4, 16, 16] }> = ld.reshape(const_shape![4, 16, 16]);
        let i: Tile<i32, { [16] }> = iota(const_shape![16]);
        let r: Tile<i32, { [4, 16, 16] }> = i.reshape(const_shape![1, 16, 1]).broadcast(const_shape![4, 16, 16]);
        let c: Tile<i32, { [4, 16, 16] }> = i.reshape(const_shape![1, 1, 16]).broadcast(const_shape![4, 16, 16]);
        let one: Tile<f32, { [4, 16, 16] }> = constant(1.0f32, const_shape![4, 16, 16]);
        let eye: Tile<f32, { [4, 16, 16] }> = select(eq_tile(r, c), one, z3);
        let mut x: Tile<f32, { [4, 16, 16] }> = eye - select(level16(0i32), ld, z3);
        let lb: Tile<F, { [4, 16, 16] }> = convert_tile(ld);
        for s in 1i32..4i32 {
            let xb: Tile<F, { [4, 16, 16] }> = convert_tile(x);
            let y: Tile<f32, { [4, 16, 16] }> = mmaf(lb, xb, z3);
            let yb: Tile<F, { [4, 16, 16] }> = convert_tile(y);
            let w: Tile<f32, { [4, 16, 16] }> = mmaf(xb, yb, z3);
            x = x - select(level16(s), w, z3);
        }
        let xw: Tile<f32, { [4, 16, 4, 16] }> = x.reshape(const_shape![4, 16, 1, 16]).broadcast(const_shape![4, 16, 4, 16]);
        let xw: Tile<f32, { [4, 16, 4, 16] }> = select(own, xw, z4);
        let mut x: Tile<f32, { [C, C] }> = xw.reshape(const_shape![C, C]);
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let lb: Tile<F, { [C, C] }> = convert_tile(l);
        for s in 4i32..6i32 {
            let xb: Tile<F, { [C, C] }> = convert_tile(x);
            let y: Tile<f32, { [C, C] }> = mma(lb, xb, z);
            let yb: Tile<F, { [C, C] }> = convert_tile(y);
            let w: Tile<f32, { [C, C] }> = mma(xb, yb, z);
            x = x - select(level::<C>(s), w, z).reshape(const_shape![C, C]);
        }
        x
    }
}
