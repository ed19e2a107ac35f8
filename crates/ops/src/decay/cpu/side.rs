//! One side of the chunked algorithm: a query-like and a key-like panel with the decays between their tokens.
//!
//! The decay recurrence is symmetric: scores of keys under key decays, `M_ij = sum_c x_i[c] y_j[c] D_ij[c]`, and of
//! values under value decays (`x` = output gradients, `y` = values) have one form, and so have their products with M.
//! `D_ij[c] = prod_{j < s <= i} e^{g_s[c]}` (or `j < s < i`, exclusive, for the bonus recurrence), M strictly lower.
//!
//! Policy on strong decays: no factor ever exceeds 1 by more than `e^MILD`. A chunk is cut into equal blocks, the
//! largest for which every block decays by at most `MILD`; inside such a block `D_ij = P_i / P_j` is a dense product.
//! A block of 16 that still decays more is done exactly, pair by pair, with running products. Between blocks both
//! factors are products up to a block's edge, hence at most 1. The choice depends on the data alone.

use crate::simd::{Arch, Buf, Extent, Mat, Real, Store, exp_in_place, mm_nn, mm_tn, padded, transpose};

use super::exact;
use super::panel;

/// Smallest block.
const BLOCK: usize = 16;

/// Largest decay of a block done densely, in nats: `e^40 = 2^57.7` leaves half the exponent range to the data.
const MILD: f64 = 40.0;

/// Panels and decay tables of one chunk; all panels have rows of `ld` elements.
pub(super) struct Side<R> {
    arch: Arch,
    /// Row length: the padded channel count.
    pub ld: usize,
    chunk: usize,
    /// Query-like rows.
    pub x: Buf<R>,
    /// Key-like rows.
    pub y: Buf<R>,
    /// Log-decays on entry of [`Side::prepare`], decays after it; empty when nothing decays by channel.
    pub gate: Buf<R>,
    exclusive: bool,
    block: usize,
    exact: Vec<bool>,
    pre: Buf<R>,
    suf: Buf<R>,
    inv: Buf<R>,
    /// Decay of each block.
    block_total: Buf<R>,
    /// Decay of the chunk by channel.
    pub total: Buf<R>,
    x_local: Buf<R>,
    y_local: Buf<R>,
    y_out: Buf<R>,
    x_far: Buf<R>,
    y_far: Buf<R>,
    y_t: Buf<R>,
    tmp: Buf<R>,
    row: Buf<R>,
}

impl<R: Real> Side<R> {
    /// Scratch for chunks of `chunk` tokens of `dim` channels. `gated`: [`Side::gate`] will be filled for each chunk.
    pub fn new(arch: Arch, chunk: usize, dim: usize, gated: bool, exclusive: bool) -> Self {
        let ld = padded(dim);
        let panel = || Buf::zeros(chunk * ld);
        let table = || Buf::zeros(if gated { chunk * ld } else { 0 });
        Side {
            arch,
            ld,
            chunk,
            x: panel(),
            y: panel(),
            gate: table(),
            exclusive,
            block: chunk,
            exact: Vec::with_capacity(chunk / BLOCK),
            pre: table(),
            suf: table(),
            inv: table(),
            block_total: Buf::zeros(chunk / BLOCK * ld),
            total: Buf::zeros(ld),
            x_local: table(),
            y_local: table(),
            y_out: table(),
            x_far: panel(),
            y_far: panel(),
            y_t: Buf::zeros(ld * padded(chunk)),
            tmp: panel(),
            row: Buf::zeros(ld),
        }
    }

    fn gated(&self) -> bool {
        !self.gate.is_empty()
    }

    fn blocks(&self, len: usize) -> usize {
        len.div_ceil(self.block)
    }

    /// Rows of block `i`.
    fn span(&self, i: usize, len: usize) -> std::ops::Range<usize> {
        i * self.block..((i + 1) * self.block).min(len)
    }

    /// Tables and scaled panels for the `len` rows that `x`, `y` and `gate` hold. `scalar` holds decays of whole rows
    /// from the chunk's start and to its end; it is used without channel gates only.
    pub fn prepare(&mut self, len: usize, scalar: Option<(&[R], &[R])>) {
        if self.gated() {
            self.choose_blocks(len);
            exp_in_place(self.arch, &mut self.gate[..len * self.ld]);
            self.tables(len);
            self.scale_panels(len);
        } else if let Some((from_start, to_end)) = scalar {
            let n = len * self.ld;
            panel::mul_by_row(self.arch, &self.x[..n], from_start, self.ld, &mut self.x_far[..n]);
            panel::mul_by_row(self.arch, &self.y[..n], to_end, self.ld, &mut self.y_far[..n]);
        }
    }

    /// The x panel times the decay from the chunk's start: multiplies the chunk's first state.
    pub fn x_far(&self, scalar: bool) -> &[R] {
        match (self.gated(), self.block == self.chunk) {
            (true, true) => &self.x_local,
            (true, false) => &self.x_far,
            (false, _) => {
                if scalar {
                    &self.x_far
                } else {
                    &self.x
                }
            }
        }
    }

    /// The y panel times the decay to the chunk's end: goes into the chunk's last state.
    pub fn y_far(&self, scalar: bool) -> &[R] {
        match (self.gated(), self.block == self.chunk) {
            (true, true) => &self.y_out,
            (true, false) => &self.y_far,
            (false, _) => {
                if scalar {
                    &self.y_far
                } else {
                    &self.y
                }
            }
        }
    }

    /// The largest block that is mild everywhere, else blocks of 16 with the strong ones marked exact.
    fn choose_blocks(&mut self, len: usize) {
        let (ld, small) = (self.ld, len.div_ceil(BLOCK));
        let sums = &mut self.tmp[..small * ld];
        panel::abs_sums(self.arch, &self.gate[..len * ld], ld, BLOCK, sums);
        // f64 has ten times the exponent range.
        let limit = R::from_f64(if size_of::<R>() == 8 { 7.0 * MILD } else { MILD });
        let mut block = self.chunk;
        loop {
            let per = block / BLOCK;
            self.exact.clear();
            for group in sums.chunks(per * ld) {
                let mild = (0..ld).all(|c| group.chunks(ld).map(|row| row[c]).sum::<R>() <= limit);
                self.exact.push(!mild);
            }
            if block == BLOCK || self.exact.iter().all(|e| !e) {
                break;
            }
            block /= 2;
        }
        self.block = block;
    }

    fn tables(&mut self, len: usize) {
        let ld = self.ld;
        self.total.fill(R::ONE);
        for b in 0..self.blocks(len) {
            let span = self.span(b, len);
            let rows = span.start * ld..span.end * ld;
            let total = &mut self.block_total[b * ld..(b + 1) * ld];
            let e = &self.gate[rows.clone()];
            panel::prefix_products(self.arch, e, &mut self.pre[rows.clone()], self.exclusive, total);
            if !self.exact[b] {
                let pre = &self.pre[rows.clone()];
                panel::invert(self.arch, pre, e, self.exclusive, &mut self.inv[rows.clone()]);
            }
            // Not `total / prefix`: the last row's factor must be 1 to the bit, for gradients of gates that do nothing.
            panel::suffix_products(self.arch, &self.gate[rows.clone()], &mut self.suf[rows], &mut self.row);
            panel::mul_assign(self.arch, &mut self.total, total);
        }
    }

    fn scale_panels(&mut self, len: usize) {
        let (arch, ld, n) = (self.arch, self.ld, len * self.ld);
        panel::mul(arch, &self.x[..n], &self.pre[..n], &mut self.x_local[..n]);
        panel::mul(arch, &self.y[..n], &self.suf[..n], &mut self.y_out[..n]);
        let blocks = self.blocks(len);
        for b in 0..blocks {
            if !self.exact[b] {
                let rows = self.span(b, len);
                let rows = rows.start * ld..rows.end * ld;
                panel::mul(arch, &self.y[rows.clone()], &self.inv[rows.clone()], &mut self.y_local[rows]);
            }
        }
        if self.block < self.chunk {
            self.x_far[..n].copy_from_slice(&self.x_local[..n]);
            self.y_far[..n].copy_from_slice(&self.y_out[..n]);
            // Row b of x is multiplied by all earlier block totals, row b of y by all later ones.
            for b in 0..blocks {
                let total = &self.block_total[b * ld..(b + 1) * ld];
                let edge = self.block * ld * b;
                let next = (edge + self.block * ld).min(n);
                panel::mul_rows_assign(arch, &mut self.x_far[next..n], total);
                panel::mul_rows_assign(arch, &mut self.y_far[..edge], total);
            }
        }
    }

    /// `m[i][j] = sum_c x_i[c] y_j[c] D_ij[c]` for `j < i`, 0 elsewhere; rows of `m` are `ldm` apart.
    pub fn scores(&mut self, len: usize, m: &mut [R], ldm: usize) {
        let (arch, ld) = (self.arch, self.ld);
        let width = padded(len);
        if !self.gated() {
            transpose(arch, &self.y, ld, len, ld, &mut self.y_t, ldm);
            let (a, b) = (Mat::new(&self.x, ld), Mat::new(&self.y_t, ldm));
            mm_nn(arch, (len, width, ld), a, b, (m, ldm), Store::Set, Extent::LowerOut);
        } else {
            self.local_scores(len, m, ldm);
            self.far_scores(len, m, ldm);
        }
        for i in 0..len {
            m[i * ldm + i..i * ldm + width].fill(R::ZERO);
        }
    }

    /// Diagonal blocks.
    fn local_scores(&mut self, len: usize, m: &mut [R], ldm: usize) {
        let (arch, ld) = (self.arch, self.ld);
        for b in 0..self.blocks(len) {
            let span = self.span(b, len);
            let (s, rows) = (span.start, span.len());
            let r = s * ld..span.end * ld;
            let m = &mut m[s * ldm + s..];
            if self.exact[b] {
                let gate = &self.gate[r.clone()];
                exact::scores(
                    arch,
                    &self.x[r.clone()],
                    &self.y[r],
                    gate,
                    ld,
                    self.exclusive,
                    (m, ldm),
                    &mut self.row,
                );
            } else {
                transpose(arch, &self.y_local[r.clone()], ld, rows, ld, &mut self.y_t, ldm);
                let (x, y) = (Mat::new(&self.x_local[r], ld), Mat::new(&self.y_t, ldm));
                mm_nn(arch, (rows, padded(rows), ld), x, y, (m, ldm), Store::Set, Extent::LowerOut);
            }
        }
    }

    /// Blocks below the diagonal.
    fn far_scores(&mut self, len: usize, m: &mut [R], ldm: usize) {
        let (arch, ld, blocks) = (self.arch, self.ld, self.blocks(len));
        if blocks < 2 {
            return;
        }
        transpose(arch, &self.y_out, ld, len, ld, &mut self.y_t, ldm);
        for b in 1..blocks {
            let span = self.span(b, len);
            // The columns before the previous block now also decay over that block.
            let edge = (b - 1) * self.block;
            let total = &self.block_total[(b - 1) * ld..b * ld];
            for (row, &w) in self.y_t.chunks_mut(ldm).zip(total) {
                row[..edge].iter_mut().for_each(|v| *v *= w);
            }
            let (x, y) = (Mat::new(&self.x_local[span.start * ld..], ld), Mat::new(&self.y_t, ldm));
            let size = (span.len(), span.start, ld);
            mm_nn(arch, size, x, y, (&mut m[span.start * ldm..], ldm), Store::Set, Extent::Full);
        }
    }

    /// `out_i <- far_i out_i + sum_{j < i} m_ij D_ij y_j` where far is the decay from the chunk's start: adds the
    /// chunk's own part to a product with its first state. Without channel gates `m`'s diagonal takes part too.
    pub fn finish_x(&mut self, len: usize, m: (&[R], usize), scalar: Option<&[R]>, out: &mut [R]) {
        let (arch, ld) = (self.arch, self.ld);
        if !self.gated() {
            if let Some(from_start) = scalar {
                panel::mul_by_row_assign(arch, &mut out[..len * ld], from_start, ld);
            }
            let (a, b) = (Mat::new(m.0, m.1), Mat::new(&self.y[..], ld));
            mm_nn(arch, (len, ld, len), a, b, (out, ld), Store::Add, Extent::LowerInner);
            return;
        }
        let blocks = self.blocks(len);
        if blocks > 1 {
            self.tmp[..len * ld].copy_from_slice(&self.y_out[..len * ld]);
        }
        for b in 0..blocks {
            let span = self.span(b, len);
            let (s, rows) = (span.start, span.len());
            let r = s * ld..span.end * ld;
            if b > 0 {
                let total = &self.block_total[(b - 1) * ld..b * ld];
                panel::mul_rows_assign(arch, &mut out[s * ld..len * ld], total);
                panel::mul_rows_assign(arch, &mut self.tmp[..(b - 1) * self.block * ld], total);
                let (a, y) = (Mat::new(&m.0[s * m.1..], m.1), Mat::new(&self.tmp[..], ld));
                mm_nn(arch, (rows, ld, s), a, y, (&mut out[s * ld..], ld), Store::Add, Extent::Full);
            }
            let a = Mat::new(&m.0[s * m.1 + s..], m.1);
            if !self.exact[b] {
                let y = Mat::new(&self.y_local[s * ld..], ld);
                mm_nn(arch, (rows, ld, rows), a, y, (&mut out[s * ld..], ld), Store::Add, Extent::LowerInner);
            }
            panel::mul_assign(arch, &mut out[r.clone()], &self.pre[r.clone()]);
            if self.exact[b] {
                let (y, gate) = (&self.y[r.clone()], &self.gate[r.clone()]);
                exact::apply(arch, a.data, a.ld, y, gate, self.exclusive, &mut out[r], &mut self.row);
            }
        }
    }

    /// `out_j <- far_j out_j + sum_{i > j} m_ij D_ij x_i` where far is the decay to the chunk's end; the mirror image
    /// of [`Side::finish_x`].
    pub fn finish_y(&mut self, len: usize, m: (&[R], usize), scalar: Option<&[R]>, out: &mut [R]) {
        let (arch, ld) = (self.arch, self.ld);
        if !self.gated() {
            if let Some(to_end) = scalar {
                panel::mul_by_row_assign(arch, &mut out[..len * ld], to_end, ld);
            }
            let (a, b) = (Mat::new(m.0, m.1), Mat::new(&self.x[..], ld));
            mm_tn(arch, (len, ld, len), a, b, (out, ld), Store::Add, Extent::UpperInner);
            return;
        }
        // Horner over blocks from the last: what lies beyond decays over block b, then block b's own part is added.
        for b in (1..self.blocks(len)).rev() {
            let span = self.span(b, len);
            let s = span.start;
            panel::mul_rows_assign(arch, &mut out[..s * ld], &self.block_total[b * ld..(b + 1) * ld]);
            let (a, x) = (Mat::new(&m.0[s * m.1..], m.1), Mat::new(&self.x_local[s * ld..], ld));
            mm_tn(arch, (s, ld, span.len()), a, x, (out, ld), Store::Add, Extent::Full);
        }
        for b in 0..self.blocks(len) {
            let span = self.span(b, len);
            let (s, rows) = (span.start, span.len());
            let r = s * ld..span.end * ld;
            let a = Mat::new(&m.0[s * m.1 + s..], m.1);
            panel::mul_assign(arch, &mut out[r.clone()], &self.suf[r.clone()]);
            if self.exact[b] {
                let (x, gate) = (&self.x[r.clone()], &self.gate[r.clone()]);
                exact::apply_t(arch, a.data, a.ld, x, gate, self.exclusive, &mut out[r], &mut self.row);
            } else {
                let x = Mat::new(&self.x_local[s * ld..], ld);
                let tmp = &mut self.tmp[..rows * ld];
                mm_tn(arch, (rows, ld, rows), a, x, (tmp, ld), Store::Set, Extent::UpperInner);
                panel::add_mul(arch, &mut out[r.clone()], tmp, &self.inv[r]);
            }
        }
    }
}
