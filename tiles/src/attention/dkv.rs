//! Attention backward for keys: with p and delta as in `attention_dq`, dv_j = sum_i p_ij do_i and dk_j = scale sum_i p_ij (do_i . v_j - delta_i) q_i,
//! over the queries of all heads of the group, in order.
//!
//! Shapes as in `attention_dq`; dk, dv like k; slots of `SL` queries (BM there), read here BM at a time. Grid: `(ceil(Tk / BN), H, B)`, blocks
//! with most queries first; `VL` = 1: `(blocks, H, 1)`.

/// Kernel.
#[cutile::module]
pub mod dkv {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn attention_dkv<
        E: ElementType,
        const D: i32,
        const SL: i32,
        const BM: i32,
        const BN: i32,
        const L: i32,
        const VL: i32,
    >(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        table: *mut i32,
        d_o: *mut E,
        lse: *mut f32,
        delta: *mut f32,
        dk: *mut E,
        dv: *mut E,
        b: i32,
        t: i32,
        tk: i32,
        hq: i32,
        h: i32,
        count: i32,
        blocks: i32,
        causal: i32,
        window: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let ik: i32 = pid.1;
        let group: i32 = hq / h;
        let mut ib: i32 = pid.2;
        let mut j: i32 = pid.0;
        let mut slot: i32 = ib * ceil_div(t, SL);
        let mut batch: i32 = b;
        let mut q0: i32 = 0i32;
        let mut k0: i32 = 0i32;
        let mut nq: i32 = t;
        let mut nk: i32 = tk;
        if VL == 1i32 {
            q0 = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32) };
            nq = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32 + 1i32) };
            k0 = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32 + 2i32) };
            nk = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32 + 3i32) };
            j = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32 + 4i32) };
            slot = unsafe { int_at(table, blocks * 8i32, pid.0 * 8i32 + 5i32) };
            ib = 0i32;
            batch = 1i32;
        }
        let qv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(q, q0, batch, nq, hq) };
        let gv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(d_o, q0, batch, nq, hq) };
        let kv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(k, k0, batch, nk, h) };
        let vv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(v, k0, batch, nk, h) };
        let dkv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(dk, k0, batch, nk, h) };
        let dvv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(dv, k0, batch, nk, h) };
        let lv: Tensor<f32, { [-1, 1, SL] }> = unsafe { mats_f32::<1, SL>(lse, count * hq) };
        let ev: Tensor<f32, { [-1, 1, SL] }> = unsafe { mats_f32::<1, SL>(delta, count * hq) };
        let qp: Partition<E, { [1, BM, 1, D] }> = qv.partition(const_shape![1, BM, 1, D]);
        let gp: Partition<E, { [1, BM, 1, D] }> = gv.partition(const_shape![1, BM, 1, D]);
        let kp: Partition<E, { [1, BN, 1, D] }> = kv.partition(const_shape![1, BN, 1, D]);
        let vp: Partition<E, { [1, BN, 1, D] }> = vv.partition(const_shape![1, BN, 1, D]);
        let lp: Partition<f32, { [1, 1, BM] }> = lv.partition(const_shape![1, 1, BM]);
        let ep: Partition<f32, { [1, 1, BM] }> = ev.partition(const_shape![1, 1, BM]);
        let mut dkp: PartitionMut<E, { [1, BN, 1, D] }> = unsafe { dkv.partition_full_mut(const_shape![1, BN, 1, D]) };
        let mut dvp: PartitionMut<E, { [1, BN, 1, D] }> = unsafe { dvv.partition_full_mut(const_shape![1, BN, 1, D]) };
        // Blocks of queries: low..hi see at least one of the keys, full0..full1 all of them.
        let off: i32 = nk - nq;
        let first: i32 = j * BN - off;
        let mut low: i32 = 0i32;
        let mut hi: i32 = ceil_div(nq, BM);
        let mut full0: i32 = 0i32;
        let mut full1: i32 = hi;
        if causal == 1i32 {
            low = max(first, 0i32) / BM;
            hi = min(hi, ceil_div(max(first + BN - 1i32 + window, 0i32), BM));
            full0 = ceil_div(max(first + BN - 1i32, 0i32), BM);
            full1 = max(first + window, 0i32) / BM;
        }
        let low: i32 = min(low, hi);
        let full0: i32 = min(max(full0, low), hi);
        let full1: i32 = min(max(full1, full0), hi);
        let whole: i32 = full1 - full0;
        let before: i32 = full0 - low;
        let part: i32 = before + hi - full1;
        let tk: Tile<E, { [BN, D] }> = kp.load([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
        let tv: Tile<E, { [BN, D] }> = vp.load([ib, j, ik, 0i32]).reshape(const_shape![BN, D]);
        let c: f32 = scale * 1.4426950408889634f32;
        let cs: Tile<f32, { [BN, BM] }> = broadcast_scalar(c, const_shape![BN, BM]);
        let z: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        let zm: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let mut ak: Tile<f32, { [BN, D] }> = constant(0.0f32, const_shape![BN, D]);
        let mut av: Tile<f32, { [BN, D] }> = constant(0.0f32, const_shape![BN, D]);
        for n in 0i32..whole * group {
            let g: i32 = n / whole;
            let i: i32 = full0 + n - g * whole;
            let ih: i32 = ik * group + g;
            let at: i32 = (slot + i * BM / SL) * hq + ih;
            let of: i32 = i - i * BM / SL * (SL / BM);
            let tq: Tile<E, { [BM, D] }> = qp.load_pipelined::<L>([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
            let tg: Tile<E, { [BM, D] }> = gp.load_pipelined::<L>([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
            let le: Tile<f32, { [BM] }> = lp.load_pipelined::<L>([at, 0i32, of]).reshape(const_shape![BM]);
            let de: Tile<f32, { [BM] }> = ep.load_pipelined::<L>([at, 0i32, of]).reshape(const_shape![BM]);
            let shift: Tile<f32, { [BM] }> = zm - le;
            let s: Tile<f32, { [BN, BM] }> = mma(tk, tq.transpose(), z);
            let dp: Tile<f32, { [BN, BM] }> = mma(tv, tg.transpose(), z);
            let x: Tile<f32, { [BN, BM] }> = fma(s, cs, row::<BN, BM>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BN, BM] }> = exp2(x, ftz::Enabled);
            let pe: Tile<E, { [BN, BM] }> = convert_tile(p);
            av = mma(pe, tg, av);
            let ds: Tile<f32, { [BN, BM] }> = p * (dp - row::<BN, BM>(de));
            let dse: Tile<E, { [BN, BM] }> = convert_tile(ds);
            ak = mma(dse, tq, ak);
        }
        let rm: Tile<i32, { [BM] }> = iota(const_shape![BM]);
        let rn: Tile<i32, { [BN] }> = iota(const_shape![BN]);
        let rows: Tile<i32, { [BN, BM] }> = rm.reshape(const_shape![1, BM]).broadcast(const_shape![BN, BM]);
        let keys: Tile<i32, { [BN, BM] }> = rn.reshape(const_shape![BN, 1]).broadcast(const_shape![BN, BM]);
        for n in 0i32..part * group {
            let g: i32 = n / part;
            let r: i32 = n - g * part;
            let mut i: i32 = low + r;
            if r >= before {
                i = full1 + r - before;
            }
            let ih: i32 = ik * group + g;
            let at: i32 = (slot + i * BM / SL) * hq + ih;
            let of: i32 = i - i * BM / SL * (SL / BM);
            let tq: Tile<E, { [BM, D] }> = qp.load_pipelined::<L>([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
            let tg: Tile<E, { [BM, D] }> = gp.load_pipelined::<L>([ib, i, ih, 0i32]).reshape(const_shape![BM, D]);
            let le: Tile<f32, { [BM] }> = lp.load_pipelined::<L>([at, 0i32, of]).reshape(const_shape![BM]);
            let de: Tile<f32, { [BM] }> = ep.load_pipelined::<L>([at, 0i32, of]).reshape(const_shape![BM]);
            let shift: Tile<f32, { [BM] }> = zm - le;
            let s: Tile<f32, { [BN, BM] }> = mma(tk, tq.transpose(), z);
            let dp: Tile<f32, { [BN, BM] }> = mma(tv, tg.transpose(), z);
            let x: Tile<f32, { [BN, BM] }> = fma(s, cs, row::<BN, BM>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [BN, BM] }> = exp2(x, ftz::Enabled);
            // How far the query stands behind the key: 0..window is seen (all loops without a causal mask are whole).
            let away: Tile<i32, { [BN, BM] }> = rows - keys + broadcast_scalar(i * BM - first, const_shape![BN, BM]);
            let least: Tile<i32, { [BN, BM] }> = constant(0i32, const_shape![BN, BM]);
            let most: Tile<i32, { [BN, BM] }> = broadcast_scalar(window, const_shape![BN, BM]);
            let p: Tile<f32, { [BN, BM] }> = select(ge_tile(away, least), p, z);
            let p: Tile<f32, { [BN, BM] }> = select(lt_tile(away, most), p, z);
            let pe: Tile<E, { [BN, BM] }> = convert_tile(p);
            av = mma(pe, tg, av);
            let ds: Tile<f32, { [BN, BM] }> = p * (dp - row::<BN, BM>(de));
            let dse: Tile<E, { [BN, BM] }> = convert_tile(ds);
            ak = mma(dse, tq, ak);
        }
        let sc: Tile<f32, { [BN, D] }> = broadcast_scalar(scale, const_shape![BN, D]);
        let kb: Tile<E, { [BN, D] }> = convert_tile(ak * sc);
        let vb: Tile<E, { [BN, D] }> = convert_tile(av);
        unsafe { dkp.store_unchecked(kb.reshape(const_shape![1, BN, 1, D]), [ib, j, ik, 0i32]) };
        unsafe { dvp.store_unchecked(vb.reshape(const_shape![1, BN, 1, D]), [ib, j, ik, 0i32]) };
    }
}
