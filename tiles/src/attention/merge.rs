//! Joins the parts of `attention_step` in order: o = sum_p 2^(c (m_p - m)) acc_p / sum_p 2^(c (m_p - m)) l_p with m the largest m_p and c = scale log2(e); 0 where no part has keys.
//!
//! Shapes as there; o `[N, H, G, D]`. Grid: `(H * tiles, N, 1)`.

/// Kernel.
#[cutile::module]
pub mod merge {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn attention_merge<E: ElementType, const D: i32, const GP: i32>(
        acc: *mut f32,
        ml: *mut f32,
        o: *mut E,
        n: i32,
        h: i32,
        g: i32,
        parts: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (iy, row) = (pid.0, pid.1);
        let tiles: i32 = ceil_div(g, GP);
        let ik: i32 = iy / tiles;
        let it: i32 = iy - ik * tiles;
        let o: *mut E = unsafe { assume_div_by::<_, 16>(o) };
        let sh: Shape<{ [-1, -1, D] }> = Shape::<{ [-1, -1, D] }> { dims: &[n * h, g] };
        let st: Array<{ [-1, D, 1] }> = Array::<{ [-1, D, 1] }> { dims: &[g * D] };
        let ov: Tensor<E, { [-1, -1, D] }> = unsafe { make_tensor_view(pointer_to_tile(o), sh, st, new_token_unordered()) };
        let av: Tensor<f32, { [-1, GP, D] }> = unsafe { mats_f32::<GP, D>(acc, n * h * tiles * parts) };
        let mv: Tensor<f32, { [-1, 2, GP] }> = unsafe { mats_f32::<2, GP>(ml, n * h * tiles * parts) };
        let ap: Partition<f32, { [1, GP, D] }> = av.partition(const_shape![1, GP, D]);
        let mp: Partition<f32, { [1, 1, GP] }> = mv.partition(const_shape![1, 1, GP]);
        let mut op: PartitionMut<E, { [1, GP, D] }> = unsafe { ov.partition_full_mut(const_shape![1, GP, D]) };
        let c: f32 = scale * 1.4426950408889634f32;
        let cm: Tile<f32, { [GP] }> = broadcast_scalar(c, const_shape![GP]);
        let first: i32 = (row * h * tiles + iy) * parts;
        let mut m: Tile<f32, { [GP] }> = constant(-1.0e30f32, const_shape![GP]);
        let mut l: Tile<f32, { [GP] }> = constant(0.0f32, const_shape![GP]);
        let mut x: Tile<f32, { [GP, D] }> = constant(0.0f32, const_shape![GP, D]);
        let zm: Tile<f32, { [GP] }> = constant(0.0f32, const_shape![GP]);
        let low: Tile<f32, { [GP] }> = constant(-1.0e30f32, const_shape![GP]);
        for p in 0i32..parts {
            let mine: Tile<f32, { [GP] }> = mp.load([first + p, 0i32, 0i32]).reshape(const_shape![GP]);
            let sum: Tile<f32, { [GP] }> = mp.load([first + p, 1i32, 0i32]).reshape(const_shape![GP]);
            let mine: Tile<f32, { [GP] }> = select(eq_tile(sum, zm), low, mine);
            let part: Tile<f32, { [GP, D] }> = ap.load([first + p, 0i32, 0i32]).reshape(const_shape![GP, D]);
            let new: Tile<f32, { [GP] }> = max_tile(m, mine);
            let a: Tile<f32, { [GP] }> = exp2((m - new) * cm, ftz::Enabled);
            let w: Tile<f32, { [GP] }> = exp2((mine - new) * cm, ftz::Enabled);
            l = l * a + sum * w;
            x = x * col::<GP, D>(a) + part * col::<GP, D>(w);
            m = new;
        }
        let one: Tile<f32, { [GP] }> = constant(1.0f32, const_shape![GP]);
        let total: Tile<f32, { [GP] }> = select(eq_tile(l, zm), one, l);
        let inverse: Tile<f32, { [GP] }> = true_div(one, total);
        let ob: Tile<E, { [GP, D] }> = convert_tile(x * col::<GP, D>(inverse));
        unsafe { op.store_unchecked(ob.reshape(const_shape![1, GP, D]), [row * h + ik, it, 0i32]) };
    }
}
