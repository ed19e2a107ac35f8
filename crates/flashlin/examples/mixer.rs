//! A mixer alone, in a network of one's own: `cargo run --release -p flashlin --example mixer`.
//!
//! Gated DeltaNet takes the place of attention: activations `[B, T, D]` in and out. It trains (here: to return its input one token
//! later), and runs token by token with a state.

use flashlin::{
    DType, Device, Init, Layer, LayerCtx, LayerState, Result,
    config::BaseConfig,
    features::gated_deltanet::{GatedDeltaNetKeys, GatedDeltaNetMixer},
};
use flashlin_tensor::{Philox, Tensor, Var, no_grad};

fn main() -> Result<()> {
    let (loss, difference) = train_and_step(200)?;
    println!("final loss {loss:.4}");
    println!("largest difference between one pass and token by token: {difference:.1e}");
    Ok(())
}

/// Trains for some steps; returns the last loss, and by how much token by token differs from one pass.
pub fn train_and_step(steps: usize) -> Result<(f64, f64)> {
    let (batch, len, width) = (4, 32, 32);
    let init = Init::new(DType::F32, Device::Cpu, 1, 0.1);
    let base = BaseConfig { hidden_size: width, ..BaseConfig::default() };
    let keys =
        GatedDeltaNetKeys { num_heads: 2, head_dim: 16, expand_v: 1.0, ..GatedDeltaNetKeys::default() };
    let mixer = GatedDeltaNetMixer::new(&init.sub("mixer"), &base, &keys)?;
    println!("{}: {} parameters", mixer.describe(), init.params().len());

    let x = Philox::new(2, 0).randn(0.0, 1.0, &[batch, len, width], DType::F32, &Device::Cpu)?;
    // The target of each token is the token before it: only a mixer can know that.
    let zero = Tensor::zeros(&[batch, 1, width], DType::F32, &Device::Cpu)?;
    let target = Var::constant(Tensor::cat(&[&zero, &x.narrow(1, 0, len - 1)?], 1)?);
    let input = Var::constant(x);
    let mut last = f64::NAN;
    for step in 0..steps {
        let y = mixer.forward(&input, &mut LayerCtx::stateless())?;
        let error = y.sub(&target)?;
        let loss = error.mul(&error)?.mean(&[0, 1, 2], false)?;
        let gradients = loss.backward()?;
        for parameter in init.params() {
            if let Some(g) = gradients.get_param(&parameter) {
                let moved = parameter.tensor().sub(&g.affine(0.5, 0.0)?)?;
                parameter.set(moved)?;
            }
        }
        last = loss.tensor().to_scalar()?;
        if step % 50 == 0 {
            println!("step {step}: loss {last:.4}");
        }
    }

    // Token by token, with a state that does not grow, gives what one pass gives.
    let whole = no_grad(|| mixer.forward(&input, &mut LayerCtx::stateless()))?;
    let mut state = LayerState::zeros(mixer.state_spec(), batch, &Device::Cpu)?;
    let mut largest = 0f64;
    for t in 0..len {
        let token = Var::constant(input.tensor().narrow(1, t, 1)?);
        let seen = vec![t; batch];
        let mut ctx = LayerCtx { state: Some(&mut state), seen: &seen, ..LayerCtx::stateless() };
        let y = no_grad(|| mixer.forward(&token, &mut ctx))?;
        let other = whole.tensor().narrow(1, t, 1)?;
        largest = y.tensor().sub(&other)?.to_f64_vec()?.into_iter().fold(largest, |m, d| m.max(d.abs()));
    }
    Ok((last, largest))
}
