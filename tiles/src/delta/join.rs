//! Delta rule, the states between the segments of a sequence, from what each does to a state (A, from `delta_through`) and what it adds (hb, the
//! end of a pass from zero).
//!
//! `REV` = 0: `S_(j+1) = A_j S_j + hb_j`, from h0, S_j to hs and the last to ht. `REV` = 1, for gradients: `S_(j-1) = A_j^T S_j + hb_j` from the last segment, h0 the
//! gradient after it, S_j the one after segment j, ht the one before the first. Products in TF32, sums in f32.
//!
//! Shapes: ha f32 `[B * nseg, HV, K, K]`; hb, hs f32 `[B * nseg, HV, K, V]`; h0, ht f32 `[B, HV, K, V]`. Grid: `(V / BV, HV, B)`.

/// Kernel.
#[cutile::module]
pub mod join {
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_join<const K: i32, const V: i32, const BV: i32, const REV: i32>(
        ha: *mut f32,
        hb: *mut f32,
        h0: *mut f32,
        hs: *mut f32,
        ht: *mut f32,
        b: i32,
        hv: i32,
        nseg: i32,
        has_h0: i32,
        has_ht: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (iv, ih, ib) = (pid.0, pid.1, pid.2);
        let av: Tensor<f32, { [-1, K, K] }> = unsafe { mats_f32::<K, K>(ha, b * nseg * hv) };
        let bv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(hb, b * nseg * hv) };
        let sv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(hs, b * nseg * hv) };
        let h0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(h0, b * hv) };
        let htv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(ht, b * hv) };
        let ap: Partition<f32, { [1, K, K] }> = av.partition(const_shape![1, K, K]);
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
            let a: Tile<f32, { [K, K] }> = ap.load([n, 0i32, 0i32]).reshape(const_shape![K, K]);
            let new: Tile<f32, { [K, BV] }> = bp.load([n, 0i32, iv]).reshape(const_shape![K, BV]);
            let at: Tile<tf32, { [K, K] }> = convert_tile(a);
            let st: Tile<tf32, { [K, BV] }> = convert_tile(s);
            if REV == 1i32 {
                s = mma(at.transpose(), st, new);
            } else {
                s = mma(at, st, new);
            }
        }
        if has_ht == 1i32 {
            unsafe { htp.store_unchecked(s.reshape(const_shape![1, K, BV]), [ib * hv + ih, 0i32, iv]) };
        }
    }
}
