//! RMS and layer norm of rows, with a residual sum before it and a gate after it.
//!
//! `x' = x + res`; `y = (x' - mean) rstd w + bias`, `rstd = (mean of squares + eps)^(-1/2)`; `MEAN` = 1 subtracts the row's mean (layer
//! norm), 0 does not (RMS norm). `GATE` = 1: `y <- y silu(gate)`; 2: `y <- y sigmoid(gate)`. x, res, gate, y `[N, D]`; w, bias `[D]`
//! in the same type (absent: 1 and 0); sum `[N, D]` receives x' where `has_res`; rstd, mean f32 `[N]`. DT is the power of two from
//! D up; D a multiple of 8. Grid: `(ceil(N / R), 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod fwd {
    use crate::tile::math::math::*;
    use crate::tile::rows::rows::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn norm_fwd<E: ElementType, const R: i32, const DT: i32, const MEAN: i32, const GATE: i32>(
        x: *mut E,
        res: *mut E,
        gate: *mut E,
        w: *mut E,
        bias: *mut E,
        y: *mut E,
        sum: *mut E,
        rstd: *mut f32,
        mean: *mut f32,
        n: i32,
        d: i32,
        has_res: i32,
        has_w: i32,
        has_bias: i32,
        eps: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let i: i32 = pid.0;
        let xv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(x, n, d) };
        let xp: Partition<E, { [R, DT] }> = xv.partition(const_shape![R, DT]);
        let mut tx: Tile<f32, { [R, DT] }> = convert_tile(xp.load([i, 0i32]));
        if has_res == 1i32 {
            let rv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(res, n, d) };
            let rp: Partition<E, { [R, DT] }> = rv.partition(const_shape![R, DT]);
            let tr: Tile<f32, { [R, DT] }> = convert_tile(rp.load([i, 0i32]));
            let sb: Tile<E, { [R, DT] }> = convert_tile(tx + tr);
            let sv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(sum, n, d) };
            let mut sp: PartitionMut<E, { [R, DT] }> = unsafe { sv.partition_full_mut(const_shape![R, DT]) };
            unsafe { sp.store_unchecked(sb, [i, 0i32]) };
            // Normalise what the next layer will read, rounded as it is stored.
            tx = convert_tile(sb);
        }
        let one: f32 = 1.0f32;
        let fd: f32 = convert_scalar::<f32>(d);
        let inv: Tile<f32, { [R] }> = broadcast_scalar(one / fd, const_shape![R]);
        if MEAN == 1i32 {
            let m: Tile<f32, { [R] }> = reduce_sum(tx, 1i32);
            let m: Tile<f32, { [R] }> = m.reshape(const_shape![R]) * inv;
            let z: Tile<f32, { [R, DT] }> = constant(0.0f32, const_shape![R, DT]);
            tx = select(columns::<R, DT>(d), tx - col::<R, DT>(m), z);
            let mv: Tensor<f32, { [-1] }> = unsafe { flat_f32(mean, n) };
            let mut mp: PartitionMut<f32, { [R] }> = unsafe { mv.partition_full_mut(const_shape![R]) };
            unsafe { mp.store_unchecked(m, [i]) };
        }
        let sq: Tile<f32, { [R] }> = reduce_sum(tx * tx, 1i32);
        let e: Tile<f32, { [R] }> = broadcast_scalar(eps, const_shape![R]);
        let r: Tile<f32, { [R] }> = rsqrt(sq.reshape(const_shape![R]) * inv + e, ftz::Disabled);
        let rv: Tensor<f32, { [-1] }> = unsafe { flat_f32(rstd, n) };
        let mut rp: PartitionMut<f32, { [R] }> = unsafe { rv.partition_full_mut(const_shape![R]) };
        unsafe { rp.store_unchecked(r, [i]) };
        let mut ty: Tile<f32, { [R, DT] }> = tx * col::<R, DT>(r);
        if has_w == 1i32 {
            let tw: Tile<f32, { [DT] }> = unsafe { vector::<E, DT>(w, d) };
            ty = ty * row::<R, DT>(tw);
        }
        if has_bias == 1i32 {
            let tb: Tile<f32, { [DT] }> = unsafe { vector::<E, DT>(bias, d) };
            ty = ty + row::<R, DT>(tb);
        }
        if GATE > 0i32 {
            let gv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(gate, n, d) };
            let gp: Partition<E, { [R, DT] }> = gv.partition(const_shape![R, DT]);
            let tg: Tile<f32, { [R, DT] }> = convert_tile(gp.load([i, 0i32]));
            let s: Tile<f32, { [R, DT] }> = sigmoid2::<R, DT>(tg).reshape(const_shape![R, DT]);
            ty = ty * s;
            if GATE == 1i32 {
                ty = ty * tg;
            }
        }
        let yb: Tile<E, { [R, DT] }> = convert_tile(ty);
        let yv: Tensor<E, { [-1, -1] }> = unsafe { table::<E>(y, n, d) };
        let mut yp: PartitionMut<E, { [R, DT] }> = unsafe { yv.partition_full_mut(const_shape![R, DT]) };
        unsafe { yp.store_unchecked(yb, [i, 0i32]) };
    }
}
