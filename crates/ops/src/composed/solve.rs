//! What tokens of a chunk write, given what they would write alone: `(I + diag(beta) L) u = beta y` with L below the diagonal.
//!
//! The inverse is built from blocks of 1, 2, 4 .. tokens: of `[[A, 0], [B, D]]` it is `[[A', 0], [-D' B A', D']]`. Unlike powers of L it stays
//! as small as the inverse itself.

use flashlin_tensor::{Result, Var};

use super::decays::mask;

/// The system of all chunks.
pub(super) struct Solve {
    /// `[n, HV, C, C]`, or `[n, HV V, C, C]` where beta differs by value channel.
    inverse: Option<Var>,
    /// `[n, HV, C, 1 or V]`.
    beta: Option<Var>,
    by_channel: bool,
}

impl Solve {
    /// Of `L [n, HV, C, C]` and `beta [n, HV, C, 1 or V]`.
    pub fn new(system: &Var, beta: Option<Var>) -> Result<Solve> {
        let [n, hv, c, _] = system.tensor().dims_n::<4>("composed", "system")?;
        let wide = beta.as_ref().map(|b| b.dim(3)).filter(|d| *d > 1);
        let l = match (&beta, wide) {
            (None, _) => system.clone(),
            (Some(beta), None) => system.mul(beta)?,
            (Some(beta), Some(v)) => {
                let beta = beta.transpose(2, 3)?.reshape(&[n, hv, v, c, 1])?;
                system.reshape(&[n, hv, 1, c, c])?.mul(&beta)?.reshape(&[n, hv * v, c, c])?
            }
        };
        Ok(Solve { inverse: inverse(&l)?, beta, by_channel: wide.is_some() })
    }

    /// u of the chunks that `part` cuts out, from their y `[n, HV, C, V]`.
    pub fn apply(&self, y: &Var, part: impl Fn(&Var) -> Result<Var>) -> Result<Var> {
        let y = match &self.beta {
            Some(beta) => y.mul(&part(beta)?)?,
            None => y.clone(),
        };
        let Some(inverse) = &self.inverse else { return Ok(y) };
        let inverse = part(inverse)?;
        if !self.by_channel {
            return inverse.matmul(&y);
        }
        let [n, hv, c, v] = y.tensor().dims_n::<4>("composed", "y")?;
        let columns = y.transpose(2, 3)?.reshape(&[n, hv * v, c, 1])?;
        inverse.matmul(&columns)?.reshape(&[n, hv, v, c])?.transpose(2, 3)
    }
}

/// `(I + l)^-1` for l below the diagonal; None is the identity (a single token).
pub(crate) fn inverse(l: &Var) -> Result<Option<Var>> {
    let c = l.dim(3);
    let mut x: Option<Var> = None;
    let mut block = 1;
    while block < c {
        let lower = mask(c, |i, j| i / block == j / block + 1 && (i / block) % 2 == 1, l)?;
        let between = l.mul(&lower)?;
        x = Some(match x {
            None => mask(c, |i, j| i == j, l)?.sub(&between)?,
            Some(x) => x.sub(&x.matmul(&between)?.matmul(&x)?)?,
        });
        block *= 2;
    }
    Ok(x)
}
