//! The elementwise scans as the conformance suite sees them: dense and packed, with and without states, over the ends of chunks.

use flashlin_tensor::Var;

use super::{CumArgs, ScanArgs, ScanOutput, cumsum, linear_scan, logcumsumexp, reference};
use crate::{
    PackedSeqs, Result,
    conformance::{Fill, ModuleInput, ModuleOp},
};

/// [`linear_scan`].
#[derive(Clone, Copy, Debug)]
pub struct Linear;

/// [`cumsum`], of sequences and of chunks.
#[derive(Clone, Copy, Debug)]
pub struct Sum;

/// [`logcumsumexp`].
#[derive(Clone, Copy, Debug)]
pub struct LogSum;

/// Where tokens lie, and the options.
pub(super) struct Layout {
    pub name: &'static str,
    /// Tokens of each sequence; packed in one row, or rows of a batch.
    pub lens: &'static [usize],
    pub packed: bool,
    pub width: usize,
    /// An initial state.
    pub state: bool,
    pub reverse: bool,
    pub chunk: Option<usize>,
}

const PLAIN: Layout = Layout {
    name: "plain",
    lens: &[9, 9],
    packed: false,
    width: 5,
    state: false,
    reverse: false,
    chunk: None,
};
const LONG: &[usize] = &[131];
const PACKED: &[usize] = &[3, 0, 70, 1, 64];

pub(super) const LAYOUTS: [Layout; 4] = [
    PLAIN,
    Layout { name: "a state, over chunks", lens: LONG, width: 3, state: true, ..PLAIN },
    Layout { name: "packed", lens: PACKED, packed: true, width: 2, ..PLAIN },
    Layout { name: "packed with states", lens: PACKED, packed: true, width: 2, state: true, ..PLAIN },
];

const CUMULATIVE: [Layout; 7] = [
    PLAIN,
    Layout { name: "backwards", reverse: true, ..PLAIN },
    Layout { name: "a state, over chunks", lens: LONG, width: 3, state: true, ..PLAIN },
    Layout { name: "packed", lens: PACKED, packed: true, width: 2, ..PLAIN },
    Layout {
        name: "packed, backwards, states",
        lens: PACKED,
        packed: true,
        width: 2,
        state: true,
        reverse: true,
        ..PLAIN
    },
    Layout { name: "local", lens: &[9, 9], chunk: Some(4), ..PLAIN },
    Layout {
        name: "packed, local, backwards",
        lens: PACKED,
        packed: true,
        chunk: Some(16),
        reverse: true,
        width: 2,
        ..PLAIN
    },
];

impl Layout {
    pub fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// B and T.
    pub fn batch(&self) -> [usize; 2] {
        if self.packed { [1, self.tokens()] } else { [self.lens.len(), self.lens[0]] }
    }

    pub fn dims(&self) -> [usize; 3] {
        let [b, t] = self.batch();
        [b, t, self.width]
    }

    pub fn seqs(&self) -> Option<PackedSeqs> {
        self.packed.then(|| PackedSeqs::from_lens(self.lens))
    }

    pub fn spans(&self) -> Vec<reference::Span> {
        PackedSeqs::from_lens(self.lens).ranges().map(|r| (r.start, r.len())).collect()
    }

    /// The spans that sums run over.
    fn parts(&self) -> Vec<reference::Span> {
        let chunk = self.chunk.unwrap_or(usize::MAX);
        let of = |(start, len): reference::Span| {
            (0..len).step_by(chunk.min(len.max(1))).map(move |i| (start + i, chunk.min(len - i)))
        };
        self.spans().into_iter().flat_map(of).collect()
    }

    fn initial(&self) -> Option<ModuleInput> {
        let dims = [self.lens.len(), self.width];
        self.state.then(|| ModuleInput::token("initial_state", &dims, Fill::Normal(1.0)))
    }
}

impl ModuleOp for Linear {
    fn name(&self) -> &'static str {
        "linear_scan"
    }

    fn cases(&self) -> Vec<String> {
        LAYOUTS.iter().map(|l| l.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let l = &LAYOUTS[case];
        let x = ModuleInput::token("x", &l.dims(), Fill::Normal(1.0));
        let g = ModuleInput::token("g", &l.dims(), Fill::LogDecay);
        [x, g].into_iter().chain(l.initial()).collect()
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let seqs = LAYOUTS[case].seqs();
        let args = ScanArgs { initial_state: x.get(2), seqs: seqs.as_ref(), ..ScanArgs::new(&x[0], &x[1]) };
        let ScanOutput { o, final_state } = linear_scan(&args)?;
        Ok(vec![o, final_state])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = &LAYOUTS[case];
        let zero = vec![0.0; l.lens.len() * l.width];
        let (h, last) = reference::linear(&l.spans(), l.width, &x[0], &x[1], x.get(2).unwrap_or(&zero));
        vec![h, last]
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = &LAYOUTS[case];
        let zero = vec![0.0; l.lens.len() * l.width];
        let inputs = [&x[0][..], &x[1], x.get(2).unwrap_or(&zero)];
        let grads = reference::linear_backward(&l.spans(), l.width, inputs, [&d[0], &d[1]]);
        grads.into_iter().take(x.len()).collect()
    }
}

/// The cases of an operator that has no initial state with chunks, or no chunks at all.
fn cumulative(of: impl Fn(&Layout) -> bool) -> Vec<&'static Layout> {
    const ALL: &[Layout] = &CUMULATIVE;
    ALL.iter().filter(|l| of(l)).collect()
}

impl Layout {
    fn args<'a>(&self, x: &'a Var, seqs: Option<&'a PackedSeqs>) -> CumArgs<'a> {
        CumArgs { reverse: self.reverse, chunk: self.chunk, seqs, ..CumArgs::new(x) }
    }
}

fn sums() -> Vec<&'static Layout> {
    cumulative(|l| !l.state)
}

fn log_sums() -> Vec<&'static Layout> {
    cumulative(|l| l.chunk.is_none())
}

impl ModuleOp for Sum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn cases(&self) -> Vec<String> {
        sums().iter().map(|l| l.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        vec![ModuleInput::token("x", &sums()[case].dims(), Fill::Normal(1.0))]
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let seqs = sums()[case].seqs();
        Ok(vec![cumsum(&sums()[case].args(&x[0], seqs.as_ref()))?])
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = sums()[case];
        vec![reference::cumsum(&l.parts(), l.width, &x[0], l.reverse)]
    }

    fn reference_backward(&self, case: usize, _x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = sums()[case];
        vec![reference::cumsum(&l.parts(), l.width, &d[0], !l.reverse)]
    }
}

impl ModuleOp for LogSum {
    fn name(&self) -> &'static str {
        "logcumsumexp"
    }

    fn cases(&self) -> Vec<String> {
        log_sums().iter().map(|l| l.name.into()).collect()
    }

    fn inputs(&self, case: usize) -> Vec<ModuleInput> {
        let l = log_sums()[case];
        let x = ModuleInput::token("x", &l.dims(), Fill::Normal(2.0));
        std::iter::once(x).chain(l.initial()).collect()
    }

    fn run(&self, case: usize, x: &[Var]) -> Result<Vec<Var>> {
        let l = log_sums()[case];
        let seqs = l.seqs();
        let out = logcumsumexp(&l.args(&x[0], seqs.as_ref()), x.get(1))?;
        // Minus infinity of an empty sequence without a state cannot be compared.
        Ok(if l.state { vec![out.o, out.final_state] } else { vec![out.o] })
    }

    fn reference(&self, case: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = log_sums()[case];
        let z0 = x.get(1).map(Vec::as_slice);
        let (z, last) = reference::logcumsumexp(&l.spans(), l.width, &x[0], z0, l.reverse);
        if l.state { vec![z, last] } else { vec![z] }
    }

    fn reference_backward(&self, case: usize, x: &[Vec<f64>], d: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let l = log_sums()[case];
        let none = vec![0.0; l.lens.len() * l.width];
        let z0 = x.get(1).map(Vec::as_slice);
        let d = [&d[0][..], d.get(1).unwrap_or(&none)];
        let grads = reference::logcumsumexp_backward(&l.spans(), l.width, (&x[0], z0), l.reverse, d);
        grads.into_iter().take(x.len()).collect()
    }
}
