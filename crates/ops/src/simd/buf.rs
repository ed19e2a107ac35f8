//! Scratch memory aligned to cache lines: a vector load that straddles two lines costs twice.
//!
//! A kernel's scratch is some hundred kilobytes in dozens of buffers, made anew for every task; fresh pages cost a fault
//! each (measured: a tenth of the time of a short sequence). So a thread keeps what it freed, up to a bound, and hands it
//! out again, zeroed.

use super::Real;
use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Lines that a thread may keep: 8 MiB.
const KEEP: usize = (8 << 20) / size_of::<Line>();

/// What a thread freed, oldest first.
#[derive(Default)]
struct Freed {
    buffers: Vec<Vec<Line>>,
    lines: usize,
}

thread_local! {
    static FREED: RefCell<Freed> = RefCell::default();
}

impl Freed {
    fn take(&mut self, lines: usize) -> Option<Vec<Line>> {
        let at = self.buffers.iter().rposition(|b| b.len() == lines)?;
        self.lines -= lines;
        Some(self.buffers.remove(at))
    }

    fn give(&mut self, buffer: Vec<Line>) {
        if buffer.is_empty() || buffer.len() > KEEP {
            return;
        }
        self.lines += buffer.len();
        self.buffers.push(buffer);
        while self.lines > KEEP {
            self.lines -= self.buffers.remove(0).len();
        }
    }
}

/// A 64-byte aligned buffer of `len` numbers, zero at first, that dereferences to a slice.
#[derive(Clone)]
pub struct Buf<R> {
    lines: Vec<Line>,
    len: usize,
    kind: PhantomData<R>,
}

impl<R: Real> Buf<R> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let n = (len * size_of::<R>()).div_ceil(size_of::<Line>());
        let old = FREED.try_with(|f| f.borrow_mut().take(n)).ok().flatten();
        let lines = match old {
            Some(mut lines) => {
                lines.fill(Line::zeroed());
                lines
            }
            None => bytemuck::zeroed_vec(n),
        };
        Buf { lines, len, kind: PhantomData }
    }
}

impl<R> Drop for Buf<R> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that is ending keeps nothing.
        let _ = FREED.try_with(|f| f.borrow_mut().give(lines));
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
