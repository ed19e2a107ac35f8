//! A block of `BT` tokens by `BD` channels of a packed sequence as one row of lanes, and the inputs of a causal window before it.

/// Windows.
#[cutile::module]
pub mod window {
    use crate::tile::lane::lane::*;
    use cutile::core::*;

    /// Number `k` of entry `c` of the table of chunks.
    pub unsafe fn chunk_at(chunks: *mut i32, count: i32, c: i32, k: i32) -> i32 {
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[count * 4i32] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<i32, { [-1] }> = unsafe { make_tensor_view(pointer_to_tile(chunks), sh, st, new_token_unordered()) };
        let xp: Partition<i32, { [1] }> = x.partition(const_shape![1]);
        let v: Tile<i32, { [1] }> = xp.load([c * 4i32 + k]);
        let v: i32 = tile_to_scalar(v.reshape(const_shape![]));
        v
    }

    /// Inputs (f32) at tokens `r` of a sequence and channels `c`: from x `[tokens, d]` where `0 <= r < len`, from the state
    /// `[n, d, w]` where `r < 0`, zero elsewhere.
    pub unsafe fn input<E: ElementType, const N: i32>(
        x: *mut E,
        state: *mut E,
        r: Tile<i32, { [N] }>,
        c: Tile<i32, { [N] }>,
        first: i32,
        len: i32,
        seq: i32,
        d: i32,
        w: i32,
        has_state: i32,
    ) -> Tile<f32, { [N] }> {
        let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let ends: Tile<i32, { [N] }> = broadcast_scalar(len, const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let start: Tile<i32, { [N] }> = broadcast_scalar(first, const_shape![N]);
        let from: Tile<i32, { [N] }> = broadcast_scalar(seq * d, const_shape![N]);
        let there: Tile<bool, { [N] }> = lt_tile(c, width);
        let no: Tile<bool, { [N] }> = lt_tile(zero, zero);
        let inside: Tile<bool, { [N] }> = select(there, select(ge_tile(r, zero), lt_tile(r, ends), no), no);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(x, (start + r) * width + c, inside) }.reshape(const_shape![N]);
        let v: Tile<f32, { [N] }> = convert_tile(v);
        let mut out: Tile<f32, { [N] }> = select(inside, v, none);
        if has_state == 1i32 {
            let before: Tile<bool, { [N] }> = select(there, select(lt_tile(r, zero), ge_tile(r + taps, zero), no), no);
            let s: Tile<E, { [N] }> =
                unsafe { read::<E, N>(state, (from + c) * taps + taps + r, before) }.reshape(const_shape![N]);
            let s: Tile<f32, { [N] }> = convert_tile(s);
            out = select(before, s, out);
        }
        out
    }

    /// Tap `j` of the channels `c` of weight `[d, w]`, in f32; zero beyond d.
    pub unsafe fn tap<E: ElementType, const N: i32>(
        weight: *mut E,
        c: Tile<i32, { [N] }>,
        j: i32,
        d: i32,
        w: i32,
    ) -> Tile<f32, { [N] }> {
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let taps: Tile<i32, { [N] }> = broadcast_scalar(w, const_shape![N]);
        let at: Tile<i32, { [N] }> = broadcast_scalar(j, const_shape![N]);
        let there: Tile<bool, { [N] }> = lt_tile(c, width);
        let v: Tile<E, { [N] }> = unsafe { read::<E, N>(weight, c * taps + at, there) }.reshape(const_shape![N]);
        let v: Tile<f32, { [N] }> = convert_tile(v);
        let none: Tile<f32, { [N] }> = constant(0.0f32, const_shape![N]);
        let v: Tile<f32, { [N] }> = select(there, v, none);
        v
    }

    /// True where token `t` lies in a sequence of `len` and channel `c` below `d`.
    pub unsafe fn within<const N: i32>(t: Tile<i32, { [N] }>, c: Tile<i32, { [N] }>, len: i32, d: i32) -> Tile<bool, { [N] }> {
        let ends: Tile<i32, { [N] }> = broadcast_scalar(len, const_shape![N]);
        let width: Tile<i32, { [N] }> = broadcast_scalar(d, const_shape![N]);
        let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let no: Tile<bool, { [N] }> = lt_tile(zero, zero);
        let m: Tile<bool, { [N] }> = select(lt_tile(c, width), lt_tile(t, ends), no);
        m
    }
}
