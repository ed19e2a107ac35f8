//! Attention of one new token a sequence over a cache: a part of the keys a block, whose results `attention_merge` joins.
//!
//! For the queries of one group of heads and the keys of one part: the largest score m and the sum l of 2^(scale log2(e) (score - m)) over the keys that count, and acc = sum
//! 2^(..) v. Keys that count: the first `lens` of each row of the cache, of them the last `window`. A part without keys has zeros.
//!
//! Shapes: q `[N, H, G, D]`; k, v `[N, cap, H, D]`; lens i32 `[N]`; acc f32 `[N, H, tiles, parts, GP, D]`; ml f32 `[N, H, tiles, parts, 2, GP]`, tiles =
//! ceil(G / GP). A part is `step` blocks of BN keys, counted from the block of the first key that counts. Grid: `(parts, H * tiles, N)`.

/// Kernel.
#[cutile::module]
pub mod step {
    use crate::tile::math::math::*;
    use crate::tile::view::view::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    unsafe fn attention_step<E: ElementType, const D: i32, const GP: i32, const BN: i32, const L: i32>(
        q: *mut E,
        k: *mut E,
        v: *mut E,
        lens: *mut i32,
        acc: *mut f32,
        ml: *mut f32,
        n: i32,
        cap: i32,
        h: i32,
        g: i32,
        parts: i32,
        step: i32,
        window: i32,
        scale: f32,
    ) {
        let pid: (i32, i32, i32) = get_tile_block_id();
        let (ip, iy, row) = (pid.0, pid.1, pid.2);
        let tiles: i32 = ceil_div(g, GP);
        let ik: i32 = iy / tiles;
        let it: i32 = iy - ik * tiles;
        let len: i32 = unsafe { int_at(lens, n, row) };
        let q: *mut E = unsafe { assume_div_by::<_, 16>(q) };
        let sh: Shape<{ [-1, -1, D] }> = Shape::<{ [-1, -1, D] }> { dims: &[n * h, g] };
        let st: Array<{ [-1, D, 1] }> = Array::<{ [-1, D, 1] }> { dims: &[g * D] };
        let qv: Tensor<E, { [-1, -1, D] }> = unsafe { make_tensor_view(pointer_to_tile(q), sh, st, new_token_unordered()) };
        let kv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(k, row * cap, 1i32, len, h) };
        let vv: Tensor<E, { [-1, -1, -1, D] }> = unsafe { rows_from::<E, D>(v, row * cap, 1i32, len, h) };
        let av: Tensor<f32, { [-1, GP, D] }> = unsafe { mats_f32::<GP, D>(acc, n * h * tiles * parts) };
        let mv: Tensor<f32, { [-1, 2, GP] }> = unsafe { mats_f32::<2, GP>(ml, n * h * tiles * parts) };
        let qp: Partition<E, { [1, GP, D] }> = qv.partition(const_shape![1, GP, D]);
        let kp: Partition<E, { [1, BN, 1, D] }> = kv.partition(const_shape![1, BN, 1, D]);
        let vp: Partition<E, { [1, BN, 1, D] }> = vv.partition(const_shape![1, BN, 1, D]);
        let mut ap: PartitionMut<f32, { [1, GP, D] }> = unsafe { av.partition_full_mut(const_shape![1, GP, D]) };
        let mut mp: PartitionMut<f32, { [1, 1, GP] }> = unsafe { mv.partition_full_mut(const_shape![1, 1, GP]) };
        let from: i32 = max(len - window, 0i32);
        let j0: i32 = from / BN + ip * step;
        let j1: i32 = min(j0 + step, ceil_div(len, BN));
        let tq: Tile<E, { [GP, D] }> = qp.load([row * h + ik, it, 0i32]).reshape(const_shape![GP, D]);
        let c: f32 = scale * 1.4426950408889634f32;
        let cm: Tile<f32, { [GP] }> = broadcast_scalar(c, const_shape![GP]);
        let cs: Tile<f32, { [GP, BN] }> = broadcast_scalar(c, const_shape![GP, BN]);
        let z: Tile<f32, { [GP, BN] }> = constant(0.0f32, const_shape![GP, BN]);
        let zm: Tile<f32, { [GP] }> = constant(0.0f32, const_shape![GP]);
        let none: Tile<f32, { [GP, BN] }> = constant(-2.0e30f32, const_shape![GP, BN]);
        let rn: Tile<i32, { [BN] }> = iota(const_shape![BN]);
        let cols: Tile<i32, { [GP, BN] }> = rn.reshape(const_shape![1, BN]).broadcast(const_shape![GP, BN]);
        let ends: Tile<i32, { [GP, BN] }> = broadcast_scalar(len, const_shape![GP, BN]);
        let starts: Tile<i32, { [GP, BN] }> = broadcast_scalar(from, const_shape![GP, BN]);
        let mut m: Tile<f32, { [GP] }> = constant(-1.0e30f32, const_shape![GP]);
        let mut l: Tile<f32, { [GP] }> = constant(0.0f32, const_shape![GP]);
        let mut o: Tile<f32, { [GP, D] }> = constant(0.0f32, const_shape![GP, D]);
        for j in j0..j1 {
            let tk: Tile<E, { [BN, D] }> = kp.load_pipelined::<L>([0i32, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let tv: Tile<E, { [BN, D] }> = vp.load_pipelined::<L>([0i32, j, ik, 0i32]).reshape(const_shape![BN, D]);
            let s: Tile<f32, { [GP, BN] }> = mma(tq, tk.transpose(), z);
            let at: Tile<i32, { [GP, BN] }> = cols + broadcast_scalar(j * BN, const_shape![GP, BN]);
            let s: Tile<f32, { [GP, BN] }> = select(lt_tile(at, ends), s, none);
            let s: Tile<f32, { [GP, BN] }> = select(ge_tile(at, starts), s, none);
            let top: Tile<f32, { [GP] }> = reduce_max(s, 1i32);
            let new: Tile<f32, { [GP] }> = max_tile(m, top.reshape(const_shape![GP]));
            let shift: Tile<f32, { [GP] }> = zm - new * cm;
            let x: Tile<f32, { [GP, BN] }> = fma(s, cs, col::<GP, BN>(shift), rounding::NearestEven, ftz::Enabled);
            let p: Tile<f32, { [GP, BN] }> = exp2(x, ftz::Enabled);
            let a: Tile<f32, { [GP] }> = exp2((m - new) * cm, ftz::Enabled);
            let sum: Tile<f32, { [GP] }> = reduce_sum(p, 1i32);
            l = l * a + sum.reshape(const_shape![GP]);
            m = new;
            let pe: Tile<E, { [GP, BN] }> = convert_tile(p);
            o = o * col::<GP, D>(a);
            o = mma(pe, tv, o);
        }
        let low: Tile<f32, { [GP] }> = constant(-1.0e29f32, const_shape![GP]);
        m = select(lt_tile(m, low), zm, m);
        let to: i32 = (row * h * tiles + iy) * parts + ip;
        unsafe { ap.store_unchecked(o.reshape(const_shape![1, GP, D]), [to, 0i32, 0i32]) };
        unsafe { mp.store_unchecked(m.reshape(const_shape![1, 1, GP]), [to, 0i32, 0i32]) };
        unsafe { mp.store_unchecked(l.reshape(const_shape![1, 1, GP]), [to, 1i32, 0i32]) };
    }
}
