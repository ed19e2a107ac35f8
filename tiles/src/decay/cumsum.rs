//! Cumulative log-decay inside each chunk.
//!
//! `gc_i = sum_(j <= i) g_j`, in units of log 2. `MODE` 0: no decay (zeros); 1: one value a head, g f32 `[HV]`; 2: one a token and head,
//! g f32 `[B, T, HV]`, natural log. gc f32 `[NC, HV, 1, C]`. Grid: `(HV, ceil(T/C), B)`; packed: `(HV, NC, 1)` with chunks as in
//! `delta_intra`.

/// Kernel.
#[cutile::module]
pub mod cumsum {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_cumsum<const C: i32, const MODE: i32, const VL: i32>(
        g: *mut f32,
        chunks: *mut i32,
        gc: *mut f32,
        b: i32,
        t: i32,
        hv: i32,
        nc: i32,
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
        let n: i32 = n * hv + ih;
        let mut x: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        if MODE == 1i32 {
            let hv_: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(g, 0i32, 1i32, 1i32, hv) };
            let hp: Partition<f32, { [1, 1, 1] }> = hv_.partition(const_shape![1, 1, 1]);
            let one: Tile<f32, { [1] }> = hp.load([0i32, 0i32, ih]).reshape(const_shape![1]);
            // Rows past the end must not decay: the last row's sum is the chunk's.
            let idx: Tile<i32, { [C] }> = iota(const_shape![C]);
            let left: Tile<i32, { [C] }> = broadcast_scalar(len - i * C, const_shape![C]);
            let inside: Tile<bool, { [C] }> = lt_tile(idx, left);
            x = select(inside, one.broadcast(const_shape![C]), x);
        }
        if MODE == 2i32 {
            let gv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(g, first, nb, len, hv) };
            let gp: Partition<f32, { [1, C, 1] }> = gv.partition(const_shape![1, C, 1]);
            x = gp.load([ib, i, ih]).reshape(const_shape![C]);
        }
        let l2e: Tile<f32, { [C] }> = constant(1.4426950408889634f32, const_shape![C]);
        let y: Tile<f32, { [C] }> = scan_sum(x * l2e, 0i32, reverse::Forward, 0.0f32);
        let ov: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(gc, nc * hv) };
        let mut op: PartitionMut<f32, { [1, 1, C] }> =
            unsafe { ov.partition_full_mut(const_shape![1, 1, C]) };
        unsafe { op.store_unchecked(y.reshape(const_shape![1, 1, C]), [n, 0i32, 0i32]) };
    }
}
