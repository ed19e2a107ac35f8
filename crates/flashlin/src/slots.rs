//! A state whose rows are slots: sequences come and go one by one while the others continue.
//!
//! Policy: nothing here knows a model. A tensor of a fixed size is copied row by row; one that grows (keys and values, whose second
//! dimension is a capacity) gets room for the longest row; a counter is what says how much of a row counts. Rows that are not named keep
//! their values and, where they have room, their place in memory.

use flashlin_tensor::{Device, Tensor, Var};

use crate::{
    Error, ModelState, Result,
    state::{StateKind, StateTensor},
};

impl ModelState {
    /// Makes row `row` what row `from` of `src` is: a sequence enters its slot. `src` stays as it is.
    ///
    /// # Errors
    /// A row that does not exist, states of different models, or memory.
    pub fn put(&mut self, row: usize, src: &ModelState, from: usize) -> Result<()> {
        self.check_row(row)?;
        src.check_row(from)?;
        let mismatch = || Error::state("of another model cannot enter this one");
        if self.layers().len() != src.layers().len() {
            return Err(mismatch());
        }
        for (to, src) in self.layers_mut().iter_mut().zip(src.layers()) {
            if to.tensors().len() != src.tensors().len() {
                return Err(mismatch());
            }
            for (to, src) in to.tensors_mut().iter_mut().zip(src.tensors()) {
                let same = to.spec.name == src.spec.name
                    && to.spec.kind == src.spec.kind
                    && to.spec.dims == src.spec.dims
                    && to.spec.dtype == src.spec.dtype;
                if !same {
                    return Err(mismatch());
                }
                put_row(to, row, src.value.tensor(), from)?;
            }
        }
        self.seen[row] = src.seen[from];
        Ok(())
    }

    /// Row `row` begins anew: its counters, and with them what a growing cache holds, go to zero. What has a fixed size keeps its values until
    /// [`ModelState::put`] replaces them: this is for slots that are idle, not for a sequence to start from.
    ///
    /// # Errors
    /// A row that does not exist, or memory.
    pub fn release(&mut self, row: usize) -> Result<()> {
        self.check_row(row)?;
        for t in self.layers_mut().iter_mut().flat_map(|l| l.tensors_mut()) {
            if t.spec.kind == StateKind::Counter {
                let mut dims = t.value.dims().to_vec();
                dims[0] = 1;
                let zero = Tensor::zeros(&dims, t.spec.dtype, &Device::Cpu)?;
                edit(t, |value| Ok(value.write(&at(&dims, row), &zero)?))?;
            }
        }
        self.seen[row] = 0;
        Ok(())
    }

    fn check_row(&self, row: usize) -> Result<()> {
        match row < self.rows() {
            true => Ok(()),
            false => Err(Error::state(format!("has {} rows, none numbered {row}", self.rows()))),
        }
    }
}

/// The first index of row `row` in a tensor of this rank.
fn at(dims: &[usize], row: usize) -> Vec<usize> {
    std::iter::once(row).chain(std::iter::repeat_n(0, dims.len() - 1)).collect()
}

/// Changes a tensor where it lies: while `f` runs nobody else holds it.
fn edit(t: &mut StateTensor, f: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
    let empty = Var::constant(Tensor::zeros(&[0], t.spec.dtype, &t.value.device())?);
    let mut value = std::mem::replace(&mut t.value, empty).into_tensor();
    let done = f(&mut value);
    t.value = Var::constant(value);
    done
}

fn put_row(to: &mut StateTensor, row: usize, src: &Tensor, from: usize) -> Result<()> {
    let src = src.narrow(0, from, 1)?;
    let grows = to.spec.kind == StateKind::KeyValue;
    edit(to, |value| {
        if grows && src.dim(1) > value.dim(1) {
            let mut dims = value.dims().to_vec();
            dims[1] = src.dim(1);
            let mut wider = Tensor::zeros(&dims, value.dtype(), &value.device())?;
            if value.dim(1) > 0 {
                wider.write(&at(&dims, 0), value)?;
            }
            *value = wider;
        }
        if src.numel() == 0 {
            return Ok(());
        }
        Ok(value.write(&at(src.dims(), row), &src)?)
    })
}
