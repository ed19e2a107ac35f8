//! Delta rule, before the serial pass: the products of queries and keys inside each chunk.
//!
//! `P_ij = scale (q_i . k_j) e^(G_i - G_j)` on and below the diagonal; with `norm`, q and k stand for their l2-normalised rows (k's factors come
//! from `delta_prep`, q's go to rq).
//!
//! Shapes: q, k `[B, T, H, K]`; gvec from `delta_gates`; rk, rq f32 `[NC, HV, 1, C]`; pm `[NC, HV, C, C]`. Grid as in `delta_prep`.

/// Kernel.
#[cutile::module]
pub mod qk {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_qk<E: ElementType, const C: i32, const K: i32, const VL: i32>(
        q: *mut E,
        k: *mut E,
        gvec: *mut f32,
        rk: *mut f32,
        chunks: *mut i32,
        pm: *mut E,
        rq: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        norm: i32,
        eps: f32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let ih: i32 = pid.0;
        let iq: i32 = ih / (hv / h);
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
        let qv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(q, first, nb, len, h) };
        let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(k, first, nb, len, h) };
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let rv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let pv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let vv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rq, nc * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let mut pp: PartitionMut<E, { [1, C, C] }> = unsafe { pv.partition_full_mut(const_shape![1, C, C]) };
        let rp: Partition<f32, { [1, 1, C] }> = rv.partition(const_shape![1, 1, C]);
        let mut vp: PartitionMut<f32, { [1, 1, C] }> =
            unsafe { vv.partition_full_mut(const_shape![1, 1, C]) };
        let tq: Tile<E, { [C, K] }> = qp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tk: Tile<E, { [C, K] }> = kp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tr: Tile<f32, { [C] }> = rp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let gc: Tile<f32, { [C] }> = fp.load([n, 3i32, 0i32]).reshape(const_shape![C]);
        let mut r: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        if norm == 1i32 {
            let fq: Tile<f32, { [C, K] }> = convert_tile(tq);
            let e: Tile<f32, { [C] }> = broadcast_scalar(eps, const_shape![C]);
            let sq: Tile<f32, { [C] }> = reduce_sum(fq * fq, 1i32);
            r = rsqrt(sq.reshape(const_shape![C]) + e, ftz::Disabled);
        }
        let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
        let sq: Tile<f32, { [C] }> = r * sc;
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let a: Tile<f32, { [C, C] }> = mma(tq, tk.transpose(), z);
        let d: Tile<f32, { [C, C] }> = decay::<C>(gc, lower::<C>());
        let a: Tile<f32, { [C, C] }> =
            a.reshape(const_shape![C, C]) * d.reshape(const_shape![C, C]) * row::<C, C>(tr);
        let p: Tile<E, { [C, C] }> = convert_tile(a * col::<C, C>(sq));
        unsafe { pp.store_unchecked(p.reshape(const_shape![1, C, C]), [n, 0i32, 0i32]) };
        unsafe { vp.store_unchecked(r.reshape(const_shape![1, 1, C]), [n, 0i32, 0i32]) };
    }
}
