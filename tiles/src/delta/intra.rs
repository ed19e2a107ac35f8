//! Delta rule, before the serial pass: the triangular solve of each chunk, and the products of queries and keys inside it.
//!
//! With `L_ij = beta_i (k_i . k_j) e^(G_i - G_j)` below the diagonal: `T = (I + L)^-1`; `P_ij = scale (q_i . k_j) e^(G_i - G_j)` on and below it. With `norm`, q and
//! k stand for their l2-normalised rows; nothing normalised is written, the rows' factors go to rq and rk.
//!
//! Shapes: q, k `[B, T, H, K]`; gvec from `delta_gates`; tm, pm `[NC, HV, C, C]`; rq, rk f32 `[NC, HV, 1, C]` (1 without `norm`). Grid: `(HV, ceil(T/C), B)`;
//! packed: `(HV, NC, 1)` with chunks i32 `[NC, 4]` = (first token of the sequence, its length, number of the chunk in it, sequence).
//!
//! Loads and stores go without TMA: its helper warps would take registers that a further block on the SM needs.

/// Kernel.
#[cutile::module]
pub mod intra {
    use crate::tile::math::math::*;
    use crate::tile::solve::solve::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_intra<E: ElementType, F: ElementType, const C: i32, const K: i32, const VL: i32>(
        q: *mut E,
        k: *mut E,
        gvec: *mut f32,
        chunks: *mut i32,
        tm: *mut E,
        pm: *mut E,
        rk: *mut f32,
        rq: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        norm: i32,
        eps: f32,
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
        let qp: Partition<E, { [1, C, 1, K] }> = qv.partition(const_shape![1, C, 1, K]);
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let tk: Tile<E, { [1, C, 1, K] }> =
            load_view_tko(&kp, [ib, i, iq, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let tk: Tile<E, { [C, K] }> = tk.reshape(const_shape![C, K]);
        let tq: Tile<E, { [1, C, 1, K] }> =
            load_view_tko(&qp, [ib, i, iq, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let tq: Tile<E, { [C, K] }> = tq.reshape(const_shape![C, K]);
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let kt: Tile<E, { [K, C] }> = tk.transpose();
        let kk: Tile<f32, { [C, C] }> = mma(tk, kt, z);
        let qk: Tile<f32, { [C, C] }> = mma(tq, kt, z);
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let be: Tile<f32, { [1, 1, C] }> =
            load_view_tko(&fp, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let be: Tile<f32, { [C] }> = be.reshape(const_shape![C]);
        let gc: Tile<f32, { [1, 1, C] }> =
            load_view_tko(&fp, [n, 3i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let gc: Tile<f32, { [C] }> = gc.reshape(const_shape![C]);
        let mut r: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        let mut rr: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        if norm == 1i32 {
            // |k|^2 stands on the diagonal already.
            let e: Tile<f32, { [C] }> = broadcast_scalar(eps, const_shape![C]);
            let dk: Tile<f32, { [C, C] }> = select(diagonal::<C>(), kk, z);
            let sk: Tile<f32, { [C] }> = reduce_sum(dk, 1i32);
            r = rsqrt(sk.reshape(const_shape![C]) + e, ftz::Disabled);
            let fq: Tile<f32, { [C, K] }> = convert_tile(tq);
            let sq: Tile<f32, { [C] }> = reduce_sum(fq * fq, 1i32);
            rr = rsqrt(sq.reshape(const_shape![C]) + e, ftz::Disabled);
        }
        let rv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let mut rp: PartitionMut<f32, { [1, 1, C] }> =
            unsafe { rv.partition_full_mut(const_shape![1, 1, C]) };
        let sv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rq, nc * hv) };
        let mut sp: PartitionMut<f32, { [1, 1, C] }> =
            unsafe { sv.partition_full_mut(const_shape![1, 1, C]) };
        let y: Tile<f32, { [1, 1, C] }> = r.reshape(const_shape![1, 1, C]);
        let st: Token = unsafe {
            store_view_tko_mut(&mut rp, y, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled)
        };
        let y: Tile<f32, { [1, 1, C] }> = rr.reshape(const_shape![1, 1, C]);
        let st: Token = unsafe {
            store_view_tko_mut(&mut sp, y, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled)
        };
        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let d: Tile<f32, { [C, C] }> = decay::<C>(gc, m);
        let d: Tile<f32, { [C, C] }> = d.reshape(const_shape![C, C]) * row::<C, C>(r);
        let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
        let sq: Tile<f32, { [C] }> = rr * sc;
        let p: Tile<E, { [C, C] }> = convert_tile(qk.reshape(const_shape![C, C]) * d * col::<C, C>(sq));
        let p: Tile<E, { [1, C, C] }> = p.reshape(const_shape![1, C, C]);
        let pv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let mut pp: PartitionMut<E, { [1, C, C] }> = unsafe { pv.partition_full_mut(const_shape![1, C, C]) };
        let st: Token = unsafe {
            store_view_tko_mut(&mut pp, p, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled)
        };
        let br: Tile<f32, { [C] }> = be * r;
        let l: Tile<f32, { [C, C] }> = kk.reshape(const_shape![C, C]) * d * col::<C, C>(br);
        let x: Tile<f32, { [C, C] }> = tri_inv::<F, C>(l);
        let xb: Tile<E, { [C, C] }> = convert_tile(x);
        let xb: Tile<E, { [1, C, C] }> = xb.reshape(const_shape![1, C, C]);
        let xv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let mut xp: PartitionMut<E, { [1, C, C] }> = unsafe { xv.partition_full_mut(const_shape![1, C, C]) };
        let st: Token = unsafe {
            store_view_tko_mut(&mut xp, xb, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled)
        };
    }
}
