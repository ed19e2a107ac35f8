//! Scalar decay, the serial pass over a sequence's chunks: outputs, or the states before each chunk, or both.
//!
//! With `G` the cumulative log-decay in the chunk: `O = scale (e^G Q S + tril(Q K^T e^(G_i - G_j)) V)`,
//! `S <- e^(G_last) S + K^T (e^(G_last - G) V)`. `OUT` = 1 writes o; `ST` = 0 leaves out the code for h0 and ht; `SAVE` = 1 writes hs.
//!
//! Shapes: q, k `[B, T, H, K]`; v, o `[B, T, HV, V]`; gc from `decay_cumsum`; hs `[NC, HV, K, V]` in the inputs' type; h0, ht f32
//! `[B * nseg, HV, K, V]`. Segments, grid and packing as in `delta_fwd`.

/// Kernel.
#[cutile::module]
pub mod fwd {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_fwd<
        E: ElementType,
        const C: i32,
        const K: i32,
        const V: i32,
        const BV: i32,
        const L: i32,
        const OUT: i32,
        const SAVE: i32,
        const ST: i32,
        const VL: i32,
    >(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        gc: *mut f32,
        seqs: *mut i32,
        h0: *mut f32,
        o: *mut E,
        hs: *mut E,
        ht: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        nseg: i32,
        seg: i32,
        has_h0: i32,
        has_ht: i32,
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
        let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(k, first, nb, len, h) };
        let vv: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(v, first, nb, len, hv) };
        let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(o, first, nb, len, hv) };
        let gv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(gc, nc * hv) };
        let hsv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(hs, nc * hv) };
        let h0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(h0, b * nseg * hv) };
        let htv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(ht, b * nseg * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let vp: Partition<E, { [1, C, 1, BV] }> = vv.partition(const_shape![1, C, 1, BV]);
        let gp: Partition<f32, { [1, 1, C] }> = gv.partition(const_shape![1, 1, C]);
        let h0p: Partition<f32, { [1, K, BV] }> = h0v.partition(const_shape![1, K, BV]);
        let mut op: PartitionMut<E, { [1, C, 1, BV] }> =
            unsafe { ov.partition_full_mut(const_shape![1, C, 1, BV]) };
        let mut hp: PartitionMut<E, { [1, K, BV] }> =
            unsafe { hsv.partition_full_mut(const_shape![1, K, BV]) };
        let mut htp: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { htv.partition_full_mut(const_shape![1, K, BV]) };
        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let mut s: Tile<f32, { [K, BV] }> = constant(0.0f32, const_shape![K, BV]);
        if ST == 1i32 {
            if has_h0 == 1i32 {
                s = h0p.load([z * hv + ih, 0i32, iv]).reshape(const_shape![K, BV]);
            }
        }
        for i in i0..i1 {
            let n: i32 = (n0 + i) * hv + ih;
            let tq: Tile<E, { [C, K] }> =
                qp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let tk: Tile<E, { [C, K] }> =
                kp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let tv: Tile<E, { [C, BV] }> =
                vp.load_pipelined::<L>([ib, i, ih, iv]).reshape(const_shape![C, BV]);
            let g: Tile<f32, { [C] }> = gp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
            let gl: Tile<f32, { [1] }> = extract(g, [scalar_to_tile(C - 1i32)]);
            let kt: Tile<E, { [K, C] }> = tk.transpose();
            let sb: Tile<E, { [K, BV] }> = convert_tile(s);
            if SAVE == 1i32 {
                unsafe { hp.store_unchecked(sb.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
            }
            if OUT == 1i32 {
                let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
                let a: Tile<f32, { [C, C] }> = mma(tq, kt, z);
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
            let er: Tile<f32, { [C] }> = exp2(gl.broadcast(const_shape![C]) - g, ftz::Enabled);
            let vf: Tile<f32, { [C, BV] }> = convert_tile(tv);
            let vs: Tile<E, { [C, BV] }> = convert_tile(vf * col::<C, BV>(er));
            let el: Tile<f32, { [1] }> = exp2(gl, ftz::Enabled);
            s = s * el.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
            s = mma(kt, vs, s);
        }
        if ST == 1i32 {
            if has_ht == 1i32 {
                unsafe { htp.store_unchecked(s.reshape(const_shape![1, K, BV]), [z * hv + ih, 0i32, iv]) };
            }
        }
    }
}
