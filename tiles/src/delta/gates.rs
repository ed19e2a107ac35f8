//! Delta rule, before everything else: cumulative decays and write strengths, chunk by chunk.
//!
//! With `G` the cumulative sum of the log-decay inside the chunk, `gvec` f32 `[NC, HV, 4, C]` gets the rows 0 beta, 1 `e^G`, 2 `e^(G_last - G)`,
//! 3 `G` in units of log 2. g, beta f32 `[B, T, HV]` (natural log; absent: 0 and 1); NC chunks in all.
//! Grid: `(ceil(HV / HB), ceil(T/C), B)`; packed: `(ceil(HV / HB), NC, 1)` with chunks i32 `[NC, 4]` = (first token of the sequence, its length,
//! number of the chunk in it, sequence).

/// Kernel.
#[cutile::module]
pub mod gates_ {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_gates<const C: i32, const HB: i32, const VL: i32>(
        g: *mut f32,
        beta: *mut f32,
        chunks: *mut i32,
        gvec: *mut f32,
        b: i32,
        t: i32,
        hv: i32,
        nc: i32,
        has_g: i32,
        has_beta: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let ih: i32 = pid.0;
        let mut first: i32 = 0i32;
        let mut len: i32 = t;
        let mut i: i32 = pid.1;
        let mut nb: i32 = b;
        let mut n: i32 = pid.2 * ceil_div(t, C) + pid.1;
        if VL == 1i32 {
            first = unsafe { int_at(chunks, nc * 4i32, pid.1 * 4i32) };
            len = unsafe { int_at(chunks, nc * 4i32, pid.1 * 4i32 + 1i32) };
            i = unsafe { int_at(chunks, nc * 4i32, pid.1 * 4i32 + 2i32) };
            nb = 1i32;
            n = pid.1;
        }
        let ib: i32 = pid.2;
        let mut tg: Tile<f32, { [C, HB] }> = constant(0.0f32, const_shape![C, HB]);
        if has_g == 1i32 {
            let gv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(g, first, nb, len, hv) };
            let gp: Partition<f32, { [1, C, HB] }> = gv.partition(const_shape![1, C, HB]);
            tg = gp.load([ib, i, ih]).reshape(const_shape![C, HB]);
        }
        let mut be: Tile<f32, { [C, HB] }> = constant(1.0f32, const_shape![C, HB]);
        if has_beta == 1i32 {
            let bv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(beta, first, nb, len, hv) };
            let bp: Partition<f32, { [1, C, HB] }> = bv.partition(const_shape![1, C, HB]);
            be = bp.load([ib, i, ih]).reshape(const_shape![C, HB]);
        }
        let l2e: Tile<f32, { [C, HB] }> = constant(1.4426950408889634f32, const_shape![C, HB]);
        let gc: Tile<f32, { [C, HB] }> = scan_sum(tg * l2e, 0i32, reverse::Forward, 0.0f32);
        let gc: Tile<f32, { [C, HB] }> = gc.reshape(const_shape![C, HB]);
        // What is left of the decay after each row: the last cumulative sum less its own.
        let gl: Tile<f32, { [HB] }> = reduce_sum(tg * l2e, 0i32);
        let gl: Tile<f32, { [C, HB] }> = gl.reshape(const_shape![1, HB]).broadcast(const_shape![C, HB]);
        let eg: Tile<f32, { [C, HB] }> = exp2(gc, ftz::Enabled);
        let er: Tile<f32, { [C, HB] }> = exp2(gl - gc, ftz::Enabled);
        let ov: Tensor<f32, { [-1, -1, 4, C] }> = unsafe { head_rows::<4, C>(gvec, nc, hv) };
        let mut op: PartitionMut<f32, { [1, HB, 1, C] }> =
            unsafe { ov.partition_full_mut(const_shape![1, HB, 1, C]) };
        let y: Tile<f32, { [HB, C] }> = be.transpose();
        unsafe { op.store_unchecked(y.reshape(const_shape![1, HB, 1, C]), [n, ih, 0i32, 0i32]) };
        let y: Tile<f32, { [HB, C] }> = eg.transpose();
        unsafe { op.store_unchecked(y.reshape(const_shape![1, HB, 1, C]), [n, ih, 1i32, 0i32]) };
        let y: Tile<f32, { [HB, C] }> = er.transpose();
        unsafe { op.store_unchecked(y.reshape(const_shape![1, HB, 1, C]), [n, ih, 2i32, 0i32]) };
        let y: Tile<f32, { [HB, C] }> = gc.transpose();
        unsafe { op.store_unchecked(y.reshape(const_shape![1, HB, 1, C]), [n, ih, 3i32, 0i32]) };
    }
}
