//! Delta rule, before the serial pass: what each chunk needs that does not depend on the state.
//!
//! With `G` the cumulative log-decay inside the chunk, `L_ij = beta_i (k_i . k_j) e^(G_i - G_j)` below the diagonal:
//! `T = (I + L)^-1` and `P_ij = scale (q_i . k_j) e^(G_i - G_j)` on and below it. With `norm`, q and k stand for their
//! l2-normalised rows; nothing normalised is written, the row factors go into `vec`.
//!
//! Shapes: q, k `[B, T, H, K]`; g, beta f32 `[B, T, HV]` (natural-log decay; absent: 0 and 1);
//! vec f32 `[NC, HV, 8, C]`, tm, pm `[NC, HV, C, C]`, NC chunks in all. Rows of vec:
//! 0 `scale r_q e^G`, 1 `r_k e^G`, 2 `r_k e^(G_last - G)`, 3 beta, 4 `e^G`, 5 `r_q`, 6 `r_k`, 7 `G` in units of log 2.
//! Grid: `(HV, ceil(T/C), B)`; packed: `(HV, NC, 1)` with chunks i32 `[NC, 4]` = (first token of the sequence, its
//! length, number of the chunk in it, sequence).

/// Kernel.
#[cutile::module]
pub mod prep {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_prep<E: ElementType, F: ElementType, const C: i32, const K: i32, const VL: i32>(
        q: *mut E,
        k: *mut E,
        g: *mut f32,
        beta: *mut f32,
        chunks: *mut i32,
        vec: *mut f32,
        tm: *mut E,
        pm: *mut E,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        has_g: i32,
        has_beta: i32,
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
        let tq: Tile<E, { [C, K] }> = qp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let tk: Tile<E, { [C, K] }> = kp.load([ib, i, iq, 0i32]).reshape(const_shape![C, K]);
        let mut tg: Tile<f32, { [C] }> = constant(0.0f32, const_shape![C]);
        if has_g == 1i32 {
            let gv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(g, first, nb, len, hv) };
            let gp: Partition<f32, { [1, C, 1] }> = gv.partition(const_shape![1, C, 1]);
            tg = gp.load([ib, i, ih]).reshape(const_shape![C]);
        }
        let mut be: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        if has_beta == 1i32 {
            let bv: Tensor<f32, { [-1, -1, -1] }> = unsafe { gates(beta, first, nb, len, hv) };
            let bp: Partition<f32, { [1, C, 1] }> = bv.partition(const_shape![1, C, 1]);
            be = bp.load([ib, i, ih]).reshape(const_shape![C]);
        }
        let mut rq: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        let mut rk: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        if norm == 1i32 {
            let fq: Tile<f32, { [C, K] }> = convert_tile(tq);
            let fk: Tile<f32, { [C, K] }> = convert_tile(tk);
            let e: Tile<f32, { [C] }> = broadcast_scalar(eps, const_shape![C]);
            let sq: Tile<f32, { [C] }> = reduce_sum(fq * fq, 1i32);
            let sk: Tile<f32, { [C] }> = reduce_sum(fk * fk, 1i32);
            rq = rsqrt(sq.reshape(const_shape![C]) + e, ftz::Disabled);
            rk = rsqrt(sk.reshape(const_shape![C]) + e, ftz::Disabled);
        }
        let l2e: Tile<f32, { [C] }> = constant(1.4426950408889634f32, const_shape![C]);
        let gc: Tile<f32, { [C] }> = scan_sum(tg * l2e, 0i32, reverse::Forward, 0.0f32);
        let gl: Tile<f32, { [1] }> = extract(gc, [scalar_to_tile(C - 1i32)]);
        let eg: Tile<f32, { [C] }> = exp2(gc, ftz::Enabled);
        let er: Tile<f32, { [C] }> = exp2(gl.broadcast(const_shape![C]) - gc, ftz::Enabled);
        let sc: Tile<f32, { [C] }> = broadcast_scalar(scale, const_shape![C]);
        let sq: Tile<f32, { [C] }> = rq * sc;
        let a: Tile<f32, { [2, C] }> = rows2::<C>(sq * eg, rk * eg);
        let c: Tile<f32, { [2, C] }> = rows2::<C>(rk * er, be);
        let x0: Tile<f32, { [4, C] }> = cat(a, c, 0i32);
        let a: Tile<f32, { [2, C] }> = rows2::<C>(eg, rq);
        let c: Tile<f32, { [2, C] }> = rows2::<C>(rk, gc);
        let x1: Tile<f32, { [4, C] }> = cat(a, c, 0i32);
        let x: Tile<f32, { [8, C] }> = cat(x0, x1, 0i32);
        let vv: Tensor<f32, { [-1, 8, C] }> = unsafe { mats_f32::<8, C>(vec, nc * hv) };
        let mut vp: PartitionMut<f32, { [1, 8, C] }> = unsafe { vv.partition_full_mut(const_shape![1, 8, C]) };
        unsafe { vp.store_unchecked(x.reshape(const_shape![1, 8, C]), [n, 0i32, 0i32]) };

        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let kt: Tile<E, { [K, C] }> = tk.transpose();
        let kk: Tile<f32, { [C, C] }> = mma(tk, kt, z);
        let qk: Tile<f32, { [C, C] }> = mma(tq, kt, z);
        // r_k,j e^(G_i - G_j), shared by both matrices
        let d: Tile<f32, { [C, C] }> = decay::<C>(gc, m);
        let d: Tile<f32, { [C, C] }> = d.reshape(const_shape![C, C]) * row::<C, C>(rk);
        let p: Tile<f32, { [C, C] }> = qk.reshape(const_shape![C, C]) * d * col::<C, C>(sq);
        let pb: Tile<E, { [C, C] }> = convert_tile(p);
        let pv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(pm, nc * hv) };
        let mut pp: PartitionMut<E, { [1, C, C] }> = unsafe { pv.partition_full_mut(const_shape![1, C, C]) };
        unsafe { pp.store_unchecked(pb.reshape(const_shape![1, C, C]), [n, 0i32, 0i32]) };
        let br: Tile<f32, { [C] }> = be * rk;
        let l: Tile<f32, { [C, C] }> = kk.reshape(const_shape![C, C]) * d * col::<C, C>(br);
        let x: Tile<f32, { [C, C] }> = tri_inv::<F, C>(l);
        let xb: Tile<E, { [C, C] }> = convert_tile(x);
        let xv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let mut xp: PartitionMut<E, { [1, C, C] }> = unsafe { xv.partition_full_mut(const_shape![1, C, C]) };
        unsafe { xp.store_unchecked(xb.reshape(const_shape![1, C, C]), [n, 0i32, 0i32]) };
    }
}
