//! One element a lane: positions under five sizes and strides, gathers and scatters through pointers.

/// Lanes.
#[cutile::module]
pub mod lane {
    use cutile::core::*;

    /// The elements of block `b`.
    pub fn lanes<const N: i32>(b: i32) -> Tile<i32, { [N] }> {
        let i: Tile<i32, { [N] }> = iota(const_shape![N]);
        let s: Tile<i32, { [N] }> = broadcast_scalar(b * N, const_shape![N]);
        let j: Tile<i32, { [N] }> = i + s;
        j
    }

    /// Where the element `i` (row-major under the inner sizes d1..d4) lies in a view with these strides.
    pub fn place<const N: i32>(
        i: Tile<i32, { [N] }>,
        d1: i32,
        d2: i32,
        d3: i32,
        d4: i32,
        s0: i32,
        s1: i32,
        s2: i32,
        s3: i32,
        s4: i32,
    ) -> Tile<i32, { [N] }> {
        let t1: Tile<i32, { [N] }> = broadcast_scalar(d1, const_shape![N]);
        let t2: Tile<i32, { [N] }> = broadcast_scalar(d2, const_shape![N]);
        let t3: Tile<i32, { [N] }> = broadcast_scalar(d3, const_shape![N]);
        let t4: Tile<i32, { [N] }> = broadcast_scalar(d4, const_shape![N]);
        let r4: Tile<i32, { [N] }> = i / t4;
        let c4: Tile<i32, { [N] }> = i - r4 * t4;
        let r3: Tile<i32, { [N] }> = r4 / t3;
        let c3: Tile<i32, { [N] }> = r4 - r3 * t3;
        let r2: Tile<i32, { [N] }> = r3 / t2;
        let c2: Tile<i32, { [N] }> = r3 - r2 * t2;
        let r1: Tile<i32, { [N] }> = r2 / t1;
        let c1: Tile<i32, { [N] }> = r2 - r1 * t1;
        let a0: Tile<i32, { [N] }> = broadcast_scalar(s0, const_shape![N]);
        let a1: Tile<i32, { [N] }> = broadcast_scalar(s1, const_shape![N]);
        let a2: Tile<i32, { [N] }> = broadcast_scalar(s2, const_shape![N]);
        let a3: Tile<i32, { [N] }> = broadcast_scalar(s3, const_shape![N]);
        let a4: Tile<i32, { [N] }> = broadcast_scalar(s4, const_shape![N]);
        let p: Tile<i32, { [N] }> = r1 * a0 + c1 * a1 + c2 * a2 + c3 * a3 + c4 * a4;
        p
    }

    /// The elements at `p` where `m` holds.
    pub unsafe fn read<E: ElementType, const N: i32>(x: *mut E, p: Tile<i32, { [N] }>, m: Tile<bool, { [N] }>) -> Tile<E, { [N] }> {
        let base: PointerTile<*mut E, { [1] }> = pointer_to_tile(x).reshape(const_shape![1]);
        let base: PointerTile<*mut E, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut E, { [N] }> = base.offset_tile(p);
        let (v, _t): (Tile<E, { [N] }>, Token) =
            unsafe { load_ptr_tko(at, ordering::Weak, None::<scope::TileBlock>, Some(m), None, None, Latency::<0>) };
        v
    }

    /// Writes `v` to the elements at `p` where `m` holds.
    pub unsafe fn write<E: ElementType, const N: i32>(
        y: *mut E,
        p: Tile<i32, { [N] }>,
        v: Tile<E, { [N] }>,
        m: Tile<bool, { [N] }>,
    ) {
        let base: PointerTile<*mut E, { [1] }> = pointer_to_tile(y).reshape(const_shape![1]);
        let base: PointerTile<*mut E, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut E, { [N] }> = base.offset_tile(p);
        let _t: Token =
            unsafe { store_ptr_tko(at, v, ordering::Weak, None::<scope::TileBlock>, Some(m), None, Latency::<0>) };
    }

    /// As `read`. (A concrete type cannot be given to a generic helper.)
    pub unsafe fn read_u8<const N: i32>(x: *mut u8, p: Tile<i32, { [N] }>, m: Tile<bool, { [N] }>) -> Tile<u8, { [N] }> {
        let base: PointerTile<*mut u8, { [1] }> = pointer_to_tile(x).reshape(const_shape![1]);
        let base: PointerTile<*mut u8, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut u8, { [N] }> = base.offset_tile(p);
        let (v, _t): (Tile<u8, { [N] }>, Token) =
            unsafe { load_ptr_tko(at, ordering::Weak, None::<scope::TileBlock>, Some(m), None, None, Latency::<0>) };
        v
    }

    /// As `write`.
    pub unsafe fn write_f32<const N: i32>(y: *mut f32, p: Tile<i32, { [N] }>, v: Tile<f32, { [N] }>, m: Tile<bool, { [N] }>) {
        let base: PointerTile<*mut f32, { [1] }> = pointer_to_tile(y).reshape(const_shape![1]);
        let base: PointerTile<*mut f32, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut f32, { [N] }> = base.offset_tile(p);
        let _t: Token =
            unsafe { store_ptr_tko(at, v, ordering::Weak, None::<scope::TileBlock>, Some(m), None, Latency::<0>) };
    }

    /// Index `c` of `count`, as a row; -1 where 32 bits do not hold it.
    pub unsafe fn row_at(index: *mut i64, count: i32, c: i32) -> i32 {
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[count] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<i64, { [-1] }> = unsafe { make_tensor_view(pointer_to_tile(index), sh, st, new_token_unordered()) };
        let xp: Partition<i64, { [1] }> = x.partition(const_shape![1]);
        let v: Tile<i64, { [1] }> = xp.load([c]);
        let most: Tile<i64, { [1] }> = constant(2147483647i64, const_shape![1]);
        let none: Tile<i64, { [1] }> = constant(-1i64, const_shape![1]);
        let fits: Tile<bool, { [1] }> = le_tile(v, most);
        let v: Tile<i64, { [1] }> = select(fits, v, none);
        let v: Tile<i64, { [1] }> = max_tile(v, none);
        let v: Tile<i32, { [1] }> = trunci(v, overflow::NoSignedWrap);
        let r: i32 = tile_to_scalar(v.reshape(const_shape![]));
        r
    }

    /// How many of the indices of block `b` of N, below `end`, are `r`.
    pub unsafe fn equal_to<const N: i32>(index: *mut i64, b: i32, end: i32, r: i32) -> i32 {
        let sh: Shape<{ [-1] }> = Shape::<{ [-1] }> { dims: &[end] };
        let st: Array<{ [1] }> = Array::<{ [1] }> { dims: &[] };
        let x: Tensor<i64, { [-1] }> = unsafe { make_tensor_view(pointer_to_tile(index), sh, st, new_token_unordered()) };
        let xp: Partition<i64, { [N] }> = x.partition(const_shape![N]);
        let v: Tile<i64, { [N] }> = xp.load([b]);
        let want: Tile<i32, { [N] }> = broadcast_scalar(r, const_shape![N]);
        let want: Tile<i64, { [N] }> = exti(want);
        let i: Tile<i32, { [N] }> = lanes::<N>(b).reshape(const_shape![N]);
        let last: Tile<i32, { [N] }> = broadcast_scalar(end, const_shape![N]);
        let zero: Tile<i32, { [N] }> = constant(0i32, const_shape![N]);
        let one: Tile<i32, { [N] }> = constant(1i32, const_shape![N]);
        let h: Tile<i32, { [N] }> = select(eq_tile(v, want), select(lt_tile(i, last), one, zero), zero);
        let h: Tile<i32, { [] }> = reduce_sum(h, 0i32);
        let h: i32 = tile_to_scalar(h);
        h
    }

    /// As `read`.
    pub unsafe fn read_f32<const N: i32>(x: *mut f32, p: Tile<i32, { [N] }>, m: Tile<bool, { [N] }>) -> Tile<f32, { [N] }> {
        let base: PointerTile<*mut f32, { [1] }> = pointer_to_tile(x).reshape(const_shape![1]);
        let base: PointerTile<*mut f32, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut f32, { [N] }> = base.offset_tile(p);
        let (v, _t): (Tile<f32, { [N] }>, Token) =
            unsafe { load_ptr_tko(at, ordering::Weak, None::<scope::TileBlock>, Some(m), None, None, Latency::<0>) };
        v
    }
}
