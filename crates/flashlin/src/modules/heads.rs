//! Splitting the last dimension into heads, and back.

use flashlin_tensor::Var;

use crate::Result;

/// Head shapes of `[B, T, ..]` variables. Splits are views.
pub trait Heads: Sized {
    /// `[B, T, h d]` to `[B, T, h, d]`.
    ///
    /// # Errors
    /// When `h` does not divide the last dimension.
    fn heads(&self, h: usize) -> Result<Self>;

    /// `[B, T, h, d]` to `[B, T, h d]`.
    ///
    /// # Errors
    /// When there are not four dimensions.
    fn merge_heads(&self) -> Result<Self>;

    /// `[B, T, h, d]` to `[B, T, h g, d]`: head i serves heads i g .. (i + 1) g.
    ///
    /// # Errors
    /// When there are not four dimensions.
    fn repeat_heads(&self, g: usize) -> Result<Self>;

    /// `[..]` to `[.., 1]`.
    ///
    /// # Errors
    /// None in practice.
    fn unsqueeze_last(&self) -> Result<Self>;
}

impl Heads for Var {
    fn heads(&self, h: usize) -> Result<Var> {
        let [b, t, width] = self.tensor().dims_n::<3>("heads", "x")?;
        Ok(self.reshape(&[b, t, h, width / h.max(1)])?)
    }

    fn merge_heads(&self) -> Result<Var> {
        let [b, t, h, d] = self.tensor().dims_n::<4>("merge_heads", "x")?;
        Ok(self.reshape(&[b, t, h * d])?)
    }

    fn repeat_heads(&self, g: usize) -> Result<Var> {
        if g == 1 {
            return Ok(self.clone());
        }
        let [b, t, h, d] = self.tensor().dims_n::<4>("repeat_heads", "x")?;
        Ok(self.reshape(&[b, t, h, 1, d])?.expand(&[b, t, h, g, d])?.reshape(&[b, t, h * g, d])?)
    }

    fn unsqueeze_last(&self) -> Result<Var> {
        let mut dims = self.dims().to_vec();
        dims.push(1);
        Ok(self.reshape(&dims)?)
    }
}
