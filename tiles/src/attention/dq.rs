//! Attention backward for queries: delta_i = o_i . do_i, p_ij = 2^(scale log2(e) q_i k_j - lse_i), dq_i = scale sum_j p_ij (do_i . v_j - delta_i) k_j.
//!
//! Shapes and grid as in `attention_fwd`; d_o, dq like q; delta f32 like lse, written here for `attention_dkv`.

/// Kernel.
#[cutile::module]
pub mod dq {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn attention_dq<E: ElementType, const D: i32, const BM: i32, const BN: i32, const L: i32, const VL: i32>(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        table: *mut i32,
        o: *mut E,
        d_o: *mut E,
        lse: *mut f32,
        dq: *mut E,
        delta: *mut f32,
        b: i32,
        t: i32,
        tk: i32,
        hq: i32,
        h: i32,
        count: i32,
        causal: i32,
        window: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let ih: i32 = pid.1;
        let ik: i32 = ih / (hq / h);
        let nb: i32 = ceil_div(t, BM);
        let mut ib: i32 = pid.2;
        let mut i: i32 = nb - 1i32 - pid.0;
        let mut slot: i32 = ib * nb + i;
        let mut batch: i32 = b;
        let mut q0: i32 = 0i32;
        let mut k0: i32 = 0i32;
        let mut nq: i32 = t;
        let mut nk: i32 = tk;
        if VL == 1i32 {
            q0 = unsafe { int_at(table, count * 8i32, pid.0 * 8i32) };
            nq = unsafe { int_at(table, count * 8i32, pid.0 * 8i32 + 1i32) };
            k0 = unsafe { int_at(table, count * 8i32, pid.0 * 8i32 + 2i32) };
            nk = unsafe { int_at(table, count * 8i32, pid.0 * 8i32 + 3i32) };
            i = unsafe { int_at(table, count * 8i32, pid.0 * 8i32 + 4i32) };
            slot = unsafe { int_at(table, count * 8i32, pid.0 * 8i32 + 5i32) };
            ib = 0i32;
            batch = 1i32;
        }
        let qv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(q, q0, batch, nq, hq) };
        let kv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(k, k0, batch, nk, h) };
        let vv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(v, k0, batch, nk, h) };
        let ov: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(o, q0, batch, nq, hq) };
        let gv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(d_o, q0, batch, nq, hq) };
        let dv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(dq, q0, batch, nq, hq) };
        let lv: Tensor<f32, { [-1, 1, BM] }> = unsafe { mats_f32::<1, BM>(lse, count * hq) };
        let ev: Tensor<f32, { [-1, 1, BM] }> = unsafe { mats_f32::<1, BM>(delta, count * hq) };
        let qp: Partition<E, { [1, BM, 1, D] }> = qv.partition(const_shape![1, BM, 1, D]);
        let kp: Partition<E, { [1, BN, 1, D] }> = kv.partition(const_shape![1, BN, 1, D]);
        let vp: Partition<E, { [1, BN, 1, D] }> = vv.partition(const_shape![1, BN, 1, D]);
        let op: Partition<E, { [1, BM, 1, D] }> = ov.partition(const_shape![1, BM, 1, D]);
        let gp: Partition<E, { [1, BM, 1, D] }> = gv.partition(const_shape![1, BM, 1, D]);
        let lp: Partition<f32, { [1, 1, BM] }> = lv.partition(const_shape![1, 1, BM]);
        let mut dp: PartitionMut<E, { [1, BM, 1, D] }> = unsafe { dv.partition_full_mut(const_shape![1, BM, 1, D]) };
        let mut ep: PartitionMut<f32, { [1, 1, BM] }> = unsafe { ev.partition_full_mut(const_shape![1, 1, BM]) };
        let place: i32 = i * BM + nk - nq;
        let mut end: i32 = nk;
        let mut low: i32 = 0i32;
        let mut full0: i32 = 0i32;
        let mut full1: i32 = nk / BN;
        if causal == 1i32 {
            end = max(min(place + BM, nk), 0i32);
            low = max(place - window + 1i32, 0i32) / BN;
            full0 = ceil_div(max(place + BM - window, 0i32), BN);
            full1 = min(full1, max(place + 1i32, 0i32) / BN);
        }
        let hi: i32 = ceil_div(end, BN);
        let full0: i32 = min(full0, hi);
        let full1: i32 = min(max(full1, full0), hi);
        let low: i32 = min(low, full0);
        let before: i32 = full0 - low;
        let masked: i32 = before + hi - full1;
        let tq: Tile<E, { [BM, D] }> = qp.load([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
        let tg: Tile<E, { [BM, D] }> = gp.load([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
        let to: Tile<E, { [BM, D] }> = op.load([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
        let gf: Tile<f32, { [BM, D] }> = convert_tile(tg);
        let of: Tile<f32, { [BM, D] }> = convert_tile(to);
        let de: Tile<f32, { [BM] }> = reduce_sum(gf * of, 1i32);
        let de: Tile<f32, { [BM] }> = de.reshape(const_shape![BM]);
        unsafe { ep.store_unchecked(de.reshape(const_shape![1, 1, BM]), [slot * hq + ih, 0i32, 0i32]) };
        let zm: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let le: Tile<f32, { [BM] }> = lp.load([slot * hq + ih, 0i32, 0i32]).reshape(const_shape![BM]);
        let shift: Tile<f32, { [BM] }> = zm - le;
        let c: f32 = scale * 1.4426950408889634f32;
        let cs: Tile<f32, { [BM, BN] }> = broadcast_scalar(c, const_shape![BM, BN]);
        let z: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        let mut acc: Tile<f32, { [BM, D] }> = constant(0.0f32, const_shape![BM, D]);
        for j in full0..full1 {
            let tk: Tile<E, { [BN, D] }> = kp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let tv: Tile<E, { [BN, D] }> = vp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let s: Tile<f32, { [BM, BN] }> = mma(tq, tk.transpose(), z);
            let g: Tile<f32, { [BM, BN] }> = mma(tg, tv.transpose(), z);
            let x: Tile<f32, { [BM, BN] }> = fma(s, cs, col::<BM, BN>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BM, BN] }> = exp2(x, ftz::Enabled);
            let ds: Tile<f32, { [BM, BN] }> = p * (g - col::<BM, BN>(de));
            let dse: Tile<E, { [BM, BN] }> = convert_tile(ds);
            acc = mma(dse, tk, acc);
        }
        let rm: Tile<i32, { [BM] }> = iota(const_shape![BM]);
        let rn: Tile<i32, { [BN] }> = iota(const_shape![BN]);
        let cols: Tile<i32, { [BM, BN] }> = rn.reshape(const_shape![1, BN]).broadcast(const_shape![BM, BN]);
        let rows: Tile<i32, { [BM, BN] }> = rm.reshape(const_shape![BM, 1]).broadcast(const_shape![BM, BN]);
        for n in 0i32..masked {
            let mut j: i32 = low + n;
            if n >= before {
                j = full1 + n - before;
            }
            let tk: Tile<E, { [BN, D] }> = kp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let tv: Tile<E, { [BN, D] }> = vp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let s: Tile<f32, { [BM, BN] }> = mma(tq, tk.transpose(), z);
            let g: Tile<f32, { [BM, BN] }> = mma(tg, tv.transpose(), z);
            let at: Tile<i32, { [BM, BN] }> = cols + broadcast_scalar(j * BN, const_shape![BM, BN]);
            let mut upto: Tile<i32, { [BM, BN] }> = broadcast_scalar(nk, const_shape![BM, BN]);
            let mut from: Tile<i32, { [BM, BN] }> = constant(0i32, const_shape![BM, BN]);
            if causal == 1i32 {
                upto = min_tile(upto, rows + broadcast_scalar(place + 1i32, const_shape![BM, BN]));
                from = rows + broadcast_scalar(place + 1i32 - window, const_shape![BM, BN]);
            }
            let x: Tile<f32, { [BM, BN] }> = fma(s, cs, col::<BM, BN>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BM, BN] }> = exp2(x, ftz::Enabled);
            let p: Tile<f32, { [BM, BN] }> = select(lt_tile(at, upto), p, z);
            let p: Tile<f32, { [BM, BN] }> = select(ge_tile(at, from), p, z);
            let ds: Tile<f32, { [BM, BN] }> = p * (g - col::<BM, BN>(de));
            let dse: Tile<E, { [BM, BN] }> = convert_tile(ds);
            acc = mma(dse, tk, acc);
        }
        let sc: Tile<f32, { [BM, D] }> = broadcast_scalar(scale, const_shape![BM, D]);
        let ob: Tile<E, { [BM, D] }> = convert_tile(acc * sc);
        unsafe { dp.store_unchecked(ob.reshape(const_shape![1, BM, 1, D]), [ib, i, ih, 0i32]) };
    }
}
