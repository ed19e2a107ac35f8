//! Cross entropy of rows of logits, with their gradient written over them.
//!
//! For a row x with label y in 0..V: lse = ln sum e^x, loss = (1 - s)(lse - x_y) + s (lse - mean x) + z lse^2. Where `grad` = 1 the row becomes
//! d loss / dx times `scale`: p (1 + 2 z lse) - (1 - s) [i = y] - s / V. Another label (ignore) gives loss 0, lse 0 and a zero gradient. Inputs
//! are read scaled by `logit_scale`, and where `cap` > 0 as cap tanh(x / cap); the gradient has the factors of both. Where `warp` is not 0 the
//! gradient of the row's largest element as it came (the first of equals; of ignored rows too) gets warp times that element besides.
//!
//! x `[rows, V]`, label i64 `[rows]`, loss, lse f32 `[rows]`. Grid: `(rows, 1, 1)`.

/// Kernel.
#[cutile::module]
pub mod cross_entropy {
    use crate::tile::cap::cap::*;
    use crate::tile::functions::functions::*;
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn cross_entropy<E: ElementType, const N: i32>(
        x: *mut E,
        label: *mut i64,
        loss: *mut f32,
        lse: *mut f32,
        rows: i32,
        v: i32,
        grad: i32,
        smoothing: f32,
        z: f32,
        scale: f32,
        logit_scale: f32,
        cap: f32,
        warp: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let y: i32 = unsafe { row_at(label, rows, pid.0) };
        let mut on: i32 = 0i32;
        if y >= 0i32 {
            if y < v {
                on = 1i32;
            }
        }
        let rows: i32 = unsafe { assume_bounds_lower::<_, 0>(rows) };
        let v: i32 = unsafe { assume_bounds_lower::<_, 0>(v) };
        let sh: Shape<{ [-1, -1] }> = Shape::<{ [-1, -1] }> { dims: &[rows, v] };
        let st: Array<{ [-1, 1] }> = Array::<{ [-1, 1] }> { dims: &[v] };
        let xv: Tensor<E, { [-1, -1] }> = unsafe { make_tensor_view(pointer_to_tile(x), sh, st, new_token_unordered()) };
        let steps: i32 = ceil_div(v, N);
        let ends: Tile<i32, { [N] }> = broadcast_scalar(v, const_shape![N]);
        let factor: Tile<f32, { [N] }> = broadcast_scalar(logit_scale, const_shape![N]);
        let low: Tile<f32, { [N] }> = constant(-1.0e30f32, const_shape![N]);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let one: Tile<f32, { [N] }> = constant(1.0f32, const_shape![N]);
        let mut m: Tile<f32, { [N] }> = low;
        let mut s: Tile<f32, { [N] }> = none;
        let mut all: Tile<f32, { [N] }> = none;
        let mut own: Tile<f32, { [N] }> = none;
        let want: Tile<i32, { [N] }> = broadcast_scalar(y, const_shape![N]);
        if on == 1i32 {
            let xp: Partition<E, { [1, N] }> = xv.partition(const_shape![1, N]);
            // A running maximum and sum in each lane; the lanes are joined at the end.
            for i in 0i32..steps {
                let t: Tile<E, { [1, N] }> = xp.load([pid.0, i]);
                let t: Tile<f32, { [N] }> = convert_tile(t.reshape(const_shape![N]));
                let t: Tile<f32, { [N] }> = capped::<N>(t * factor, cap).reshape(const_shape![N]);
                let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
                let inside: Tile<bool, { [N] }> = lt_tile(c, ends);
                let a: Tile<f32, { [N] }> = select(inside, t, low);
                let n: Tile<f32, { [N] }> = max_tile(m, a);
                let e: Tile<f32, { [N] }> = exp_fast::<N>(a - n).reshape(const_shape![N]);
                let k: Tile<f32, { [N] }> = exp_fast::<N>(m - n).reshape(const_shape![N]);
                s = s * k + select(inside, e, none);
                m = n;
                all = all + select(inside, t, none);
                own = own + select(eq_tile(c, want), t, none);
            }
        }
        let top: Tile<f32, { [] }> = reduce_max(m, 0i32);
        let top1: Tile<f32, { [1] }> = top.reshape(const_shape![1]);
        let topn: Tile<f32, { [N] }> = top1.broadcast(const_shape![N]);
        let sum: Tile<f32, { [] }> = reduce_sum(s * exp(m - topn), 0i32);
        let sum: Tile<f32, { [1] }> = sum.reshape(const_shape![1]);
        let l: Tile<f32, { [1] }> = top1 + log(sum);
        let mean: Tile<f32, { [] }> = reduce_sum(all, 0i32);
        let size: f32 = convert_scalar(v);
        let size: Tile<f32, { [1] }> = broadcast_scalar(size, const_shape![1]);
        let mean: Tile<f32, { [1] }> = true_div(mean.reshape(const_shape![1]), size);
        let hit: Tile<f32, { [] }> = reduce_sum(own, 0i32);
        let hit: Tile<f32, { [1] }> = hit.reshape(const_shape![1]);
        let sm: Tile<f32, { [1] }> = broadcast_scalar(smoothing, const_shape![1]);
        let zt: Tile<f32, { [1] }> = broadcast_scalar(z, const_shape![1]);
        let one1: Tile<f32, { [1] }> = constant(1.0f32, const_shape![1]);
        let two1: Tile<f32, { [1] }> = constant(2.0f32, const_shape![1]);
        let zero1: Tile<f32, { [1] }> = constant(0.0f32, const_shape![1]);
        let mut lo: Tile<f32, { [1] }> = (one1 - sm) * (l - hit) + sm * (l - mean) + zt * l * l;
        let mut ls: Tile<f32, { [1] }> = l;
        if on == 0i32 {
            lo = zero1;
            ls = zero1;
        }
        let place: Tile<i32, { [1] }> = broadcast_scalar(pid.0, const_shape![1]);
        let count: Tile<i32, { [1] }> = broadcast_scalar(rows, const_shape![1]);
        let valid: Tile<bool, { [1] }> = lt_tile(place, count);
        unsafe { write_f32::<1>(loss, place, lo, valid) };
        unsafe { write_f32::<1>(lse, place, ls, valid) };
        let mut warped: i32 = 0i32;
        if grad == 1i32 {
            if warp != 0.0f32 {
                warped = 1i32;
            }
        }
        let past: Tile<i32, { [N] }> = constant(2147483647i32, const_shape![N]);
        let mut most: Tile<f32, { [N] }> = low;
        let mut at: Tile<i32, { [N] }> = past;
        if warped == 1i32 {
            let xp: Partition<E, { [1, N] }> = xv.partition(const_shape![1, N]);
            for i in 0i32..steps {
                let t: Tile<E, { [1, N] }> = xp.load([pid.0, i]);
                let t: Tile<f32, { [N] }> = convert_tile(t.reshape(const_shape![N]));
                let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
                let a: Tile<f32, { [N] }> = select(lt_tile(c, ends), t, low);
                at = select(gt_tile(a, most), c, at);
                most = max_tile(most, a);
            }
        }
        let peak: Tile<f32, { [] }> = reduce_max(most, 0i32);
        let peak: Tile<f32, { [1] }> = peak.reshape(const_shape![1]);
        let peak: Tile<f32, { [N] }> = peak.broadcast(const_shape![N]);
        let spot: Tile<i32, { [] }> = reduce_min(select(eq_tile(most, peak), at, past), 0i32);
        let spot: Tile<i32, { [1] }> = spot.reshape(const_shape![1]);
        let spot: Tile<i32, { [N] }> = spot.broadcast(const_shape![N]);
        if grad == 1i32 {
            let push: Tile<f32, { [N] }> = broadcast_scalar(warp, const_shape![N]);
            let k: Tile<f32, { [1] }> = broadcast_scalar(scale * logit_scale, const_shape![1]);
            let p1: Tile<f32, { [1] }> = (one1 + two1 * zt * l) * k;
            let hit1: Tile<f32, { [1] }> = (one1 - sm) * k;
            let even1: Tile<f32, { [1] }> = true_div(sm, size) * k;
            let pn: Tile<f32, { [N] }> = p1.broadcast(const_shape![N]);
            let hn: Tile<f32, { [N] }> = hit1.broadcast(const_shape![N]);
            let en: Tile<f32, { [N] }> = even1.broadcast(const_shape![N]);
            let ln: Tile<f32, { [N] }> = l.broadcast(const_shape![N]);
            let xp: Partition<E, { [1, N] }> = xv.partition(const_shape![1, N]);
            let mut to: PartitionMut<E, { [1, N] }> = unsafe { xv.partition_full_mut(const_shape![1, N]) };
            for i in 0i32..steps {
                let mut g: Tile<f32, { [N] }> = none;
                let c: Tile<i32, { [N] }> = lanes::<N>(i).reshape(const_shape![N]);
                if on == 1i32 {
                    let t: Tile<E, { [1, N] }> = xp.load([pid.0, i]);
                    let t: Tile<f32, { [N] }> = convert_tile(t.reshape(const_shape![N]));
                    let is: Tile<f32, { [N] }> = select(eq_tile(c, want), one, none);
                    let u: Tile<f32, { [N] }> = capped::<N>(t * factor, cap).reshape(const_shape![N]);
                    let f: Tile<f32, { [N] }> = cap_slope::<N>(u, cap).reshape(const_shape![N]);
                    let e: Tile<f32, { [N] }> = exp_fast::<N>(u - ln).reshape(const_shape![N]);
                    g = (e * pn - is * hn - en) * f;
                }
                if warped == 1i32 {
                    g = g + select(eq_tile(c, spot), push * peak, none);
                }
                let g: Tile<E, { [N] }> = convert_tile(g);
                unsafe { to.store_unchecked(g.reshape(const_shape![1, N]), [pid.0, i]) };
            }
        }
    }
}
