//! Scalar decay, the states between the segments of a sequence, from how each decays and what it adds (hb, the end of a pass from zero).
//!
//! `REV` = 0: `S_(j+1) = e^(G_j) S_j + hb_j`, G_j the log-decay of segment j, from h0, S_j to hs and the last to ht. `REV` = 1, for gradients: the same from the last
//! segment to the first, h0 the gradient after it, S_j the one after segment j, ht the one before the first.
//!
//! Shapes: gc from `decay_cumsum`; hb, hs f32 `[B * nseg, HV, K, V]`; h0, ht f32 `[B, HV, K, V]`. Grid: `(V / BV, HV, B)`; segments and packing as in `delta_fwd`.

/// Kernel.
#[cutile::module]
pub mod join {
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_join<
        const C: i32,
        const K: i32,
        const V: i32,
        const BV: i32,
        const REV: i32,
        const VL: i32,
    >(
        gc: *mut f32,
        seqs: *mut i32,
        hb: *mut f32,
        h0: *mut f32,
        hs: *mut f32,
        ht: *mut f32,
        b: i32,
        t: i32,
        hv: i32,
        nc: i32,
        nseg: i32,
        seg: i32,
        has_h0: i32,
        has_ht: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (iv, ih, ib) = (pid.0, pid.1, pid.2);
        let mut len: i32 = t;
        let mut n0: i32 = ib * ceil_div(t, C);
        if VL == 1i32 {
            len = unsafe { int_at(seqs, b * 4i32, ib * 4i32 + 1i32) };
            n0 = unsafe { int_at(seqs, b * 4i32, ib * 4i32 + 2i32) };
        }
        let all: i32 = ceil_div(len, C);
        let bv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(hb, b * nseg * hv) };
        let sv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(hs, b * nseg * hv) };
        let h0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(h0, b * hv) };
        let htv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(ht, b * hv) };
        let bp: Partition<f32, { [1, K, BV] }> = bv.partition(const_shape![1, K, BV]);
        let h0p: Partition<f32, { [1, K, BV] }> = h0v.partition(const_shape![1, K, BV]);
        let mut sp: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { sv.partition_full_mut(const_shape![1, K, BV]) };
        let mut htp: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { htv.partition_full_mut(const_shape![1, K, BV]) };
        let mut s: Tile<f32, { [K, BV] }> = constant(0.0f32, const_shape![K, BV]);
        if has_h0 == 1i32 {
            s = h0p.load([ib * hv + ih, 0i32, iv]).reshape(const_shape![K, BV]);
        }
        for r in 0i32..nseg {
            let mut j: i32 = r;
            if REV == 1i32 {
                j = nseg - 1i32 - r;
            }
            let n: i32 = (ib * nseg + j) * hv + ih;
            unsafe { sp.store_unchecked(s.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
            let new: Tile<f32, { [K, BV] }> = bp.load([n, 0i32, iv]).reshape(const_shape![K, BV]);
            // The last sums of the segment's chunks; what lies beyond is read as zero.
            let from: i32 = min(j * seg, all);
            let count: i32 = min(seg, all - from);
            let base: PointerTile<*mut f32, { [] }> =
                pointer_to_tile(gc).offset(((n0 + from) * hv + ih) * C + C - 1i32);
            let shape: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[count] };
            let step: Array<{ [-1] }> = Array::<{ [-1] }> { dims: &[hv * C] };
            let gv: Tensor<f32, { [-1] }> =
                unsafe { make_tensor_view(base, shape, step, new_token_unordered()) };
            let gp: Partition<f32, { [64] }> = gv.partition(const_shape![64]);
            let mut g: Tile<f32, { [64] }> = constant(0.0f32, const_shape![64]);
            for i in 0i32..ceil_div(count, 64i32) {
                let one: Tile<f32, { [64] }> = gp.load([i]);
                g = g + one;
            }
            let sum: Tile<f32, { [] }> = reduce_sum(g, 0i32);
            let e: Tile<f32, { [1, 1] }> = exp2(sum.reshape(const_shape![1, 1]), ftz::Enabled);
            s = s * e.broadcast(const_shape![K, BV]) + new;
        }
        if has_ht == 1i32 {
            unsafe { htp.store_unchecked(s.reshape(const_shape![1, K, BV]), [ib * hv + ih, 0i32, iv]) };
        }
    }
}
