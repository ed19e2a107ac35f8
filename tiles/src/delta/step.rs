//! One or a few tokens of the recurrence, for decoding: the state is updated in place.
//!
//! For each token: `S <- e^g S`; with `ERASE` = 1 `u = beta (v - S^T k)`, else `u = v`; `S <- S + k u^T`; `o = scale S^T q`.
//! With `norm`, q and k stand for their l2-normalised rows. `RAW` = 1: `g = -e^(a_log) softplus(a + dt_bias)`, `beta = bmax sigmoid(b)`
//! from the projections a, braw `[B, T, HV]` in the inputs' type and a_log, dt_bias f32 `[HV]`; `RAW` = 0: g, beta f32 `[B, T, HV]`
//! (absent: 0 and 1).
//!
//! Shapes: q, k `[B, T, H, K]`; v, o `[B, T, HV, V]`; s f32 `[slots, HV, K, V]`; slot i32 `[B]`: the row's state (negative: the row is
//! skipped and its output not written; absent: row b has slot b). With `keep`, the state after each token also goes to kept f32 `[B, T, HV, K, V]`, so that
//! rejected speculative tokens can be rolled back. Grid: `(V / BV, HV, B)`.

/// Kernel.
#[cutile::module]
pub mod step {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_step<
        E: ElementType,
        const K: i32,
        const V: i32,
        const BV: i32,
        const ERASE: i32,
        const RAW: i32,
    >(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        g: *mut f32,
        beta: *mut f32,
        a: *mut E,
        braw: *mut E,
        a_log: *mut f32,
        dt_bias: *mut f32,
        slot: *mut i32,
        s: *mut f32,
        o: *mut E,
        kept: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        slots: i32,
        has_g: i32,
        has_beta: i32,
        norm: i32,
        keep: i32,
        has_slot: i32,
        eps: f32,
        scale: f32,
        bmax: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (iv, ih, ib) = (pid.0, pid.1, pid.2);
        let iq: i32 = ih / (hv / h);
        let mut place: i32 = ib;
        if has_slot == 1i32 {
            place = unsafe { int_at(slot, b, ib) };
        }
        if place >= 0i32 {
            let n: i32 = place * hv + ih;
            let qv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows::<E, K>(q, b, t, h) };
            let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows::<E, K>(k, b, t, h) };
            let vv: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows::<E, V>(v, b, t, hv) };
            let ov: Tensor<E, { [-1, -1, -1, V] }> = unsafe { rows::<E, V>(o, b, t, hv) };
            let sv: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(s, slots * hv) };
            let tv_: Tensor<f32, { [-1, K, V] }> = unsafe { mats_f32::<K, V>(kept, b * t * hv) };
            let qp: Partition<E, { [1, 1, 1, K] }> = qv.partition(const_shape![1, 1, 1, K]);
            let kp: Partition<E, { [1, 1, 1, K] }> = kv.partition(const_shape![1, 1, 1, K]);
            let vp: Partition<E, { [1, 1, 1, BV] }> = vv.partition(const_shape![1, 1, 1, BV]);
            let sp: Partition<f32, { [1, K, BV] }> = sv.partition(const_shape![1, K, BV]);
            let mut so: PartitionMut<f32, { [1, K, BV] }> =
                unsafe { sv.partition_full_mut(const_shape![1, K, BV]) };
            let mut keptp: PartitionMut<f32, { [1, K, BV] }> =
                unsafe { tv_.partition_full_mut(const_shape![1, K, BV]) };
            let mut op: PartitionMut<E, { [1, 1, 1, BV] }> =
                unsafe { ov.partition_full_mut(const_shape![1, 1, 1, BV]) };
            let l2e: Tile<f32, { [1] }> = constant(1.4426950408889634f32, const_shape![1]);
            let mut x: Tile<f32, { [K, BV] }> = sp.load([n, 0i32, iv]).reshape(const_shape![K, BV]);
            for i in 0i32..t {
                let mut tq: Tile<f32, { [K] }> =
                    convert_tile(qp.load([ib, i, iq, 0i32]).reshape(const_shape![K]));
                let mut tk: Tile<f32, { [K] }> =
                    convert_tile(kp.load([ib, i, iq, 0i32]).reshape(const_shape![K]));
                let tv: Tile<f32, { [BV] }> =
                    convert_tile(vp.load([ib, i, ih, iv]).reshape(const_shape![BV]));
                let mut gt: Tile<f32, { [1] }> = constant(0.0f32, const_shape![1]);
                let mut be: Tile<f32, { [1] }> = constant(1.0f32, const_shape![1]);
                if RAW == 1i32 {
                    let av: Tensor<E, { [-1, -1, -1] }> = unsafe { heads::<E>(a, b, t, hv) };
                    let ap: Partition<E, { [1, 1, 1] }> = av.partition(const_shape![1, 1, 1]);
                    let bv: Tensor<E, { [-1, -1, -1] }> = unsafe { heads::<E>(braw, b, t, hv) };
                    let bp: Partition<E, { [1, 1, 1] }> = bv.partition(const_shape![1, 1, 1]);
                    let lv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(a_log, 0i32, 1i32, 1i32, hv) };
                    let lp: Partition<f32, { [1, 1, 1] }> = lv.partition(const_shape![1, 1, 1]);
                    let dv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(dt_bias, 0i32, 1i32, 1i32, hv) };
                    let dp: Partition<f32, { [1, 1, 1] }> = dv.partition(const_shape![1, 1, 1]);
                    let av: Tile<f32, { [1] }> = convert_tile(ap.load([ib, i, ih]).reshape(const_shape![1]));
                    let bv: Tile<f32, { [1] }> = convert_tile(bp.load([ib, i, ih]).reshape(const_shape![1]));
                    let lv: Tile<f32, { [1] }> = lp.load([0i32, 0i32, ih]).reshape(const_shape![1]);
                    let dv: Tile<f32, { [1] }> = dp.load([0i32, 0i32, ih]).reshape(const_shape![1]);
                    let zero: Tile<f32, { [1] }> = constant(0.0f32, const_shape![1]);
                    gt = zero - exp(lv) * softplus::<1>(av + dv);
                    be = sigmoid::<1>(bv) * broadcast_scalar(bmax, const_shape![1]);
                }
                if RAW == 0i32 {
                    if has_g == 1i32 {
                        let gv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(g, 0i32, b, t, hv) };
                        let gp: Partition<f32, { [1, 1, 1] }> = gv.partition(const_shape![1, 1, 1]);
                        gt = gp.load([ib, i, ih]).reshape(const_shape![1]);
                    }
                    if has_beta == 1i32 {
                        let bv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(beta, 0i32, b, t, hv) };
                        let bp: Partition<f32, { [1, 1, 1] }> = bv.partition(const_shape![1, 1, 1]);
                        be = bp.load([ib, i, ih]).reshape(const_shape![1]);
                    }
                }
                let mut sc: Tile<f32, { [1] }> = broadcast_scalar(scale, const_shape![1]);
                if norm == 1i32 {
                    let e: Tile<f32, { [1] }> = broadcast_scalar(eps, const_shape![1]);
                    let nq: Tile<f32, { [] }> = reduce_sum(tq * tq, 0i32);
                    let nk: Tile<f32, { [] }> = reduce_sum(tk * tk, 0i32);
                    sc = sc * rsqrt(nq.reshape(const_shape![1]) + e, ftz::Disabled);
                    let rk: Tile<f32, { [1] }> = rsqrt(nk.reshape(const_shape![1]) + e, ftz::Disabled);
                    tk = tk * rk.broadcast(const_shape![K]);
                }
                tq = tq * sc.broadcast(const_shape![K]);
                let eg: Tile<f32, { [1] }> = exp2(gt * l2e, ftz::Enabled);
                let kc: Tile<f32, { [K, BV] }> =
                    tk.reshape(const_shape![K, 1]).broadcast(const_shape![K, BV]);
                x = x * eg.reshape(const_shape![1, 1]).broadcast(const_shape![K, BV]);
                let mut u: Tile<f32, { [BV] }> = tv;
                if ERASE == 1i32 {
                    let kx: Tile<f32, { [BV] }> = reduce_sum(x * kc, 0i32);
                    u = (tv - kx.reshape(const_shape![BV])) * be.broadcast(const_shape![BV]);
                }
                x = x + kc * u.reshape(const_shape![1, BV]).broadcast(const_shape![K, BV]);
                let qx: Tile<f32, { [BV] }> =
                    reduce_sum(x * tq.reshape(const_shape![K, 1]).broadcast(const_shape![K, BV]), 0i32);
                let ob: Tile<E, { [BV] }> = convert_tile(qx.reshape(const_shape![BV]));
                unsafe { op.store_unchecked(ob.reshape(const_shape![1, 1, 1, BV]), [ib, i, ih, iv]) };
                if keep == 1i32 {
                    unsafe {
                        keptp.store_unchecked(
                            x.reshape(const_shape![1, K, BV]),
                            [(ib * t + i) * hv + ih, 0i32, iv],
                        )
                    };
                }
            }
            unsafe { so.store_unchecked(x.reshape(const_shape![1, K, BV]), [n, 0i32, iv]) };
        }
    }
}
