//! Delta rule backward, the serial pass from the last chunk to the first: the gradient of the state after each chunk.
//!
//! With `dS` that gradient: `dU = e^(G_last - G) K dS + P^T dO`, `dX = T^T dU`,
//! `dS <- e^(G_last) dS + scale (e^G Q)^T dO - (e^G K)^T (beta dX)`. T, P and the row factors as in `delta_fwd`.
//!
//! Shapes: q, k `[B, T, H, K]`; d_o `[B, T, HV, V]`; dh `[NC, HV, K, V]` and dx `[NC, HV, C, V]` in the inputs' type; dht,
//! dh0 f32 `[B * nseg, HV, K, V]`. `ST` = 0 leaves out the code for dht and dh0. Segments, grid and packing as in `delta_fwd`.

/// Kernel.
#[cutile::module]
pub mod dstate {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_dstate<
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
        k: *mut E,
        d_o: *mut E,
        gvec: *mut f32,
        rk: *mut f32,
        rq: *mut f32,
        tm: *mut E,
        pm: *mut E,
        seqs: *mut i32,
        dht: *mut f32,
        dh: *mut E,
        dx: *mut E,
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
        let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(k, first, nb, len, h) };
        let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(d_o, first, nb, len, hv) };
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let rkv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let rqv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rq, nc * hv) };
        let mv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let pv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let dhv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(dh, nc * hv) };
        let dxv: Tensor<E, { [-1, C, V] }> = unsafe { mats::<E, C, V>(dx, nc * hv) };
        let dtv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(dht, b * nseg * hv) };
        let d0v: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(dh0, b * nseg * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let op: Partition<E, { [1, C, 1, BV] }> = ov.partition(const_shape![1, C, 1, BV]);
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let rkp: Partition<f32, { [1, 1, C] }> = rkv.partition(const_shape![1, 1, C]);
        let rqp: Partition<f32, { [1, 1, C] }> = rqv.partition(const_shape![1, 1, C]);
        let mp: Partition<E, { [1, C, C] }> = mv.partition(const_shape![1, C, C]);
        let pp: Partition<E, { [1, C, C] }> = pv.partition(const_shape![1, C, C]);
        let dtp: Partition<f32, { [1, K, BV] }> = dtv.partition(const_shape![1, K, BV]);
        let mut dhp: PartitionMut<E, { [1, K, BV] }> =
            unsafe { dhv.partition_full_mut(const_shape![1, K, BV]) };
        let mut dxp: PartitionMut<E, { [1, C, BV] }> =
            unsafe { dxv.partition_full_mut(const_shape![1, C, BV]) };
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
            let tk: Tile<E, { [C, K] }> =
                kp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let to: Tile<E, { [C, BV] }> =
                op.load_pipelined::<L>([ib, i, ih, iv]).reshape(const_shape![C, BV]);
            let tp: Tile<E, { [C, C] }> = pp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C, C]);
            let tt: Tile<E, { [C, C] }> = mp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C, C]);
            let tq: Tile<E, { [C, K] }> =
                qp.load_pipelined::<L>([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
            let be: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let eg: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 1i32, 0i32]).reshape(const_shape![C]);
            let er: Tile<f32, { [C] }> = fp.load_pipelined::<L>([n, 2i32, 0i32]).reshape(const_shape![C]);
            let tr: Tile<f32, { [C] }> = rkp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let ke: Tile<f32, { [C] }> = tr * eg;
            let rq_: Tile<f32, { [C] }> = rqp.load_pipelined::<L>([n, 0i32, 0i32]).reshape(const_shape![C]);
            let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
            let qe: Tile<f32, { [C] }> = rq_ * eg * sc;
            let kl: Tile<f32, { [C] }> = tr * er;
            let el: Tile<f32, { [1] }> = extract(eg, [scalar_to_tile(C - 1i32)]);
            let sb: Tile<E, { [K, BV] }> = convert_tile(s);
            unsafe { dhp.store_unchecked(sb.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
            let zo: Tile<f32, { [C, BV] }> = constant(0.0f32, const_shape![C, BV]);
            let du: Tile<f32, { [C, BV] }> = mma(tk, sb, zo);
            let du: Tile<f32, { [C, BV] }> = du * col::<C, BV>(kl);
            let du: Tile<f32, { [C, BV] }> = mma(tp.transpose(), to, du);
            let db: Tile<E, { [C, BV] }> = convert_tile(du);
            let x: Tile<f32, { [C, BV] }> = mma(tt.transpose(), db, zo);
            let xb: Tile<E, { [C, BV] }> = convert_tile(x);
            unsafe { dxp.store_unchecked(xb.reshape(const_shape![1, C, BV]), [n, 0i32, iv]) };
            let of: Tile<f32, { [C, BV] }> = convert_tile(to);
            let oq: Tile<E, { [C, BV] }> = convert_tile(of * col::<C, BV>(qe));
            let nk: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
            let nk: Tile<f32, { [C] }> = nk - ke * be;
            let w: Tile<E, { [C, BV] }> = convert_tile(x * col::<C, BV>(nk));
            s = s * el.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
            s = mma(tq.transpose(), oq, s);
            s = mma(tk.transpose(), w, s);
        }
        if ST == 1i32 {
            if has_dh0 == 1i32 {
                unsafe { d0p.store_unchecked(s.reshape(const_shape![1, K, BV]), [z * hv + ih, 0i32, iv]) };
            }
        }
    }
}
