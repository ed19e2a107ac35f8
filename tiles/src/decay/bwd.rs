//! Scalar decay backward, all chunks at once: the gradients of the inputs from the states and their gradients.
//!
//! With S the state before the chunk, dS the gradient of the state after it, `A = scale tril(Q K^T e^(G_i - G_j))` and
//! `D = scale tril(dO V^T e^(G_i - G_j))`: `dQ = scale e^G dO S^T + D K`, `dK = e^(G_last - G) V dS^T + D^T Q`,
//! `dV = e^(G_last - G) K dS + A^T dO`; dg is the reverse cumulative sum in the chunk of `q . dq - k . dk`, plus the gradient of
//! `G_last` on every row (written where `has_dg`). What a pair of tokens adds to the one and takes from the other is computed once, in f32, and a token's pair with
//! itself is left out: as differences of rounded products they would outweigh the gradients of strong gates.
//!
//! Shapes: q, k `[B, T, H, K]`; v, d_o, dv `[B, T, HV, V]`; dq, dk `[B, T, HV, K]` (summed over a group's heads by `group_sum`); dg f32
//! `[B, T, HV]`; hs, dh `[NC, HV, K, V]`. Grid: `(HV, ceil(T/C), B)`; packed: `(HV, NC, 1)` with chunks as in `delta_intra`.

/// Kernel.
#[cutile::module]
pub mod bwd {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn decay_bwd<
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
        d_o: *mut E,
        gc: *mut f32,
        hs: *mut E,
        dh: *mut E,
        chunks: *mut i32,
        dq: *mut E,
        dk: *mut E,
        dv: *mut E,
        dg: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        has_dg: i32,
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
        let vv: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(v, first, nb, len, hv) };
        let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(d_o, first, nb, len, hv) };
        let dqv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(dq, first, nb, len, hv) };
        let dkv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(dk, first, nb, len, hv) };
        let dvv: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows_from::<E, V>(dv, first, nb, len, hv) };
        let gv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(gc, nc * hv) };
        let hsv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(hs, nc * hv) };
        let dhv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(dh, nc * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let vp: Partition<E, { [1, C, 1, BV] }> = vv.partition(const_shape![1, C, 1, BV]);
        let op: Partition<E, { [1, C, 1, BV] }> = ov.partition(const_shape![1, C, 1, BV]);
        let gp: Partition<f32, { [1, 1, C] }> = gv.partition(const_shape![1, 1, C]);
        let hp: Partition<E, { [1, K, BV] }> = hsv.partition(const_shape![1, K, BV]);
        let dhp: Partition<E, { [1, K, BV] }> = dhv.partition(const_shape![1, K, BV]);
        let mut dqp: PartitionMut<E, { [1, C, 1, K] }> =
            unsafe { dqv.partition_full_mut(const_shape![1, C, 1, K]) };
        let mut dkp: PartitionMut<E, { [1, C, 1, K] }> =
            unsafe { dkv.partition_full_mut(const_shape![1, C, 1, K]) };
        let mut dvp: PartitionMut<E, { [1, C, 1, BV] }> =
            unsafe { dvv.partition_full_mut(const_shape![1, C, 1, BV]) };
        let tq: Tile<E, { [C, K] }> = qp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tk: Tile<E, { [C, K] }> = kp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let g: Tile<f32, { [C] }> = gp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let gl: Tile<f32, { [1] }> = extract(g, [scalar_to_tile(C - 1i32)]);
        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let zo: Tile<f32, { [C, BV] }> = constant(0.0f32, const_shape![C, BV]);
        let sc: Tile<f32, { [C, C] }> = scale.broadcast(const_shape![C, C]);
        let er: Tile<f32, { [C] }> = exp2(gl.broadcast(const_shape![C]) - g, ftz::Enabled);
        let eg: Tile<f32, { [C] }> = exp2(g, ftz::Enabled) * scale.broadcast(const_shape![C]);
        let a: Tile<f32, { [C, C] }> = mma(tq, tk.transpose(), z).reshape(const_shape![C, C]) * sc;
        let a: Tile<f32, { [C, C] }> = a * decay::<C>(g, m);
        let at: Tile<E, { [C, C] }> = convert_tile(a.transpose());
        let mut aq: Tile<f32, { [C, K] }> = constant(0.0f32, const_shape![C, K]);
        let mut ak: Tile<f32, { [C, K] }> = constant(0.0f32, const_shape![C, K]);
        let mut ds: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let mut hd: Tile<f32, { [K] }> = constant(0.0f32, const_shape![K]);
        let nv: i32 = V / BV;
        for j in 0i32..nv {
            let tv: Tile<E, { [C, BV] }> = vp.load([ib, i, ih, j]).reshape(const_shape![C, BV]);
            let to: Tile<E, { [C, BV] }> = op.load([ib, i, ih, j]).reshape(const_shape![C, BV]);
            let th: Tile<E, { [K, BV] }> = hp.load([n, 0i32, j]).reshape(const_shape![K, BV]);
            let td: Tile<E, { [K, BV] }> = dhp.load([n, 0i32, j]).reshape(const_shape![K, BV]);
            ds = mma(to, tv.transpose(), ds);
            aq = mma(to, th.transpose(), aq);
            ak = mma(tv, td.transpose(), ak);
            let hf: Tile<f32, { [K, BV] }> = convert_tile(th);
            let df: Tile<f32, { [K, BV] }> = convert_tile(td);
            let hr: Tile<f32, { [K] }> = reduce_sum(hf * df, 1i32);
            hd = hd + hr.reshape(const_shape![K]);
            let x: Tile<f32, { [C, BV] }> = mma(tk, td, zo);
            let x: Tile<f32, { [C, BV] }> = x * col::<C, BV>(er);
            let x: Tile<E, { [C, BV] }> = convert_tile(mma(at, to, x));
            unsafe { dvp.store_unchecked(x.reshape(const_shape![1, C, 1, BV]), [ib, i, ih, j]) };
        }
        let pairs: Tile<f32, { [C, C] }> = select(below::<C>(), a * ds.reshape(const_shape![C, C]), z);
        let gives: Tile<f32, { [C] }> = reduce_sum(pairs, 1i32);
        let takes: Tile<f32, { [C] }> = reduce_sum(pairs, 0i32);
        let ds: Tile<f32, { [C, C] }> = ds.reshape(const_shape![C, C]) * sc;
        let ds: Tile<f32, { [C, C] }> = ds * decay::<C>(g, m);
        let dsb: Tile<E, { [C, C] }> = convert_tile(ds);
        let dst: Tile<E, { [C, C] }> = convert_tile(ds.transpose());
        let aq: Tile<f32, { [C, K] }> = aq.reshape(const_shape![C, K]) * col::<C, K>(eg);
        let ak: Tile<f32, { [C, K] }> = ak.reshape(const_shape![C, K]) * col::<C, K>(er);
        let fk: Tile<f32, { [C, K] }> = convert_tile(tk);
        let fq: Tile<f32, { [C, K] }> = convert_tile(tq);
        let kk: Tile<f32, { [C] }> = reduce_sum(ak * fk, 1i32);
        let qq: Tile<f32, { [C] }> = reduce_sum(aq * fq, 1i32);
        let kks: Tile<f32, { [] }> = reduce_sum(kk.reshape(const_shape![C]), 0i32);
        let hds: Tile<f32, { [] }> = reduce_sum(hd, 0i32);
        let aq: Tile<f32, { [C, K] }> = mma(dsb, tk, aq);
        let ak: Tile<f32, { [C, K] }> = mma(dst, tq, ak);
        if has_dg == 1i32 {
            let d1: Tile<f32, { [C] }> = qq.reshape(const_shape![C]) + gives.reshape(const_shape![C]);
            let d2: Tile<f32, { [C] }> = kk.reshape(const_shape![C]) + takes.reshape(const_shape![C]);
            let el: Tile<f32, { [1] }> = exp2(gl, ftz::Enabled);
            let last: Tile<f32, { [1] }> = hds.reshape(const_shape![1]) * el + kks.reshape(const_shape![1]);
            let dd: Tile<f32, { [C] }> = scan_sum(d1 - d2, 0i32, reverse::Reverse, 0.0f32);
            let d: Tile<f32, { [C] }> = dd.reshape(const_shape![C]) + last.broadcast(const_shape![C]);
            let dgv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(dg, first, nb, len, hv) };
            let mut dgp: PartitionMut<f32, { [1, C, 1] }> =
                unsafe { dgv.partition_full_mut(const_shape![1, C, 1]) };
            unsafe { dgp.store_unchecked(d.reshape(const_shape![1, C, 1]), [ib, i, ih]) };
        }
        let qb: Tile<E, { [C, K] }> = convert_tile(aq);
        let kb: Tile<E, { [C, K] }> = convert_tile(ak);
        unsafe { dqp.store_unchecked(qb.reshape(const_shape![1, C, 1, K]), [ib, i, ih, 0i32]) };
        unsafe { dkp.store_unchecked(kb.reshape(const_shape![1, C, 1, K]), [ib, i, ih, 0i32]) };
    }
}
