//! Delta rule, the serial pass over a sequence's chunks: outputs, or what the backward needs, or both.
//!
//! `Y = V - e^G K S`, `U = T (beta Y)`, `O = scale e^G Q S + P U`, `S <- e^(G_last) S + K^T (e^(G_last - G) U)`; T, P and
//! the rows' factors as in `delta_intra`. `OUT` = 1 writes o; `ST` = 0 leaves out the code for h0 and ht; `SAVE` = 1 writes the state before each chunk (hs, in the
//! inputs' type) and U (us).
//!
//! Shapes: q, k `[B, T, H, K]`; v, o `[B, T, HV, V]`; gvec from `delta_gates`; rk, rq, tm, pm from `delta_intra`; hs `[NC, HV, K, V]`; us
//! `[NC, HV, C, V]`; h0, ht f32 `[B * nseg, HV, K, V]`. A sequence may be cut into `nseg` segments of `seg` chunks, each
//! with a state of its own to start from. Grid: `(V / BV, HV, B * nseg)`; packed: B is the number of sequences and seqs
//! i32 `[B, 4]` = (first token, length, first chunk, 0).

/// Kernel.
#[cutile::module]
pub mod fwd {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_fwd<
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
        gvec: *mut f32,
        rk: *mut f32,
        rq: *mut f32,
        tm: *mut E,
        pm: *mut E,
        seqs: *mut i32,
        h0: *mut f32,
        o: *mut E,
        hs: *mut E,
        us: *mut E,
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
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let rkv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let rqv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rq, nc * hv) };
        let mv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let pv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let hsv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(hs, nc * hv) };
        let usv: Tensor<E, { [-1, C, V] }> = unsafe { mats::<E, C, V>(us, nc * hv) };
        let h0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(h0, b * nseg * hv) };
        let htv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(ht, b * nseg * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let vp: Partition<E, { [1, C, 1, BV] }> = vv.partition(const_shape![1, C, 1, BV]);
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let rkp: Partition<f32, { [1, 1, C] }> = rkv.partition(const_shape![1, 1, C]);
        let rqp: Partition<f32, { [1, 1, C] }> = rqv.partition(const_shape![1, 1, C]);
        let mp: Partition<E, { [1, C, C] }> = mv.partition(const_shape![1, C, C]);
        let pp: Partition<E, { [1, C, C] }> = pv.partition(const_shape![1, C, C]);
        let h0p: Partition<f32, { [1, K, BV] }> = h0v.partition(const_shape![1, K, BV]);
        let mut op: PartitionMut<E, { [1, C, 1, BV] }> =
            unsafe { ov.partition_full_mut(const_shape![1, C, 1, BV]) };
        let mut hp: PartitionMut<E, { [1, K, BV] }> =
            unsafe { hsv.partition_full_mut(const_shape![1, K, BV]) };
        let mut up: PartitionMut<E, { [1, C, BV] }> =
            unsafe { usv.partition_full_mut(const_shape![1, C, BV]) };
        let mut htp: PartitionMut<f32, { [1, K, BV] }> =
            unsafe { htv.partition_full_mut(const_shape![1, K, BV]) };
        let mut s: Tile<f32, { [K, BV] }> = constant(0.0f32, const_shape![K, BV]);
        if ST == 1i32 {
            if has_h0 == 1i32 {
                s = h0p.load([z * hv + ih, 0i32, iv]).reshape(const_shape![K, BV]);
            }
        }
        for i in i0..i1 {
            let n: i32 = (n0 + i) * hv + ih;
            let tk: Tile<E, { [C, K] }> =
                kp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let tv: Tile<E, { [C, BV] }> =
                vp.load_pipelined::<L>([ib, i, ih, iv]).reshape(const_shape![C, BV]);
            let tt: Tile<E, { [C, C] }> = mp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C, C]);
            let be: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let eg: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 1i32, 0i32]).reshape(const_shape![C]);
            let er: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 2i32, 0i32]).reshape(const_shape![C]);
            let tr: Tile<f32, { [C] }> = rkp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let ke: Tile<f32, { [C] }> = tr * eg;
            let kl: Tile<f32, { [C] }> = tr * er;
            let el: Tile<f32, { [1] }> = extract(eg, [scalar_to_tile(C - 1i32)]);
            let sb: Tile<E, { [K, BV] }> = convert_tile(s);
            let zo: Tile<f32, { [C, BV] }> = constant(0.0f32, const_shape![C, BV]);
            let ks: Tile<f32, { [C, BV] }> = mma(tk, sb, zo);
            let vf: Tile<f32, { [C, BV] }> = convert_tile(tv);
            let y: Tile<f32, { [C, BV] }> = vf - ks * col::<C, BV>(ke);
            let x: Tile<E, { [C, BV] }> = convert_tile(y * col::<C, BV>(be));
            let u: Tile<f32, { [C, BV] }> = mma(tt, x, zo);
            let ub: Tile<E, { [C, BV] }> = convert_tile(u);
            if SAVE == 1i32 {
                unsafe { hp.store_unchecked(sb.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
                unsafe { up.store_unchecked(ub.reshape(const_shape![1, C, BV]), [n, 0i32, iv]) };
            }
            if OUT == 1i32 {
                let tq: Tile<E, { [C, K] }> =
                    qp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
                let tp: Tile<E, { [C, C] }> =
                    pp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C, C]);
                let tq_: Tile<f32, { [C] }> =
                    rqp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
                let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
                let qe: Tile<f32, { [C] }> = tq_ * eg * sc;
                let oi: Tile<f32, { [C, BV] }> = mma(tq, sb, zo);
                let oi: Tile<f32, { [C, BV] }> = oi * col::<C, BV>(qe);
                let oi: Tile<f32, { [C, BV] }> = mma(tp, ub, oi);
                let ob: Tile<E, { [C, BV] }> = convert_tile(oi);
                unsafe { op.store_unchecked(ob.reshape(const_shape![1, C, 1, BV]), [ib, i, ih, iv]) };
            }
            let ul: Tile<E, { [C, BV] }> = convert_tile(u * col::<C, BV>(kl));
            s = s * el.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
            s = mma(tk.transpose(), ul, s);
        }
        if ST == 1i32 {
            if has_ht == 1i32 {
                unsafe { htp.store_unchecked(s.reshape(const_shape![1, K, BV]), [z * hv + ih, 0i32, iv]) };
            }
        }
    }
}
