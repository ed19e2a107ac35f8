//! Pairs of tokens inside a chunk with a decay for each channel between them: one key-like panel `y`, and N query-like
//! panels `x` that read it.
//!
//! The recurrences are symmetric: scores of keys under key decays, `M_ij = sum_c x_i[c] y_j[c] D_ij[c]`, and of values
//! under value decays (`x` = output gradients, `y` = values) have one form, and so have their products with M.
//! `D_ij[c]` is the product of the decays of the tokens `j < s <= i`; for an exclusive panel, `j < s < i` (it reads before
//! its own token decays: the bonus recurrence, Comba's erase key). M is strictly lower.
//!
//! Policy on strong decays: no factor ever exceeds 1 by more than `e^MILD`. A chunk is cut into equal blocks, the
//! largest for which every block decays by at most `MILD`; inside such a block `D_ij = P_i / P_j` is a dense product.
//! A block of 16 that still decays more is done exactly, pair by pair, with running products. Between blocks both
//! factors are products up to a block's edge, hence at most 1. The choice depends on the data alone.

pub(crate) mod exact;
pub(crate) mod panel;
mod tables;

use std::ops::Range;

use crate::simd::{Arch, Buf, Extent, Mat, Real, Store, mm_nn, mm_tn, padded, transpose};

/// Smallest block.
const BLOCK: usize = 16;

/// Largest decay of a block done densely, in nats: `e^40 = 2^57.7` leaves half the exponent range to the data.
const MILD: f64 = 40.0;

/// A query-like panel.
pub(crate) struct Reader<R> {
    /// The rows.
    pub rows: Buf<R>,
    /// Whether a row reads before its own token's decay.
    exclusive: bool,
    /// Decayed from the start of the row's block, and of the chunk.
    local: Buf<R>,
    far: Buf<R>,
}

/// A score matrix: elements and row length.
type Scores<'a, R> = (&'a [R], usize);

/// Panels and decay tables of one chunk; all panels have rows of `ld` elements.
pub(crate) struct Pairs<R, const N: usize = 1> {
    arch: Arch,
    /// Row length: the padded channel count.
    pub ld: usize,
    chunk: usize,
    /// Query-like panels.
    pub x: [Reader<R>; N],
    /// Key-like rows.
    pub y: Buf<R>,
    /// Decays (at most 1, 1 in the padding); empty when nothing decays by channel.
    pub decay: Buf<R>,
    block: usize,
    exact: Vec<bool>,
    /// Within a block: decays up to and with each row, after each row, and the inverses of the first.
    pre: Buf<R>,
    suf: Buf<R>,
    inv: Buf<R>,
    /// Decay of each block.
    block_total: Buf<R>,
    /// Decay of the chunk by channel.
    pub total: Buf<R>,
    y_local: Buf<R>,
    y_out: Buf<R>,
    y_far: Buf<R>,
    y_t: Buf<R>,
    tmp: Buf<R>,
    row: Buf<R>,
}

impl<R: Real, const N: usize> Pairs<R, N> {
    /// Scratch for chunks of `chunk` tokens of `dim` channels. `gated`: [`Pairs::decay`] will be filled for each chunk.
    pub fn new(arch: Arch, chunk: usize, dim: usize, gated: bool, exclusive: [bool; N]) -> Self {
        let ld = padded(dim);
        let panel = || Buf::zeros(chunk * ld);
        let table = || Buf::zeros(if gated { chunk * ld } else { 0 });
        let reader = |exclusive| Reader { rows: panel(), exclusive, local: table(), far: panel() };
        Pairs {
            arch,
            ld,
            chunk,
            x: exclusive.map(reader),
            y: panel(),
            decay: table(),
            block: chunk,
            exact: Vec::with_capacity(chunk / BLOCK),
            pre: table(),
            suf: table(),
            inv: table(),
            block_total: Buf::zeros(chunk / BLOCK * ld),
            total: Buf::zeros(ld),
            y_local: table(),
            y_out: table(),
            y_far: panel(),
            y_t: Buf::zeros(ld * padded(chunk)),
            tmp: panel(),
            row: Buf::zeros(ld),
        }
    }

    fn gated(&self) -> bool {
        !self.decay.is_empty()
    }

    fn blocks(&self, len: usize) -> usize {
        len.div_ceil(self.block)
    }

    /// Rows of block `i`.
    fn span(&self, i: usize, len: usize) -> Range<usize> {
        i * self.block..((i + 1) * self.block).min(len)
    }

    /// Elements of the rows of block `i`.
    fn elements(&self, i: usize, len: usize) -> Range<usize> {
        let span = self.span(i, len);
        span.start * self.ld..span.end * self.ld
    }

    /// Tables and scaled panels for the `len` rows that `x`, `y` and `decay` hold. `scalar` holds decays of whole rows
    /// from the chunk's start and to its end; it is used without channel decays only.
    pub fn prepare(&mut self, len: usize, scalar: Option<(&[R], &[R])>) {
        if self.gated() {
            self.choose_blocks(len);
            self.tables(len);
            self.scale_panels(len);
        } else if let Some((from_start, to_end)) = scalar {
            let n = len * self.ld;
            for x in &mut self.x {
                panel::mul_by_row(self.arch, &x.rows[..n], from_start, self.ld, &mut x.far[..n]);
            }
            panel::mul_by_row(self.arch, &self.y[..n], to_end, self.ld, &mut self.y_far[..n]);
        }
    }

    /// Panel `i` of x times the decay from the chunk's start: multiplies the chunk's first state.
    pub fn x_far(&self, i: usize, scalar: bool) -> &[R] {
        let x = &self.x[i];
        match (self.gated(), self.block == self.chunk) {
            (true, true) => &x.local,
            (true, false) => &x.far,
            (false, _) if scalar => &x.far,
            (false, _) => &x.rows,
        }
    }

    /// The y panel times the decay to the chunk's end: goes into the chunk's last state.
    pub fn y_far(&self, scalar: bool) -> &[R] {
        match (self.gated(), self.block == self.chunk) {
            (true, true) => &self.y_out,
            (true, false) => &self.y_far,
            (false, _) if scalar => &self.y_far,
            (false, _) => &self.y,
        }
    }

    /// The largest block that is mild everywhere, else blocks of 16 with the strong ones marked exact.
    fn choose_blocks(&mut self, len: usize) {
        let (ld, small) = (self.ld, len.div_ceil(BLOCK));
        let products = &mut self.tmp[..small * ld];
        tables::group_products(self.arch, &self.decay[..len * ld], ld, BLOCK, products);
        // f64 has ten times the exponent range.
        let limit = if size_of::<R>() == 8 { 7.0 * MILD } else { MILD };
        let (low, high) = (R::from_f64((-limit).exp()), R::from_f64(limit.exp()));
        let mut block = self.chunk;
        loop {
            let per = block / BLOCK;
            self.exact.clear();
            for group in products.chunks(per * ld) {
                let total = |c: usize| group.chunks(ld).fold(R::ONE, |p, row| p * row[c]);
                // A NaN is not mild either.
                self.exact.push(!(0..ld).all(|c| (low..=high).contains(&total(c))));
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
            let rows = self.elements(b, len);
            let total = &mut self.block_total[b * ld..(b + 1) * ld];
            let (e, y) = (&self.decay[rows.clone()], &self.y[rows.clone()]);
            let pre = &mut self.pre[rows.clone()];
            if self.exact[b] {
                tables::prefix_products(self.arch, e, pre, total);
            } else {
                let inverse = (&mut self.inv[rows.clone()], &mut self.y_local[rows.clone()]);
                tables::prefix_and_inverse(self.arch, e, y, pre, inverse, total);
            }
            // Not `total / prefix`: the last row's factor must be 1 to the bit, for gradients of gates that do nothing.
            tables::suffix_products(
                self.arch,
                e,
                y,
                (&mut self.suf[rows.clone()], &mut self.y_out[rows]),
                ld,
            );
            panel::mul_assign(self.arch, &mut self.total, total);
        }
    }

    fn scale_panels(&mut self, len: usize) {
        let (arch, ld, n) = (self.arch, self.ld, len * self.ld);
        let blocks = self.blocks(len);
        for b in 0..blocks {
            let rows = self.elements(b, len);
            for x in &mut self.x {
                let (from, to) = (&x.rows[rows.clone()], &mut x.local[rows.clone()]);
                decay_rows(arch, x.exclusive, from, &self.pre[rows.clone()], ld, to);
            }
        }
        if self.block == self.chunk {
            return;
        }
        for x in &mut self.x {
            x.far[..n].copy_from_slice(&x.local[..n]);
        }
        self.y_far[..n].copy_from_slice(&self.y_out[..n]);
        // Block b of x is multiplied by all earlier block totals, block b of y by all later ones.
        for b in 0..blocks {
            let total = &self.block_total[b * ld..(b + 1) * ld];
            let edge = self.block * ld * b;
            let next = (edge + self.block * ld).min(n);
            for x in &mut self.x {
                panel::mul_rows_assign(arch, &mut x.far[next..n], total);
            }
            panel::mul_rows_assign(arch, &mut self.y_far[..edge], total);
        }
    }

    /// `m[i][j] = sum_c x_i[c] y_j[c] D_ij[c]` for `j < i` and panel `x` of the readers, 0 elsewhere; rows of `m` are
    /// `ldm` apart.
    pub fn scores(&mut self, x: usize, len: usize, m: &mut [R], ldm: usize) {
        let (arch, ld) = (self.arch, self.ld);
        let width = padded(len);
        if !self.gated() {
            transpose(arch, &self.y, ld, len, ld, &mut self.y_t, ldm);
            let (a, b) = (Mat::new(&self.x[x].rows, ld), Mat::new(&self.y_t, ldm));
            mm_nn(arch, (len, width, ld), a, b, (m, ldm), Store::Set, Extent::LowerOut);
        } else {
            self.local_scores(x, len, m, ldm);
            self.far_scores(x, len, m, ldm);
        }
        for i in 0..len {
            m[i * ldm + i..i * ldm + width].fill(R::ZERO);
        }
    }

    /// Diagonal blocks.
    fn local_scores(&mut self, x: usize, len: usize, m: &mut [R], ldm: usize) {
        let (arch, ld) = (self.arch, self.ld);
        for b in 0..self.blocks(len) {
            let (s, r) = (self.span(b, len).start, self.elements(b, len));
            let rows = r.len() / ld;
            let m = &mut m[s * ldm + s..];
            let reader = &self.x[x];
            if self.exact[b] {
                let (from, to) = (&reader.rows[r.clone()], &self.y[r.clone()]);
                let gate = &self.decay[r];
                exact::scores(arch, from, to, gate, ld, reader.exclusive, (m, ldm), &mut self.row);
            } else {
                transpose(arch, &self.y_local[r.clone()], ld, rows, ld, &mut self.y_t, ldm);
                let (x, y) = (Mat::new(&reader.local[r], ld), Mat::new(&self.y_t, ldm));
                mm_nn(arch, (rows, padded(rows), ld), x, y, (m, ldm), Store::Set, Extent::LowerOut);
            }
        }
    }

    /// Blocks below the diagonal.
    fn far_scores(&mut self, x: usize, len: usize, m: &mut [R], ldm: usize) {
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
            let (x, y) = (Mat::new(&self.x[x].local[span.start * ld..], ld), Mat::new(&self.y_t, ldm));
            let size = (span.len(), span.start, ld);
            mm_nn(arch, size, x, y, (&mut m[span.start * ldm..], ldm), Store::Set, Extent::Full);
        }
    }

    /// `out_i <- far_i out_i + sum_{j < i} m_ij D_ij y_j` for panel `x` of the readers, where far is the decay from the
    /// chunk's start: adds the chunk's own part to a product with its first state. Without channel decays `m`'s diagonal
    /// takes part too.
    pub fn finish_x(&mut self, x: usize, len: usize, m: Scores<R>, scalar: Option<&[R]>, out: &mut [R]) {
        let (arch, ld) = (self.arch, self.ld);
        if !self.gated() {
            if let Some(from_start) = scalar {
                panel::mul_by_row_assign(arch, &mut out[..len * ld], from_start, ld);
            }
            let (a, b) = (Mat::new(m.0, m.1), Mat::new(&self.y[..], ld));
            mm_nn(arch, (len, ld, len), a, b, (out, ld), Store::Add, Extent::LowerInner);
            return;
        }
        let (blocks, exclusive) = (self.blocks(len), self.x[x].exclusive);
        if blocks > 1 {
            self.tmp[..len * ld].copy_from_slice(&self.y_out[..len * ld]);
        }
        for b in 0..blocks {
            let (s, r) = (self.span(b, len).start, self.elements(b, len));
            let rows = r.len() / ld;
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
            decay_rows_assign(arch, exclusive, &mut out[r.clone()], &self.pre[r.clone()], ld);
            if self.exact[b] {
                let (y, gate) = (&self.y[r.clone()], &self.decay[r.clone()]);
                exact::apply(arch, a.data, a.ld, y, gate, exclusive, &mut out[r], &mut self.row);
            }
        }
    }

    /// `out_j <- far_j out_j + sum_{i > j} m_ij D_ij x_i`, summed over the readers with a score matrix each, where far is
    /// the decay to the chunk's end; the mirror image of [`Pairs::finish_x`].
    pub fn finish_y(&mut self, len: usize, m: [Scores<R>; N], scalar: Option<&[R]>, out: &mut [R]) {
        let (arch, ld) = (self.arch, self.ld);
        if !self.gated() {
            if let Some(to_end) = scalar {
                panel::mul_by_row_assign(arch, &mut out[..len * ld], to_end, ld);
            }
            for (x, m) in self.x.iter().zip(m) {
                let (a, b) = (Mat::new(m.0, m.1), Mat::new(&x.rows[..], ld));
                mm_tn(arch, (len, ld, len), a, b, (out, ld), Store::Add, Extent::UpperInner);
            }
            return;
        }
        // Horner over blocks from the last: what lies beyond decays over block b, then block b's own part is added.
        for b in (1..self.blocks(len)).rev() {
            let (s, rows) = (self.span(b, len).start, self.span(b, len).len());
            panel::mul_rows_assign(arch, &mut out[..s * ld], &self.block_total[b * ld..(b + 1) * ld]);
            for (x, m) in self.x.iter().zip(m) {
                let (a, x) = (Mat::new(&m.0[s * m.1..], m.1), Mat::new(&x.local[s * ld..], ld));
                mm_tn(arch, (s, ld, rows), a, x, (out, ld), Store::Add, Extent::Full);
            }
        }
        for b in 0..self.blocks(len) {
            self.finish_y_block(b, len, m, out);
        }
    }

    /// The diagonal block's part of [`Pairs::finish_y`].
    fn finish_y_block(&mut self, b: usize, len: usize, m: [Scores<R>; N], out: &mut [R]) {
        let (arch, ld) = (self.arch, self.ld);
        let (s, r) = (self.span(b, len).start, self.elements(b, len));
        let rows = r.len() / ld;
        let corner = |m: Scores<'_, R>| s * m.1 + s;
        let out = &mut out[r.clone()];
        if self.exact[b] {
            panel::mul_assign(arch, out, &self.suf[r.clone()]);
            for (x, m) in self.x.iter().zip(m) {
                let (rows, gate) = (&x.rows[r.clone()], &self.decay[r.clone()]);
                let corner = &m.0[corner(m)..];
                exact::apply_t(arch, corner, m.1, rows, gate, x.exclusive, out, &mut self.row);
            }
            return;
        }
        let tmp = &mut self.tmp[..rows * ld];
        for (i, (x, m)) in self.x.iter().zip(m).enumerate() {
            let (a, x) = (Mat::new(&m.0[corner(m)..], m.1), Mat::new(&x.local[s * ld..], ld));
            let store = if i == 0 { Store::Set } else { Store::Add };
            mm_tn(arch, (rows, ld, rows), a, x, (&mut *tmp, ld), store, Extent::UpperInner);
        }
        panel::mul_add_mul(arch, out, &self.suf[r.clone()], tmp, &self.inv[r]);
    }
}

/// `out = x * pre`, or for exclusive readers times the row of `pre` before (1 before the first).
fn decay_rows<R: Real>(arch: Arch, exclusive: bool, x: &[R], pre: &[R], ld: usize, out: &mut [R]) {
    if exclusive {
        out[..ld].copy_from_slice(&x[..ld]);
        panel::mul(arch, &x[ld..], &pre[..pre.len() - ld], &mut out[ld..]);
    } else {
        panel::mul(arch, x, pre, out);
    }
}

/// As [`decay_rows`], in place.
fn decay_rows_assign<R: Real>(arch: Arch, exclusive: bool, x: &mut [R], pre: &[R], ld: usize) {
    if exclusive {
        panel::mul_assign(arch, &mut x[ld..], &pre[..pre.len() - ld]);
    } else {
        panel::mul_assign(arch, x, pre);
    }
}
