//! What a product is, in row-major terms, and what of it contradicts itself.

use crate::{Error, Result, Scalar};

/// How a matrix lies in memory. Lengths in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// False: a row's elements are neighbours and rows are `ld` apart. True: a column's elements are neighbours and columns are
    /// `ld` apart.
    pub transposed: bool,
    /// Distance of rows (columns where transposed).
    pub ld: usize,
    /// Distance of the matrices of a batch; 0 uses one matrix for the whole batch.
    pub batch_stride: usize,
}

impl Operand {
    /// A dense matrix whose rows have `cols` elements.
    pub fn dense(cols: usize) -> Operand {
        Operand { transposed: false, ld: cols, batch_stride: 0 }
    }

    /// The transpose of a dense matrix whose rows have `rows` elements: logically `rows` rows.
    pub fn dense_transposed(rows: usize) -> Operand {
        Operand { transposed: true, ld: rows, batch_stride: 0 }
    }

    /// The same with a distance between the matrices of a batch.
    pub fn batched(self, batch_stride: usize) -> Operand {
        Operand { batch_stride, ..self }
    }

    /// From strides in elements; `None` where neither rows nor columns are contiguous, so that a copy is needed first.
    pub fn of_strides(
        rows: usize,
        cols: usize,
        row: usize,
        col: usize,
        batch_stride: usize,
    ) -> Option<Operand> {
        if (col == 1 || cols <= 1) && (rows <= 1 || row >= cols) {
            let ld = if rows <= 1 { row.max(cols) } else { row };
            return Some(Operand { transposed: false, ld: ld.max(1), batch_stride });
        }
        if (row == 1 || rows <= 1) && (cols <= 1 || col >= rows) {
            let ld = if cols <= 1 { col.max(rows) } else { col };
            return Some(Operand { transposed: true, ld: ld.max(1), batch_stride });
        }
        None
    }

    fn check(&self, name: &str, rows: usize, cols: usize) -> Result<(), String> {
        let least = if self.transposed { rows } else { cols };
        if self.ld < least {
            return Err(format!("{name} has a leading stride of {}, at least {least} are needed", self.ld));
        }
        Ok(())
    }
}

/// What follows the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// A bias of n elements of the output's type is added to every row.
    Bias,
}

/// A product C `[m, n]` = A `[m, k]` B `[k, n]`, or a batch of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulSpec {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// How many products.
    pub batch: usize,
    /// Layout of A.
    pub a: Operand,
    /// Layout of B.
    pub b: Operand,
    /// Distance of C's rows in elements.
    pub c_ld: usize,
    /// Distance of the Cs of a batch in elements.
    pub c_batch_stride: usize,
    /// Type of A and B.
    pub input: Scalar,
    /// Type of C: that of the inputs, or f32.
    pub output: Scalar,
    /// f32 inputs may be rounded to TF32 (11 bits).
    pub tf32: bool,
    /// What follows.
    pub epilogue: Epilogue,
    /// The order of addition depends on n, k and the types, and not on m: a row's result is the same whatever rows are beside it. Costs speed where few
    /// rows would have been split over k.
    pub batch_invariant: bool,
}

impl std::fmt::Display for MatmulSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |x: &Operand| if x.transposed { "^T" } else { "" };
        let (a, b) = (side(&self.a), side(&self.b));
        write!(f, "product [{}, {}]{a} [{}, {}]{b}", self.m, self.k, self.k, self.n)?;
        if self.batch > 1 {
            write!(f, " x {}", self.batch)?;
        }
        write!(f, " {} to {}", self.input, self.output)
    }
}

impl MatmulSpec {
    /// A single dense product in one type.
    pub fn dense(m: usize, n: usize, k: usize, scalar: Scalar) -> MatmulSpec {
        MatmulSpec {
            m,
            n,
            k,
            batch: 1,
            a: Operand::dense(k),
            b: Operand::dense(n),
            c_ld: n,
            c_batch_stride: 0,
            input: scalar,
            output: scalar,
            tf32: false,
            epilogue: Epilogue::None,
            batch_invariant: false,
        }
    }

    /// Operations of all products together.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64 * self.batch as f64
    }

    pub(super) fn check(&self, args: &MatmulArgs) -> Result<()> {
        let bad = |why: String| Err(Error::Invalid { what: "matmul", why });
        if let Err(why) = self.a.check("A", self.m, self.k).and_then(|()| self.b.check("B", self.k, self.n)) {
            return bad(why);
        }
        if self.c_ld < self.n {
            return bad(format!("C has rows {} apart, at least {} are needed", self.c_ld, self.n));
        }
        let c_extent = self.m.saturating_sub(1) * self.c_ld + self.n;
        if self.batch > 1 && self.c_batch_stride < c_extent {
            return bad(format!("the Cs of a batch lie {} apart and overlap", self.c_batch_stride));
        }
        if self.output != self.input && self.output != Scalar::F32
            || self.output == Scalar::F32 && self.input == Scalar::F64
        {
            return Err(Error::Unsupported {
                what: "matmul",
                asked: format!("{} inputs with {} output", self.input, self.output),
                supported: "the inputs' type, or f32 for bf16 and f16 inputs".into(),
            });
        }
        if self.tf32 && self.input != Scalar::F32 {
            return bad(format!("tf32 was allowed for {} inputs; it is for f32", self.input));
        }
        if args.bias.is_some() != (self.epilogue == Epilogue::Bias) {
            return bad("a bias goes with Epilogue::Bias, and with nothing else".into());
        }
        for (name, address, scalar) in
            [("A", args.a, self.input), ("B", args.b, self.input), ("C", args.c, self.output)]
        {
            if !(address as usize).is_multiple_of(scalar.bytes()) {
                return bad(format!("{name} is not aligned to its elements"));
            }
        }
        let limit = i32::MAX as usize;
        if [self.m, self.n, self.k, self.batch].into_iter().any(|x| x > limit) {
            return bad(format!(
                "{} x {} x {} in a batch of {}: each at most {limit}",
                self.m, self.n, self.k, self.batch
            ));
        }
        Ok(())
    }
}

/// Addresses and scales of one call.
#[derive(Clone, Copy, Debug)]
pub struct MatmulArgs {
    /// Address of A.
    pub a: u64,
    /// Address of B.
    pub b: u64,
    /// Address of C.
    pub c: u64,
    /// Address of the bias.
    pub bias: Option<u64>,
    /// Scale of the product.
    pub alpha: f64,
    /// Scale of C's old contents; 0 does not read them.
    pub beta: f64,
}

impl MatmulArgs {
    /// C = A B.
    pub fn new(a: u64, b: u64, c: u64) -> MatmulArgs {
        MatmulArgs { a, b, c, bias: None, alpha: 1.0, beta: 0.0 }
    }

    /// C += A B.
    pub fn accumulate(self) -> MatmulArgs {
        MatmulArgs { beta: 1.0, ..self }
    }

    /// Adds a bias to every row.
    pub fn bias(self, address: u64) -> MatmulArgs {
        MatmulArgs { bias: Some(address), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_become_layouts_or_ask_for_a_copy() {
        let of = Operand::of_strides;
        assert_eq!(of(3, 5, 5, 1, 0), Some(Operand::dense(5)));
        assert_eq!(of(3, 5, 1, 3, 15), Some(Operand::dense_transposed(3).batched(15)));
        assert_eq!(of(3, 5, 8, 1, 0).map(|o| o.ld), Some(8));
        assert_eq!(of(3, 5, 10, 2, 0), None);
        // Broadcast rows and overlapping windows have no leading stride.
        assert_eq!(of(3, 5, 0, 1, 0), None);
        assert_eq!(of(3, 5, 2, 1, 0), None);
        // One row or column: its stride does not matter.
        assert_eq!(of(1, 5, 0, 1, 0), Some(Operand::dense(5)));
        assert_eq!(of(5, 1, 7, 3, 0).map(|o| (o.transposed, o.ld)), Some((false, 7)));
        assert_eq!(of(1, 5, 1, 4, 0).map(|o| (o.transposed, o.ld)), Some((true, 4)));
    }

    #[test]
    fn contradictions_are_named() {
        let args = MatmulArgs::new(256, 512, 1024);
        let good = MatmulSpec::dense(4, 6, 8, Scalar::Bf16);
        assert!(good.check(&args).is_ok());
        assert!(MatmulSpec::dense(4, 6, 0, Scalar::Bf16).check(&args).is_ok());
        assert!(MatmulSpec::dense(0, 0, 8, Scalar::Bf16).check(&args).is_ok());
        let fails = |spec: MatmulSpec, args: MatmulArgs, part: &str| {
            let text = spec.check(&args).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        };
        fails(MatmulSpec { a: Operand::dense(7), ..good }, args, "A has a leading stride of 7");
        fails(MatmulSpec { b: Operand::dense_transposed(7), ..good }, args, "B has a leading stride of 7");
        fails(MatmulSpec { c_ld: 5, ..good }, args, "C has rows 5 apart");
        fails(MatmulSpec { batch: 2, c_batch_stride: 23, ..good }, args, "overlap");
        fails(MatmulSpec { output: Scalar::F16, ..good }, args, "bf16 inputs with f16 output");
        fails(MatmulSpec { output: Scalar::F32, input: Scalar::F64, ..good }, args, "f64 inputs");
        fails(MatmulSpec { tf32: true, ..good }, args, "tf32");
        fails(good, args.bias(2048), "Epilogue::Bias");
        fails(good, MatmulArgs { c: 1025, ..args }, "C is not aligned");
    }
}
