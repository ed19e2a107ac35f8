//! Attention forward: o_i = sum_j softmax_j(scale q_i k_j) v_j with a running maximum, and lse_i = log2 sum_j 2^(scale log2(e) q_i k_j).
//!
//! Keys j <= place of the query where `causal`, of them only the last `window`; `scale` > 0. A query that sees nothing has o = 0 and lse = 0, as has
//! a slot's unused row: backward masks the one and multiplies the other by zeros.
//!
//! Shapes: q, o `[B, Tq, HQ, D]`; k, v `[B, Tk, H, D]`; lse f32 `[slots, HQ, BM]`. Grid: `(ceil(Tq / BM), HQ, B)`, blocks with most keys first;
//! `VL` = 1: `(count, HQ, 1)` with count = slots.

/// Kernel.
#[cutile::module]
pub mod fwd {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn attention_fwd<E: ElementType, const D: i32, const BM: i32, const BN: i32, const L: i32, const VL: i32>(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        table: *mut i32,
        o: *mut E,
        lse: *mut f32,
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
        let lv: Tensor<f32, { [-1, 1, BM] }> = unsafe { mats_f32::<1, BM>(lse, count * hq) };
        let qp: Partition<E, { [1, BM, 1, D] }> = qv.partition(const_shape![1, BM, 1, D]);
        let kp: Partition<E, { [1, BN, 1, D] }> = kv.partition(const_shape![1, BN, 1, D]);
        let vp: Partition<E, { [1, BN, 1, D] }> = vv.partition(const_shape![1, BN, 1, D]);
        let mut op: PartitionMut<E, { [1, BM, 1, D] }> = unsafe { ov.partition_full_mut(const_shape![1, BM, 1, D]) };
        let mut lp: PartitionMut<f32, { [1, 1, BM] }> = unsafe { lv.partition_full_mut(const_shape![1, 1, BM]) };
        // Blocks of keys: low..hi are seen at all, full0..full1 by all queries of the block.
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
        let c: f32 = scale * 1.4426950408889634f32;
        let cm: Tile<f32, { [BM] }> = broadcast_scalar(c, const_shape![BM]);
        let cs: Tile<f32, { [BM, BN] }> = broadcast_scalar(c, const_shape![BM, BN]);
        let z: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        let zm: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let mut m: Tile<f32, { [BM] }> = constant(-1.0e30f32, const_shape![BM]);
        let mut l: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let mut acc: Tile<f32, { [BM, D] }> = constant(0.0f32, const_shape![BM, D]);
        for j in full0..full1 {
            let tk: Tile<E, { [BN, D] }> = kp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let s: Tile<f32, { [BM, BN] }> = mma(tq, tk.transpose(), z);
            let top: Tile<f32, { [BM] }> = reduce_max(s, 1i32);
            let new: Tile<f32, { [BM] }> = max_tile(m, top.reshape(const_shape![BM]));
            let shift: Tile<f32, { [BM] }> = zm - new * cm;
            let x: Tile<f32, { [BM, BN] }> = fma(s, cs, col::<BM, BN>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BM, BN] }> = exp2(x, ftz::Enabled);
            let a: Tile<f32, { [BM] }> = exp2((m - new) * cm, ftz::Enabled);
            let sum: Tile<f32, { [BM] }> = reduce_sum(p, 1i32);
            l = l * a + sum.reshape(const_shape![BM]);
            m = new;
            let pe: Tile<E, { [BM, BN] }> = convert_tile(p);
            let tv: Tile<E, { [BN, D] }> = vp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            acc = acc * col::<BM, D>(a);
            acc = mma(pe, tv, acc);
        }
        let none: Tile<f32, { [BM, BN] }> = constant(-2.0e30f32, const_shape![BM, BN]);
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
            let s: Tile<f32, { [BM, BN] }> = mma(tq, tk.transpose(), z);
            let at: Tile<i32, { [BM, BN] }> = cols + broadcast_scalar(j * BN, const_shape![BM, BN]);
            let mut upto: Tile<i32, { [BM, BN] }> = broadcast_scalar(nk, const_shape![BM, BN]);
            let mut from: Tile<i32, { [BM, BN] }> = constant(0i32, const_shape![BM, BN]);
            if causal == 1i32 {
                upto = min_tile(upto, rows + broadcast_scalar(place + 1i32, const_shape![BM, BN]));
                from = rows + broadcast_scalar(place + 1i32 - window, const_shape![BM, BN]);
            }
            let s: Tile<f32, { [BM, BN] }> = select(lt_tile(at, upto), s, none);
            let s: Tile<f32, { [BM, BN] }> = select(ge_tile(at, from), s, none);
            let top: Tile<f32, { [BM] }> = reduce_max(s, 1i32);
            let new: Tile<f32, { [BM] }> = max_tile(m, top.reshape(const_shape![BM]));
            let shift: Tile<f32, { [BM] }> = zm - new * cm;
            let x: Tile<f32, { [BM, BN] }> = fma(s, cs, col::<BM, BN>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BM, BN] }> = exp2(x, ftz::Enabled);
            let a: Tile<f32, { [BM] }> = exp2((m - new) * cm, ftz::Enabled);
            let sum: Tile<f32, { [BM] }> = reduce_sum(p, 1i32);
            l = l * a + sum.reshape(const_shape![BM]);
            m = new;
            let pe: Tile<E, { [BM, BN] }> = convert_tile(p);
            let tv: Tile<E, { [BN, D] }> = vp.load_pipelined::<L>([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
            acc = acc * col::<BM, D>(a);
            acc = mma(pe, tv, acc);
        }
        let one: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        let blind: Tile<bool, { [BM] }> = eq_tile(l, zm);
        let total: Tile<f32, { [BM] }> = select(blind, one, l);
        let inverse: Tile<f32, { [BM] }> = true_div(one, total);
        let acc: Tile<f32, { [BM, D] }> = acc * col::<BM, D>(inverse);
        let ob: Tile<E, { [BM, D] }> = convert_tile(acc);
        unsafe { op.store_unchecked(ob.reshape(const_shape![1, BM, 1, D]), [ib, i, ih, 0i32]) };
        let e: Tile<f32, { [BM] }> = m * cm + log2(total);
        let e: Tile<f32, { [BM] }> = select(blind, zm, e);
        let rest: Tile<i32, { [BM] }> = broadcast_scalar(nq - i * BM, const_shape![BM]);
        let e: Tile<f32, { [BM] }> = select(lt_tile(rm, rest), e, zm);
        unsafe { lp.store_unchecked(e.reshape(const_shape![1, 1, BM]), [slot * hq + ih, 0i32, 0i32]) };
    }
}
