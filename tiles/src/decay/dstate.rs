//! Scalar decay backward, the serial pass from the last chunk to the first: the gradient of the state after each chunk.
//!
//! `dS <- e^(G_last) dS + scale (e^G Q)^T dO`. Shapes: q `[B, T, H, K]`; d_o `[B, T, HV, V]`; gc from `decay_cumsum`; dh
//! `[NC, HV, K, V]` in the inputs' type; dht, dh0 f32 `[B * nseg, HV, K, V]`. `ST` = 0 leaves out the code for dht and dh0. Segments, grid and packing as in `delta_fwd`.

/// Kernel.
#[cutile::module]
pub mod dstate {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_dstate<
        E: ElementType,
        const C: i32,
        const K: i32,
        const V: i32,
        const BV: i32,
        const L: i32,
        const ST: i32,
        const VL: i32,
    >(
        q: *mut E,
        d_o: *mut E,
        gc: *mut f32,
        seqs: *mut i32,
        dht: *mut f32,
        dh: *mut E,
        dh0: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        nseg: i32,
        seg: i32,
        has_dht: i32,
        has_dh0: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (iv, ih, z) = (pid.0, pid.1, pid.2);
        let iq: i32 = ih / (hv / h);
        let mut ib: i32 = z / nseg;
        let i0: i32 = (z - ib * nseg) * seg;
        let mut first: i32 = 0i32;
        let mut len: i32 = t;
        let mut nb: i32 = b;
        let mut n0: i32 = ib * ceil_div(t, C);
        if VL == 1i32 {
            first = unsafe { int_at(seqs, b * 4i32, ib * 4i32) };
            len = unsafe { int_at(seqs, b * 4i32, ib * 4i32 + 1i32) };
            n0 = unsafe { int_at(seqs, b * 4i32, ib * 4i32 + 2i32) };
            nb = 1i32;
            ib = 0i32;
        }
        let i1: i32 = min(ceil_div(len, C), i0 + seg);
        let qv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(q, first, nb, len, h) };
        let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(d_o, first, nb, len, hv) };
        let gv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(gc, nc * hv) };
        let dhv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(dh, nc * hv) };
        let dtv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(dht, b * nseg * hv) };
        let d0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(dh0, b * nseg * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let op: Partition<E, { [1, C, 1, BV] }> = ov.partition(const_shape![1, C, 1, BV]);
        let gp: Partition<f32, { [1, 1, C] }> = gv.partition(const_shape![1, 1, C]);
        let dtp: Partition<f32, { [1, K, BV] }> = dtv.partition(const_shape![1, K, BV]);
        let mut dhp: PartitionMut<E, { [1, K, BV] }> =
            unsafe { dhv.partition_full_mut(const_shape![1, K, BV]) };
        let mut d0p: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { d0v.partition_full_mut(const_shape![1, K, BV]) };
        let mut s: Tile<f32, { [K, BV] }> = constant(0.0f32, const_shape![K, BV]);
        if ST == 1i32 {
            if has_dht == 1i32 {
                s = dtp.load([z * hv + ih, 0i32, iv]).reshape(const_shape![K, BV]);
            }
        }
        for r in 0i32..(i1 - i0) {
            let i: i32 = i1 - 1i32 - r;
            let n: i32 = (n0 + i) * hv + ih;
            let tq: Tile<E, { [C, K] }> =
                qp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let to: Tile<E, { [C, BV] }> =
                op.load_pipelined::<L>([ib, i, ih, iv]).reshape(const_shape![C, BV]);
            let g: Tile<f32, { [C] }> = gp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let gl: Tile<f32, { [1] }> = extract(g, [scalar_to_tile(C - 1i32)]);
            let sb: Tile<E, { [K, BV] }> = convert_tile(s);
            unsafe { dhp.store_unchecked(sb.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
            let e: Tile<f32, { [C] }> = exp2(g, ftz::Enabled) * scale.broadcast(const_shape![C]);
            let of: Tile<f32, { [C, BV] }> = convert_tile(to);
            let os: Tile<E, { [C, BV] }> = convert_tile(of * col::<C, BV>(e));
            let el: Tile<f32, { [1] }> = exp2(gl, ftz::Enabled);
            s = s * el.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
            s = mma(tq.transpose(), os, s);
        }
        if ST == 1i32 {
            if has_dh0 == 1i32 {
                unsafe { d0p.store_unchecked(s.reshape(const_shape![1, K, BV]), [z * hv + ih, 0i32, iv]) };
            }
        }
    }
}
