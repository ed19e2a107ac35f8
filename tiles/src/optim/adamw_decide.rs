//! What one AdamW step does, from the sums of squares of all gradients: norm, clip factor, whether it is applied, and the factors that
//! depend on the number of steps applied.
//!
//! part f32 `[n]`, loss f32 `[1]`; count f32 `[3]`: steps applied, skipped, skipped in a row, moved on here (exact up to 2^24).
//! out f32 `[5]`: norm, clip = min(1, max_norm / (norm + 1e-6)) (1 where max_norm is 0), applied (1 or 0), 1 / (1 - beta1^t),
//! 1 / sqrt(1 - beta2^t) with t the steps applied. `log1`, `log2` are ln beta1, ln beta2. A norm or loss that is not finite skips the step where
//! `skip` = 1. Grid: `(1, 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod adamw_decide {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn adamw_decide<E: ElementType, const N: i32>(
        part: *mut E,
        loss: *mut f32,
        count: *mut f32,
        out: *mut f32,
        n: i32,
        skip: i32,
        max_norm: f32,
        log1: f32,
        log2: f32,
    ) {
        let mut a: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let end: Tile<i32, { [N] }> = broadcast_scalar(n, const_shape![N]);
        let steps: i32 = ceil_div(n, N);
        for k in 0i32..steps {
            let i: Tile<i32, { [N] }> = lanes::<N>(k).reshape(const_shape![N]);
            let m: Tile<bool, { [N] }> = lt_tile(i, end);
            let v: Tile<E, { [N] }> = unsafe { read::<E, N>(part, i, m) }.reshape(const_shape![N]);
            let v: Tile<f32, { [N] }> = convert_tile(v);
            a = a + select(m, v, none);
        }
        let s: Tile<f32, { [] }> = reduce_sum(a, 0i32);
        let norm: Tile<f32, { [1] }> = sqrt(s.reshape(const_shape![1]), rounding::NearestEven, ftz::Disabled);
        let at0: Tile<i32, { [1] }> = constant(0i32, const_shape![1]);
        let at1: Tile<i32, { [1] }> = constant(1i32, const_shape![1]);
        let at2: Tile<i32, { [1] }> = constant(2i32, const_shape![1]);
        let at3: Tile<i32, { [1] }> = constant(3i32, const_shape![1]);
        let at4: Tile<i32, { [1] }> = constant(4i32, const_shape![1]);
        let yes: Tile<bool, { [1] }> = ge_tile(at0, at0);
        let zero: Tile<f32, { [1] }> = constant(0.0f32, const_shape![1]);
        let one: Tile<f32, { [1] }> = constant(1.0f32, const_shape![1]);
        let l: Tile<f32, { [1] }> = unsafe { read_f32::<1>(loss, at0, yes) }.reshape(const_shape![1]);
        // x - x is 0 for finite x and NaN else.
        let odd: Tile<f32, { [1] }> = (norm - norm) + (l - l);
        let mut go: Tile<f32, { [1] }> = select(eq_tile(odd, zero), one, zero);
        if skip == 0i32 {
            go = one;
        }
        let most: Tile<f32, { [1] }> = broadcast_scalar(max_norm, const_shape![1]);
        let eps: Tile<f32, { [1] }> = constant(1.0e-6f32, const_shape![1]);
        let ratio: Tile<f32, { [1] }> = true_div(most, norm + eps);
        let mut clip: Tile<f32, { [1] }> = select(lt_tile(ratio, one), ratio, one);
        if max_norm <= 0.0f32 {
            clip = one;
        }
        let done: Tile<f32, { [1] }> = unsafe { read_f32::<1>(count, at0, yes) }.reshape(const_shape![1]);
        let left: Tile<f32, { [1] }> = unsafe { read_f32::<1>(count, at1, yes) }.reshape(const_shape![1]);
        let row: Tile<f32, { [1] }> = unsafe { read_f32::<1>(count, at2, yes) }.reshape(const_shape![1]);
        let t: Tile<f32, { [1] }> = done + go;
        unsafe { write_f32::<1>(count, at0, t, yes) };
        unsafe { write_f32::<1>(count, at1, left + one - go, yes) };
        unsafe { write_f32::<1>(count, at2, (row + one) * (one - go), yes) };
        let t: Tile<f32, { [1] }> = select(lt_tile(t, one), one, t);
        let c1: Tile<f32, { [1] }> = one_minus_exp(t * broadcast_scalar(log1, const_shape![1])).reshape(const_shape![1]);
        let c2: Tile<f32, { [1] }> = one_minus_exp(t * broadcast_scalar(log2, const_shape![1])).reshape(const_shape![1]);
        unsafe { write_f32::<1>(out, at0, norm, yes) };
        unsafe { write_f32::<1>(out, at1, clip, yes) };
        unsafe { write_f32::<1>(out, at2, go, yes) };
        unsafe { write_f32::<1>(out, at3, true_div(one, c1), yes) };
        unsafe { write_f32::<1>(out, at4, rsqrt(c2, ftz::Disabled), yes) };
    }

    /// `1 - e^x` for `x <= 0`, without cancellation near 0.
    fn one_minus_exp(x: Tile<f32, { [1] }>) -> Tile<f32, { [1] }> {
        let one: Tile<f32, { [1] }> = constant(1.0f32, const_shape![1]);
        let half: Tile<f32, { [1] }> = constant(0.5f32, const_shape![1]);
        let third: Tile<f32, { [1] }> = constant(0.33333334f32, const_shape![1]);
        let fourth: Tile<f32, { [1] }> = constant(0.25f32, const_shape![1]);
        let fifth: Tile<f32, { [1] }> = constant(0.2f32, const_shape![1]);
        let small: Tile<f32, { [1] }> = constant(-0.06f32, const_shape![1]);
        let zero: Tile<f32, { [1] }> = constant(0.0f32, const_shape![1]);
        let p: Tile<f32, { [1] }> = one + x * fifth;
        let p: Tile<f32, { [1] }> = one + x * fourth * p;
        let p: Tile<f32, { [1] }> = one + x * third * p;
        let p: Tile<f32, { [1] }> = one + x * half * p;
        let near: Tile<f32, { [1] }> = zero - x * p;
        let far: Tile<f32, { [1] }> = one - exp(x);
        let y: Tile<f32, { [1] }> = select(gt_tile(x, small), near, far);
        y
    }
}
