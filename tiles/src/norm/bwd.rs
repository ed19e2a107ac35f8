//! RMS and layer norm of rows, backward.
//!
//! With `x^ = (x' - mean) rstd` and `dy` the gradient before the gate: `dx = rstd (w dy - mean(w dy) - x^ mean(w dy x^))` (the first
//! mean only for `MEAN` = 1), plus dsum, the gradient that reached x' directly, where `has_dsum`. Each block goes over `steps` tiles of
//! rows and writes its part of the weight's and bias's gradients to `[G, D]` f32; `column_sum` adds the parts in a fixed order.
//!
//! x is what was normalised (x'); x, gate, dy, dsum, dx, dgate `[N, D]`; w, bias `[D]`; rstd, mean f32 `[N]`; dw, db f32 `[G, D]`. Grid:
//! `(G, 1, 1)`, `G = ceil(N / (R steps))`.

/// Kernel.
#[cutile::module]
pub mod bwd {
    use crate::tile::math::math::*;
    use crate::tile::rows::rows::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn norm_bwd<E: ElementType, const R: i32, const DT: i32, const MEAN: i32, const GATE: i32>(
        x: *mut E,
        gate: *mut E,
        w: *mut E,
        bias: *mut E,
        dy: *mut E,
        dsum: *mut E,
        rstd: *mut f32,
        mean: *mut f32,
        dx: *mut E,
        dgate: *mut E,
        dw: *mut f32,
        db: *mut f32,
        n: i32,
        d: i32,
        steps: i32,
        has_dsum: i32,
        has_w: i32,
        has_bias: i32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let xv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(x, n, d) };
        let yv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(dy, n, d) };
        let dv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(dx, n, d) };
        let sv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(dsum, n, d) };
        let gv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(gate, n, d) };
        let dgv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(dgate, n, d) };
        let rv: Tensor<f32, { [-1] }> = unsafe { flat_f32(rstd, n) };
        let mv: Tensor<f32, { [-1] }> = unsafe { flat_f32(mean, n) };
        let xp: Partition<E, { [R, DT] }> = xv.partition(const_shape![R, DT]);
        let yp: Partition<E, { [R, DT] }> = yv.partition(const_shape![R, DT]);
        let sp: Partition<E, { [R, DT] }> = sv.partition(const_shape![R, DT]);
        let gp: Partition<E, { [R, DT] }> = gv.partition(const_shape![R, DT]);
        let rp: Partition<f32, { [R] }> = rv.partition(const_shape![R]);
        let mp: Partition<f32, { [R] }> = mv.partition(const_shape![R]);
        let mut dp: PartitionMut<E, { [R, DT] }> = unsafe { dv.partition_full_mut(const_shape![R, DT]) };
        let mut dgp: PartitionMut<E, { [R, DT] }> = unsafe { dgv.partition_full_mut(const_shape![R, DT]) };
        let one: f32 = 1.0f32;
        let fd: f32 = convert_scalar::<f32>(d);
        let inv: Tile<f32, { [R] }> = broadcast_scalar(one / fd, const_shape![R]);
        let mut tw: Tile<f32, { [DT] }> = constant(1.0f32, const_shape![DT]);
        let mut tb: Tile<f32, { [DT] }> = constant(0.0f32, const_shape![DT]);
        if has_w == 1i32 {
            tw = unsafe { vector::<E, DT>(w, d) };
        }
        if has_bias == 1i32 {
            tb = unsafe { vector::<E, DT>(bias, d) };
        }
        let mut aw: Tile<f32, { [DT] }> = constant(0.0f32, const_shape![DT]);
        let mut ab: Tile<f32, { [DT] }> = constant(0.0f32, const_shape![DT]);
        for j in 0i32..steps {
            let i: i32 = pid.0 * steps + j;
            let mut tx: Tile<f32, { [R, DT] }> = convert_tile(xp.load([i, 0i32]));
            let mut ty: Tile<f32, { [R, DT] }> = convert_tile(yp.load([i, 0i32]));
            let r: Tile<f32, { [R] }> = rp.load([i]);
            if MEAN == 1i32 {
                let z: Tile<f32, { [R, DT] }> = constant(0.0f32, const_shape![R, DT]);
                tx = select(columns::<R, DT>(d), tx - col::<R, DT>(mp.load([i])), z);
            }
            let xh: Tile<f32, { [R, DT] }> = tx * col::<R, DT>(r);
            if GATE > 0i32 {
                let tg: Tile<f32, { [R, DT] }> = convert_tile(gp.load([i, 0i32]));
                let yn: Tile<f32, { [R, DT] }> = xh * row::<R, DT>(tw) + row::<R, DT>(tb);
                let s: Tile<f32, { [R, DT] }> = sigmoid2::<R, DT>(tg).reshape(const_shape![R, DT]);
                let ones: Tile<f32, { [R, DT] }> = constant(1.0f32, const_shape![R, DT]);
                // sigmoid' = s (1 - s); silu' = s (1 + g (1 - s))
                let mut slope: Tile<f32, { [R, DT] }> = s * (ones - s);
                let mut f: Tile<f32, { [R, DT] }> = s;
                if GATE == 1i32 {
                    slope = s + tg * slope;
                    f = s * tg;
                }
                let dgb: Tile<E, { [R, DT] }> = convert_tile(ty * yn * slope);
                unsafe { dgp.store_unchecked(dgb, [i, 0i32]) };
                ty = ty * f;
            }
            let pw: Tile<f32, { [DT] }> = reduce_sum(ty * xh, 0i32);
            let pb: Tile<f32, { [DT] }> = reduce_sum(ty, 0i32);
            aw = aw + pw.reshape(const_shape![DT]);
            ab = ab + pb.reshape(const_shape![DT]);
            let wd: Tile<f32, { [R, DT] }> = ty * row::<R, DT>(tw);
            let c: Tile<f32, { [R] }> = reduce_sum(wd * xh, 1i32);
            let c: Tile<f32, { [R] }> = c.reshape(const_shape![R]) * inv;
            let mut g: Tile<f32, { [R, DT] }> = wd - xh * col::<R, DT>(c);
            if MEAN == 1i32 {
                let c1: Tile<f32, { [R] }> = reduce_sum(wd, 1i32);
                g = g - col::<R, DT>(c1.reshape(const_shape![R]) * inv);
            }
            g = g * col::<R, DT>(r);
            if has_dsum == 1i32 {
                let ts: Tile<f32, { [R, DT] }> = convert_tile(sp.load([i, 0i32]));
                g = g + ts;
            }
            let gb: Tile<E, { [R, DT] }> = convert_tile(g);
            unsafe { dp.store_unchecked(gb, [i, 0i32]) };
        }
        let blocks: (i32, i32, i32) = get_num_tile_blocks();
        if has_w == 1i32 {
            let v: Tensor<f32, { [-1, -1] }> = unsafe { table_f32(dw, blocks.0, d) };
            let mut p: PartitionMut<f32, { [1, DT] }> = unsafe { v.partition_full_mut(const_shape![1, DT]) };
            unsafe { p.store_unchecked(aw.reshape(const_shape![1, DT]), [pid.0, 0i32]) };
        }
        if has_bias == 1i32 {
            let v: Tensor<f32, { [-1, -1] }> = unsafe { table_f32(db, blocks.0, d) };
            let mut p: PartitionMut<f32, { [1, DT] }> = unsafe { v.partition_full_mut(const_shape![1, DT]) };
            unsafe { p.store_unchecked(ab.reshape(const_shape![1, DT]), [pid.0, 0i32]) };
        }
    }
}
