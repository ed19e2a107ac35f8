//! Delta rule, before the serial pass: the triangular solve of each chunk.
//!
//! With `L_ij = beta_i (k_i . k_j) e^(G_i - G_j)` below the diagonal: `T = (I + L)^-1`. With `norm`, k stands for its l2-normalised rows;
//! nothing normalised is written, the rows' factors go to rk.
//!
//! Shapes: k `[B, T, H, K]`; gvec from `delta_gates`; tm `[NC, HV, C, C]`; rk f32 `[NC, HV, 1, C]` (1 without `norm`). Grid: `(HV, ceil(T/C), B)`;
//! packed: `(HV, NC, 1)`.
//!
//! Loads and stores go without TMA: its helper warps would take registers that a third block on the SM needs.

/// Kernel.
#[cutile::module]
pub mod prep {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn delta_prep<E: ElementType, F: ElementType, const C: i32, const K: i32, const VL: i32>(
        k: *mut E,
        gvec: *mut f32,
        chunks: *mut i32,
        tm: *mut E,
        rk: *mut f32,
        b: i32,
        t: i32,
        h: i32,
        hv: i32,
        nc: i32,
        norm: i32,
        eps: f32,
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
        let kv: Tensor<E, { [-1, -1, -1, K] }> = unsafe { rows_from::<E, K>(k, first, nb, len, h) };
        let kp: Partition<E, { [1, C, 1, K] }> = kv.partition(const_shape![1, C, 1, K]);
        let tk: Tile<E, { [1, C, 1, K] }> =
            load_view_tko(&kp, [ib, i, iq, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let tk: Tile<E, { [C, K] }> = tk.reshape(const_shape![C, K]);
        let z: Tile<f32, { [C, C] }> = constant(0.0f32, const_shape![C, C]);
        let kt: Tile<E, { [K, C] }> = tk.transpose();
        let kk: Tile<f32, { [C, C] }> = mma(tk, kt, z);
        let fv: Tensor<f32, { [-1, 4, C] }> = unsafe { mats_f32::<4, C>(gvec, nc * hv) };
        let fp: Partition<f32, { [1, 1, C] }> = fv.partition(const_shape![1, 1, C]);
        let be: Tile<f32, { [1, 1, C] }> =
            load_view_tko(&fp, [n, 0i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let be: Tile<f32, { [C] }> = be.reshape(const_shape![C]);
        let gc: Tile<f32, { [1, 1, C] }> =
            load_view_tko(&fp, [n, 3i32, 0i32], ordering::Weak, scope::TileBlock, None, tma::Disabled);
        let gc: Tile<f32, { [C] }> = gc.reshape(const_shape![C]);
        let mut r: Tile<f32, { [C] }> = constant(1.0f32, const_shape![C]);
        if norm == 1i32 {
            // |k|^2 stands on the diagonal already.
            let e: Tile<f32, { [C] }> = broadcast_scalar(eps, const_shape![C]);
            let dk: Tile<f32, { [C, C] }> = select(diagonal::<C>(), kk, z);
            let sk: Tile<f32, { [C] }> = reduce_sum(dk, 1i32);
            r = rsqrt(sk.reshape(const_shape![C]) + e, ftz::Disabled);
        }
        let rv: Tensor<f32, { [-1, 1, C] }> = unsafe { mats_f32::<1, C>(rk, nc * hv) };
        let mut rp: PartitionMut<f32, { [1, 1, C] }> =
            unsafe { rv.partition_full_mut(const_shape![1, 1, C]) };
        let y: Tile<f32, { [1, 1, C] }> = r.reshape(const_shape![1, 1, C]);
        let st: Token = unsafe {
            store_view_tko_mut(
                &mut rp,
                y,
                [n, 0i32, 0i32],
                ordering::Weak,
                scope::TileBlock,
                None,
                tma::Disabled,
            )
        };

        let m: Tile<bool, { [C, C] }> = lower::<C>();
        let d: Tile<f32, { [C, C] }> = decay::<C>(gc, m);
        let d: Tile<f32, { [C, C] }> = d.reshape(const_shape![C, C]) * row::<C, C>(r);
        let br: Tile<f32, { [C] }> = be * r;
        let l: Tile<f32, { [C, C] }> = kk.reshape(const_shape![C, C]) * d * col::<C, C>(br);
        let x: Tile<f32, { [C, C] }> = tri_inv::<F, C>(l);
        let xb: Tile<E, { [C, C] }> = convert_tile(x);
        let xb: Tile<E, { [1, C, C] }> = xb.reshape(const_shape![1, C, C]);
        let xv: Tensor<E, { [-1, C, C] }> = unsafe { mats::<E, C, C>(tm, nc * hv) };
        let mut xp: PartitionMut<E, { [1, C, C] }> = unsafe { xv.partition_full_mut(const_shape![1, C, C]) };
        let st: Token = unsafe {
            store_view_tko_mut(
                &mut xp,
                xb,
                [n, 0i32, 0i32],
                ordering::Weak,
                scope::TileBlock,
                None,
                tma::Disabled,
            )
        };
    }
}
