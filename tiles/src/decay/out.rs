//! Scalar decay, the outputs of all chunks at once, from the states that `decay_fwd` saved: for few heads, where the serial pass leaves the
//! GPU half empty.
//!
//! `O = scale (e^G Q S + tril(Q K^T e^(G_i - G_j)) V)`. Shapes as in `decay_fwd`. Grid: `(HV * V / BV, ceil(T/C), B)`; packed:
//! `(HV * V / BV, NC, 1)`.

/// Kernel.
#[cutile::module]
pub mod out {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_out<
        E: ElementType,
        const C: i32,
        const K: i32,
        const V: i32,
        const BV: i32,
        const VL: i32,
    >(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        gc: *mut f32,
        hs: *mut E,
        chunks: *mut i32,
        o: *mut E,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let nv: i32 = V / BV;
        let (iv, ih) = (pid.0 % nv, pid.0 / nv);
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
        let vv: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(v, first, nb, len, hv) };
        let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(o, first, nb, len, hv) };
        let gv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(gc, nc * hv) };
        let hsv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(hs, nc * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let vp: Partition<E, { [1, C, 1, BV] }> = vv.partition(const_shape![1, C, 1, BV]);
        let gp: Partition<f32, { [1, 1, C] }> = gv.partition(const_shape![1, 1, C]);
        let hp: Partition<E, { [1, K, BV] }> = hsv.partition(const_shape![1, K, BV]);
        let mut op: PartitionMut<E, { [1, C, 1, BV] }> =
            unsafe { ov.partition_full_mut(const_shape![1, C, 1, BV]) };
        let tq: Tile<E, { [C, K] }> = qp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tk: Tile<E, { [C, K] }> = kp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let sb: Tile<E, { [K, BV] }> = hp.load([n, 0i32, iv]).reshape(const_shape![K, BV]);
        let tv: Tile<E, { [C, BV] }> = vp.load([ib, i, ih, iv]).reshape(const_shape![C, BV]);
        let g: Tile<f32, { [C] }> = gp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let a: Tile<f32, { [C, C] }> = mma(tq, tk.transpose(), z);
        let d: Tile<f32, { [C, C] }> = decay::<C>(g, m);
        let ab: Tile<E, { [C, C] }> = convert_tile(a * d.reshape(const_shape![C, C]));
        let zo: Tile<f32, { [C, BV] }> = constant(0.0f32, const_shape![C, BV]);
        let oi: Tile<f32, { [C, BV] }> = mma(tq, sb, zo);
        let eg: Tile<f32, { [C] }> = exp2(g, ftz::Enabled);
        let oi: Tile<f32, { [C, BV] }> = oi * col::<C, BV>(eg);
        let oi: Tile<f32, { [C, BV] }> = mma(ab, tv, oi);
        let ob: Tile<E, { [C, BV] }> = convert_tile(oi * scale.broadcast(const_shape![C, BV]));
        unsafe { op.store_unchecked(ob.reshape(const_shape![1, C, 1, BV]), [ib, i, ih, iv]) };
    }
}
