//! Lanes of integers through pointers: see `lane` for the floats.

/// Integers.
#[cutile::module]
pub mod ints {
    use cutile::core::*;

    /// The elements at `p` where `m` holds.
    pub unsafe fn read_i32<const N: i32>(x: *mut i32, p: Tile<i32, { [N] }>, m: Tile<bool, { [N] }>) -> Tile<i32, { [N] }> {
        let base: PointerTile<*mut i32, { [1] }> = pointer_to_tile(x).reshape(const_shape![1]);
        let base: PointerTile<*mut i32, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut i32, { [N] }> = base.offset_tile(p);
        let (v, _t): (Tile<i32, { [N] }>, Token) =
            unsafe { load_ptr_tko(at, ordering::Weak, None::<scope::TileBlock>, Some(m), None, None, Latency::<0>) };
        v
    }

    /// As `read_i32`.
    pub unsafe fn read_i64<const N: i32>(x: *mut i64, p: Tile<i32, { [N] }>, m: Tile<bool, { [N] }>) -> Tile<i64, { [N] }> {
        let base: PointerTile<*mut i64, { [1] }> = pointer_to_tile(x).reshape(const_shape![1]);
        let base: PointerTile<*mut i64, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut i64, { [N] }> = base.offset_tile(p);
        let (v, _t): (Tile<i64, { [N] }>, Token) =
            unsafe { load_ptr_tko(at, ordering::Weak, None::<scope::TileBlock>, Some(m), None, None, Latency::<0>) };
        v
    }

    /// Writes `v` to the elements at `p` where `m` holds.
    pub unsafe fn write_i64<const N: i32>(y: *mut i64, p: Tile<i32, { [N] }>, v: Tile<i64, { [N] }>, m: Tile<bool, { [N] }>) {
        let base: PointerTile<*mut i64, { [1] }> = pointer_to_tile(y).reshape(const_shape![1]);
        let base: PointerTile<*mut i64, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut i64, { [N] }> = base.offset_tile(p);
        let _t: Token =
            unsafe { store_ptr_tko(at, v, ordering::Weak, None::<scope::TileBlock>, Some(m), None, Latency::<0>) };
    }

    /// As `write_i64`.
    pub unsafe fn write_u8<const N: i32>(y: *mut u8, p: Tile<i32, { [N] }>, v: Tile<u8, { [N] }>, m: Tile<bool, { [N] }>) {
        let base: PointerTile<*mut u8, { [1] }> = pointer_to_tile(y).reshape(const_shape![1]);
        let base: PointerTile<*mut u8, { [N] }> = base.broadcast(const_shape![N]);
        let at: PointerTile<*mut u8, { [N] }> = base.offset_tile(p);
        let _t: Token =
            unsafe { store_ptr_tko(at, v, ordering::Weak, None::<scope::TileBlock>, Some(m), None, Latency::<0>) };
    }
}
