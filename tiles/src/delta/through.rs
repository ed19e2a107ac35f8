//! Delta rule, what a segment of a sequence does to the state that enters it: `S_end = A S_start + ..`, A for each segment.
//!
//! A is the state that the recurrence makes of the identity without values: `U = -T (beta e^G K S)`, `S <- e^(G_last) S + K^T (e^(G_last - G) U)`; T and the
//! rows' factors as in `delta_fwd`. With it, the segments of a sequence run at once and `delta_join` passes the states on.
//!
//! Shapes: k `[B, T, H, K]`; gvec, rk, tm as in `delta_fwd`; ha f32 `[B * nseg, HV, K, K]`. Grid: `(K / BV, HV, B * nseg)`; segments and packing as in `delta_fwd`.

/// Kernel.
#[cutile::module]
pub mod through {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_through<
        E: ElementType,
        const C: i32,
        const K: i32,
        const BV: i32,
        const L: i32,
        const VL: i32,
    >(
        k: *mut E,
        gvec: *mut f32,
        rk: *mut f32,
        tm: *mut E,
        seqs: *mut i32,
        ha: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        nseg: i32,
        seg: i32,
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
        let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(k, first, nb, len, h) };
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let rkv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let mv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let av: Tensor<f32, { [-1, K, K] }> = unsafe { mats_f32::<K, K>(ha, b * nseg * hv) };
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let rkp: Partition<f32, { [1, 1, C] }> = rkv.partition(const_shape![1, 1, C]);
        let mp: Partition<E, { [1, C, C] }> = mv.partition(const_shape![1, C, C]);
        let mut ap: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { av.partition_full_mut(const_shape![1, K, BV]) };
        let ir: Tile<i32, { [K] }> = iota(const_shape![K]);
        let ic: Tile<i32, { [BV] }> = iota(const_shape![BV]);
        let ic: Tile<i32, { [BV] }> = ic + broadcast_scalar(iv * BV, const_shape![BV]);
        let on: Tile<bool, { [K, BV] }> = eq_tile(
            ir.reshape(const_shape![K, 1]).broadcast(const_shape![K, BV]),
            ic.reshape(const_shape![1, BV]).broadcast(const_shape![K, BV]),
        );
        let one: Tile<f32, { [K, BV] }> = constant(1.0f32, const_shape![K, BV]);
        let none: Tile<f32, { [K, BV] }> = constant(0.0f32, const_shape![K, BV]);
        let mut s: Tile<f32, { [K, BV] }> = select(on, one, none);
        for i in i0..i1 {
            let n: i32 = (n0 + i) * hv + ih;
            let tk: Tile<E, { [C, K] }> =
                kp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let tt: Tile<E, { [C, C] }> = mp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C, C]);
            let be: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let eg: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 1i32, 0i32]).reshape(const_shape![C]);
            let er: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 2i32, 0i32]).reshape(const_shape![C]);
            let tr: Tile<f32, { [C] }> = rkp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let el: Tile<f32, { [1] }> = extract(eg, [scalar_to_tile(C - 1i32)]);
            let zo: Tile<f32, { [C, BV] }> = constant(0.0f32, const_shape![C, BV]);
            let sb: Tile<E, { [K, BV] }> = convert_tile(s);
            let ks: Tile<f32, { [C, BV] }> = mma(tk, sb, zo);
            let ke: Tile<f32, { [C] }> = tr * eg * be;
            let x: Tile<E, { [C, BV] }> = convert_tile(zo - ks * col::<C, BV>(ke));
            let u: Tile<f32, { [C, BV] }> = mma(tt, x, zo);
            let kl: Tile<f32, { [C] }> = tr * er;
            let ul: Tile<E, { [C, BV] }> = convert_tile(u * col::<C, BV>(kl));
            s = s * el.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
            s = mma(tk.transpose(), ul, s);
        }
        unsafe { ap.store_unchecked(s.reshape(const_shape![1, K, BV]), [z * hv + ih, 0i32, iv]) };
    }
}
