//! The model with its pool of slots: one call a step for all sequences, and one sequence's piece of a prompt at a time.
//!
//! Policy: a sequence's bits depend on that sequence alone. A piece of a prompt is a call of its own, whose shape follows from the prompt. A step
//! takes all active slots at once: on the CPU just these, by products whose order does not depend on their number ([`flashlin_tensor::rows_alike`]);
//! on a GPU always all slots, so that the libraries choose the same algorithms each time, idle ones reading a token that nobody looks at.

use std::panic::{AssertUnwindSafe, catch_unwind};

use flashlin::{
    DType, Device, Error, ForwardOptions, Input, Logits, Mode, Model, ModelState, Result, StateKind,
};
use flashlin_tensor::{Tensor, no_grad};

/// Logits on the host, `[rows, vocab]`.
pub struct Rows {
    values: Tensor,
    vocab: usize,
}

impl Rows {
    fn new(logits: &Tensor) -> Result<Rows> {
        let vocab = logits.dims().last().copied().unwrap_or(0);
        let values = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        Ok(Rows { values, vocab })
    }

    /// All of them.
    pub fn all(&self) -> Result<&[f32]> {
        Ok(self.values.as_slice::<f32>()?)
    }

    /// Those of row `i`.
    pub fn row(&self, i: usize) -> Result<&[f32]> {
        let all = self.all()?;
        let row = all.get(i * self.vocab..(i + 1) * self.vocab);
        row.ok_or_else(|| Error::state(format!("gave no logits for row {i}")))
    }

    /// Numbers in a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }
}

/// A model and the state of its slots.
pub struct Batch {
    model: Model,
    pool: ModelState,
    /// Some layer counts, as softmax attention does: idle rows must be reset before they count on.
    counts: bool,
}

impl Batch {
    /// Slots for `slots` sequences.
    ///
    /// # Errors
    /// When memory is short, and for f64, whose products know one order only.
    pub fn new(model: Model, slots: usize) -> Result<Batch> {
        if model.dtype() == DType::F64 {
            return Err(Error::unsupported("serving in f64", "f32, bf16, f16"));
        }
        let pool = model.new_state(slots)?;
        let counter = |t: &flashlin::StateTensor| t.spec.kind == StateKind::Counter;
        let counts = pool.layers().iter().flat_map(|l| l.tensors()).any(counter);
        Ok(Batch { model, pool, counts })
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.pool.rows()
    }

    /// A state for one sequence that has read nothing.
    ///
    /// # Errors
    /// When memory is short.
    pub fn fresh(&self) -> Result<ModelState> {
        self.model.new_state(1)
    }

    /// A sequence enters its slot.
    ///
    /// # Errors
    /// When memory is short.
    pub fn enter(&mut self, slot: usize, state: &ModelState) -> Result<()> {
        self.pool.put(slot, state, 0)
    }

    /// A sequence leaves its slot.
    ///
    /// # Errors
    /// When memory is short.
    pub fn leave(&mut self, slot: usize) -> Result<()> {
        self.pool.release(slot)
    }

    /// Reads a piece of one prompt; logits as asked for.
    ///
    /// # Errors
    /// Those of the model; `state` is lost then.
    pub fn read(&self, state: &mut ModelState, piece: &[u32], logits: Logits) -> Result<Option<Rows>> {
        let options = ForwardOptions { logits, mode: Mode::Auto, ..ForwardOptions::default() };
        let out = guarded(|| {
            let input = Input::row(piece)?;
            no_grad(|| self.model.forward(&input, Some(state), &options))
        })?;
        out.logits.map(|l| Rows::new(l.tensor())).transpose()
    }

    /// One token of each of these slots (in rising order): a single call of the model. Row i of the logits is that of the i-th slot.
    ///
    /// # Errors
    /// Those of the model; the states of all slots are lost then.
    pub fn step(&mut self, next: &[(usize, u32)]) -> Result<Rows> {
        let done = guarded(|| self.run(next));
        if done.is_err() {
            self.pool = self.model.new_state(self.pool.rows())?;
        }
        done
    }

    fn run(&mut self, next: &[(usize, u32)]) -> Result<Rows> {
        let options = ForwardOptions { rows_alike: true, ..ForwardOptions::default() };
        let mut ids = vec![None; self.pool.rows()];
        for &(slot, id) in next {
            ids[slot] = Some(id);
        }
        let on_cpu = self.model.device() == Device::Cpu;
        let input = match on_cpu {
            true => {
                let pieces: Vec<&[u32]> = ids.iter().map(Option::as_slice).collect();
                Input::packed(&pieces)?
            }
            false => {
                let idle: Vec<usize> = (0..ids.len()).filter(|&s| ids[s].is_none()).collect();
                if self.counts {
                    idle.iter().try_for_each(|&slot| self.pool.release(slot))?;
                }
                let all: Vec<i64> = ids.iter().map(|id| i64::from(id.unwrap_or(0))).collect();
                let n = all.len();
                Input::ids(Tensor::from_vec(all, &[n, 1])?)
            }
        };
        let out = no_grad(|| self.model.forward(&input, Some(&mut self.pool), &options))?;
        let logits = out.logits.ok_or_else(|| Error::state("gave no logits"))?.into_tensor();
        let vocab = self.model.config().base().vocab_size;
        let flat = logits.reshape(&[logits.numel() / vocab, vocab])?;
        if on_cpu {
            return Rows::new(&flat);
        }
        let rows: Vec<i64> = next.iter().map(|&(slot, _)| slot as i64).collect();
        let index = Tensor::from_vec(rows, &[next.len()])?.to_device(&self.model.device())?;
        Rows::new(&flat.index_select(&index)?)
    }
}

/// A panic in the model is an error of this call: the others go on.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        Err(Error::state(format!("the model panicked: {text}")))
    })
}
