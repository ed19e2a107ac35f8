//! Scratch memory aligned to cache lines: a vector load that straddles two lines costs twice.

use super::Real;
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A zeroed, 64-byte aligned buffer of `len` numbers that dereferences to a slice.
#[derive(Clone)]
pub struct Buf<R> {
    lines: Vec<Line>,
    len: usize,
    kind: PhantomData<R>,
}

impl<R: Real> Buf<R> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = bytemuck::zeroed_vec((len * size_of::<R>()).div_ceil(size_of::<Line>()));
        Buf { lines, len, kind: PhantomData }
    }
}

impl<R: Real> Deref for Buf<R> {
    type Target = [R];
    fn deref(&self) -> &[R] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<R: Real> DerefMut for Buf<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
