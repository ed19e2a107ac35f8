//! Delta rule backward, all chunks at once: the gradients of the inputs, from what the two serial passes left.
//!
//! With S the state before the chunk, dS the gradient of the state after it, U and dX as there, hats for normalised rows,
//! `A = scale tril(dO U^T) e^(G_i - G_j)`, `B = -tril(dX U^T, -1) e^(G_i - G_j)`:
//! `dq^ = scale e^G dO S^T + A k^`, `E = B k^ - e^G dX S^T`, `W = e^(G_last - G) U dS^T + A^T q^ + (beta B)^T k^`,
//! `dk^ = beta E + W`, `dv = beta dX`, `dbeta = dX . v + k^ . E`, `dG = q^ . dq^ + beta k^ . E - k^ . W` plus, on every row,
//! the gradient of `G_last`; dg is the reverse cumulative sum of dG in the chunk. As in `decay_bwd`, pairs of tokens enter dG once, in f32, and without those
//! of a token with itself. Normalisation: `dq = r (dq^ - q^ (q^ . dq^))`.
//!
//! Shapes: q, k `[B, T, H, K]`; v, d_o, dv `[B, T, HV, V]`; dq, dk `[B, T, HV, K]` (summed over a group's heads by
//! `group_sum`); dg, dbeta f32 `[B, T, HV]`; hs, dh `[NC, HV, K, V]`; us, dx `[NC, HV, C, V]`; gvec, rk, rq, pm as in
//! `delta_fwd`.
//! Grid: `(HV, ceil(T/C), B)`; packed: `(HV, NC, 1)` with chunks as in `delta_intra`.

/// Kernel.
#[cutile::module]
pub mod bwd {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_bwd<
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
        gvec: *mut f32,
        rk: *mut f32,
        rq: *mut f32,
        pm: *mut E,
        hs: *mut E,
        us: *mut E,
        dh: *mut E,
        dx: *mut E,
        chunks: *mut i32,
        dq: *mut E,
        dk: *mut E,
        dv: *mut E,
        dg: *mut f32,
        dbeta: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        norm: i32,
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
        let dgv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(dg, first, nb, len, hv) };
        let dbv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(dbeta, first, nb, len, hv) };
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let rkv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let rqv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rq, nc * hv) };
        let pmv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let hsv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(hs, nc * hv) };
        let dhv: Tensor<E, { [-1, K, V] }> = unsafe { mats::<E, K, V>(dh, nc * hv) };
        let usv: Tensor<E, { [-1, C, V] }> = unsafe { mats::<E, C, V>(us, nc * hv) };
        let dxv: Tensor<E, { [-1, C, V] }> = unsafe { mats::<E, C, V>(dx, nc * hv) };
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let vp: Partition<E, { [1, C, 1, BV] }> = vv.partition(const_shape![1, C, 1, BV]);
        let op: Partition<E, { [1, C, 1, BV] }> = ov.partition(const_shape![1, C, 1, BV]);
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let rkp: Partition<f32, { [1, 1, C] }> = rkv.partition(const_shape![1, 1, C]);
        let rqp: Partition<f32, { [1, 1, C] }> = rqv.partition(const_shape![1, 1, C]);
        let pmp: Partition<E, { [1, C, C] }> = pmv.partition(const_shape![1, C, C]);
        let hp: Partition<E, { [1, K, BV] }> = hsv.partition(const_shape![1, K, BV]);
        let dhp: Partition<E, { [1, K, BV] }> = dhv.partition(const_shape![1, K, BV]);
        let up: Partition<E, { [1, C, BV] }> = usv.partition(const_shape![1, C, BV]);
        let xp: Partition<E, { [1, C, BV] }> = dxv.partition(const_shape![1, C, BV]);
        let mut dqp: PartitionMut<E, { [1, C, 1, K] }> =
            unsafe { dqv.partition_full_mut(const_shape![1, C, 1, K]) };
        let mut dkp: PartitionMut<E, { [1, C, 1, K] }> =
            unsafe { dkv.partition_full_mut(const_shape![1, C, 1, K]) };
        let mut dvp: PartitionMut<E, { [1, C, 1, BV] }> =
            unsafe { dvv.partition_full_mut(const_shape![1, C, 1, BV]) };
        let mut dgp: PartitionMut<f32, { [1, C, 1] }> =
            unsafe { dgv.partition_full_mut(const_shape![1, C, 1]) };
        let mut dbp: PartitionMut<f32, { [1, C, 1] }> =
            unsafe { dbv.partition_full_mut(const_shape![1, C, 1]) };
        let be: Tile<f32, { [C] }> = fp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let eg: Tile<f32, { [C] }> = fp.load([n, 1i32, 0i32]).reshape(const_shape![C]);
        let fq_r: Tile<f32, { [C] }> = rqp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let fk_r: Tile<f32, { [C] }> = rkp.load([n, 0i32, 0i32]).reshape(const_shape![C]);
        let gc: Tile<f32, { [C] }> = fp.load([n, 3i32, 0i32]).reshape(const_shape![C]);
        let gl: Tile<f32, { [1] }> = extract(gc, [scalar_to_tile(C - 1i32)]);
        let er: Tile<f32, { [C] }> = fp.load([n, 2i32, 0i32]).reshape(const_shape![C]);
        // Three passes over the blocks of V: the C x C products, then dq, then dk; held at once, their sums would not fit
        // the registers. What is read twice comes from L2 the second time.
        let nv: i32 = V / BV;
        let mut pa: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let mut la: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let mut vx: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        for j in 0i32..nv {
            let to: Tile<E, { [C, BV] }> = op.load([ib, i, ih, j]).reshape(const_shape![C, BV]);
            let tu: Tile<E, { [C, BV] }> = up.load([n, 0i32, j]).reshape(const_shape![C, BV]);
            let tx: Tile<E, { [C, BV] }> = xp.load([n, 0i32, j]).reshape(const_shape![C, BV]);
            let tv: Tile<E, { [C, BV] }> = vp.load([ib, i, ih, j]).reshape(const_shape![C, BV]);
            let ut: Tile<E, { [BV, C] }> = tu.transpose();
            pa = mma(to, ut, pa);
            la = mma(tx, ut, la);
            let xf: Tile<f32, { [C, BV] }> = convert_tile(tx);
            let vf: Tile<f32, { [C, BV] }> = convert_tile(tv);
            let xr: Tile<f32, { [C] }> = reduce_sum(xf * vf, 1i32);
            vx = vx + xr.reshape(const_shape![C]);
            let dvb: Tile<E, { [C, BV] }> = convert_tile(xf * col::<C, BV>(be));
            unsafe { dvp.store_unchecked(dvb.reshape(const_shape![1, C, 1, BV]), [ib, i, ih, j]) };
        }
        let tq: Tile<E, { [C, K] }> = qp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tk: Tile<E, { [C, K] }> = kp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let strict: Tile<bool, { [C, C] }> = below::<C>();
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let zc: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
        let d: Tile<f32, { [C, C] }> = decay::<C>(gc, m).reshape(const_shape![C, C]);
        // A with the row factor of k on its columns (for dq^) and that of q on its rows (for W)
        let a: Tile<f32, { [C, C] }> = pa.reshape(const_shape![C, C]) * d * col::<C, C>(sc);
        let a_k: Tile<E, { [C, C] }> = convert_tile(a * row::<C, C>(fk_r));
        let a_q: Tile<E, { [C, C] }> = convert_tile(a * col::<C, C>(fq_r));
        let l: Tile<f32, { [C, C] }> = select(strict, la.reshape(const_shape![C, C]) * d, z);
        let bm: Tile<f32, { [C, C] }> = z - l;
        let b_k: Tile<E, { [C, C] }> = convert_tile(bm * row::<C, C>(fk_r));
        let b_b: Tile<E, { [C, C] }> = convert_tile(bm * col::<C, C>(be * fk_r));

        let kt: Tile<E, { [K, C] }> = tk.transpose();
        let kk: Tile<f32, { [C, C] }> = mma(tk, kt, z);
        let tp: Tile<E, { [C, C] }> = pmp.load([n, 0i32, 0i32]).reshape(const_shape![C, C]);
        let pf: Tile<f32, { [C, C] }> = convert_tile(tp);
        let first: Tile<f32, { [C, C] }> = pa.reshape(const_shape![C, C]) * pf;
        let second: Tile<f32, { [C, C] }> = bm * kk.reshape(const_shape![C, C]) * col::<C, C>(be * fk_r);
        let pairs: Tile<f32, { [C, C] }> = select(strict, first + second * row::<C, C>(fk_r), z);
        let gives: Tile<f32, { [C] }> = reduce_sum(pairs, 1i32);
        let takes: Tile<f32, { [C] }> = reduce_sum(pairs, 0i32);
        let moved: Tile<f32, { [C] }> = gives.reshape(const_shape![C]) - takes.reshape(const_shape![C]);

        let mut aq: Tile<f32, { [C, K] }> = constant(0.0f32, const_shape![C, K]);
        for j in 0i32..nv {
            let to: Tile<E, { [C, BV] }> = op.load([ib, i, ih, j]).reshape(const_shape![C, BV]);
            let th: Tile<E, { [K, BV] }> = hp.load([n, 0i32, j]).reshape(const_shape![K, BV]);
            aq = mma(to, th.transpose(), aq);
        }
        let aq: Tile<f32, { [C, K] }> = aq.reshape(const_shape![C, K]) * col::<C, K>(eg * sc);
        let fq: Tile<f32, { [C, K] }> = convert_tile(tq);
        let fq: Tile<f32, { [C, K] }> = fq * col::<C, K>(fq_r);
        let far_q: Tile<f32, { [C] }> = reduce_sum(aq * fq, 1i32);
        let far_q: Tile<f32, { [C] }> = far_q.reshape(const_shape![C]);
        let aq: Tile<f32, { [C, K] }> = mma(a_k, tk, aq);
        let dot_q: Tile<f32, { [C] }> = reduce_sum(aq * fq, 1i32);
        let dot_q: Tile<f32, { [C] }> = dot_q.reshape(const_shape![C]);
        let mut cq: Tile<f32, { [C] }> = zc;
        if norm == 1i32 {
            cq = dot_q;
        }
        let dqo: Tile<E, { [C, K] }> = convert_tile((aq - fq * col::<C, K>(cq)) * col::<C, K>(fq_r));
        unsafe { dqp.store_unchecked(dqo.reshape(const_shape![1, C, 1, K]), [ib, i, ih, 0i32]) };

        let mut ak: Tile<f32, { [C, K] }> = constant(0.0f32, const_shape![C, K]);
        let mut ae: Tile<f32, { [C, K] }> = constant(0.0f32, const_shape![C, K]);
        let mut hd: Tile<f32, { [K] }> = constant(0.0f32, const_shape![K]);
        for j in 0i32..nv {
            let tu: Tile<E, { [C, BV] }> = up.load([n, 0i32, j]).reshape(const_shape![C, BV]);
            let tx: Tile<E, { [C, BV] }> = xp.load([n, 0i32, j]).reshape(const_shape![C, BV]);
            let th: Tile<E, { [K, BV] }> = hp.load([n, 0i32, j]).reshape(const_shape![K, BV]);
            let td: Tile<E, { [K, BV] }> = dhp.load([n, 0i32, j]).reshape(const_shape![K, BV]);
            ae = mma(tx, th.transpose(), ae);
            ak = mma(tu, td.transpose(), ak);
            let hf: Tile<f32, { [K, BV] }> = convert_tile(th);
            let df: Tile<f32, { [K, BV] }> = convert_tile(td);
            let hr: Tile<f32, { [K] }> = reduce_sum(hf * df, 1i32);
            hd = hd + hr.reshape(const_shape![K]);
        }
        let fk: Tile<f32, { [C, K] }> = convert_tile(tk);
        let fk: Tile<f32, { [C, K] }> = fk * col::<C, K>(fk_r);
        let ae: Tile<f32, { [C, K] }> = ae.reshape(const_shape![C, K]) * col::<C, K>(zc - eg);
        let far_e: Tile<f32, { [C] }> = reduce_sum(ae * fk, 1i32);
        let far_e: Tile<f32, { [C] }> = be * far_e.reshape(const_shape![C]);
        let ae: Tile<f32, { [C, K] }> = mma(b_k, tk, ae);
        let ak: Tile<f32, { [C, K] }> = ak.reshape(const_shape![C, K]) * col::<C, K>(er);
        let kl: Tile<f32, { [C] }> = reduce_sum(ak * fk, 1i32);
        let kls: Tile<f32, { [] }> = reduce_sum(kl.reshape(const_shape![C]), 0i32);
        let ak: Tile<f32, { [C, K] }> = mma(a_q.transpose(), tq, ak);
        let ak: Tile<f32, { [C, K] }> = mma(b_b.transpose(), tk, ak);
        let dot_e: Tile<f32, { [C] }> = reduce_sum(ae * fk, 1i32);
        let dot_w: Tile<f32, { [C] }> = reduce_sum(ak * fk, 1i32);
        let dot_e: Tile<f32, { [C] }> = dot_e.reshape(const_shape![C]);
        let dot_w: Tile<f32, { [C] }> = dot_w.reshape(const_shape![C]);
        let db: Tile<f32, { [C] }> = vx + dot_e;
        unsafe { dbp.store_unchecked(db.reshape(const_shape![1, C, 1]), [ib, i, ih]) };
        let hds: Tile<f32, { [] }> = reduce_sum(hd, 0i32);
        let el: Tile<f32, { [1] }> = exp2(gl, ftz::Enabled);
        let last: Tile<f32, { [1] }> = hds.reshape(const_shape![1]) * el + kls.reshape(const_shape![1]);
        let bde: Tile<f32, { [C] }> = be * dot_e;
        let dgt: Tile<f32, { [C] }> = far_q + far_e - kl.reshape(const_shape![C]) + moved;
        let dgi: Tile<f32, { [C] }> = scan_sum(dgt, 0i32, reverse::Reverse, 0.0f32);
        let dgi: Tile<f32, { [C] }> = dgi.reshape(const_shape![C]) + last.broadcast(const_shape![C]);
        unsafe { dgp.store_unchecked(dgi.reshape(const_shape![1, C, 1]), [ib, i, ih]) };
        let dkh: Tile<f32, { [C, K] }> = ae * col::<C, K>(be) + ak;
        let mut ck: Tile<f32, { [C] }> = zc;
        if norm == 1i32 {
            ck = bde + dot_w;
        }
        let dko: Tile<E, { [C, K] }> = convert_tile((dkh - fk * col::<C, K>(ck)) * col::<C, K>(fk_r));
        unsafe { dkp.store_unchecked(dko.reshape(const_shape![1, C, 1, K]), [ib, i, ih, 0i32]) };
    }
}
