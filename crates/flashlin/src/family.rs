//! How a family is written: one [`FamilyDef`] gives the registry everything, so that a model folder holds only
//! what is its own.

use std::{any::Any, sync::Arc};

use flashlin_tensor::Var;
use serde_json::Value;

use crate::{
    Error, Result,
    backbone::{Block, SubLayer},
    config::{BaseConfig, KeyInfo, Map},
    init::Init,
    layer::{Carried, Layer},
    modules::{Attention, GatedMlp, Norm},
    registry::{Ends, FamilyConfig, KeyLayout, ModelFamily},
};

/// A table of config keys (made by `config_keys!`).
pub trait Keys: Default + std::fmt::Debug + Send + Sync + Sized + 'static {
    /// The keys.
    const KEYS: &'static [KeyInfo];
    /// Reads the keys that are present over `self`.
    ///
    /// # Errors
    /// A value of the wrong type.
    fn read(self, map: &Map) -> Result<Self>;
}

/// Makes a `config_keys!` struct usable as a family's own keys.
macro_rules! impl_keys {
    ($T:ty) => {
        impl $crate::family::Keys for $T {
            const KEYS: &'static [$crate::config::KeyInfo] = <$T>::KEYS;
            fn read(self, map: &$crate::config::Map) -> $crate::Result<Self> {
                <$T>::read(self, map)
            }
        }
    };
}
pub(crate) use impl_keys;

/// A family's definition. [`ModelFamily`] follows from it.
pub trait FamilyDef: Sync + 'static {
    /// The family's own config keys.
    type Own: Keys;
    /// `model_type` in `config.json`.
    const MODEL_TYPE: &'static str;
    /// Class name for `architectures`.
    const ARCHITECTURE: &'static str;
    /// One line on what it is.
    const SUMMARY: &'static str;
    /// Where it comes from.
    const PAPER: &'static str;
    /// Its documentation.
    const README: &'static str;
    /// Base keys that this family lacks.
    const ABSENT: &'static [&'static str] = &[];
    /// Names of the checkpoint's outer modules.
    const LAYOUT: KeyLayout = KeyLayout { root: "model", final_norm: "norm" };

    /// Whether the embedding of `pad_token_id` learns nothing as an input, as in the peer's models but Mamba-2.
    const FREEZES_PADDING: bool = true;

    /// Whether the peer's mixers run over the boundaries of packed sequences.
    const PEER_CROSSES_BOUNDARIES: bool = false;

    /// Defaults of keys where they differ from the common ones (or from those of another family's keys).
    fn defaults() -> Value {
        Value::Object(Map::new())
    }

    /// Defaults that depend on other keys.
    fn adapt(_base: &mut BaseConfig) {}

    /// Ready-made sizes.
    fn presets() -> Vec<(&'static str, Value)>;

    /// Checks that need more than one key.
    ///
    /// # Errors
    /// Impossible sizes or combinations, named by key.
    fn check(base: &BaseConfig, own: &Self::Own) -> Result<()>;

    /// Builds block `layer`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn block(base: &BaseConfig, own: &Self::Own, layer: usize, init: &Init) -> Result<Block>;

    /// What is added to the loss of a pass, from what its layers left.
    ///
    /// # Errors
    /// Those of the operators.
    fn extra_loss(_own: &Self::Own, _carried: &Carried) -> Result<Option<Var>> {
        Ok(None)
    }

    /// What stands before and after the blocks.
    fn ends(base: &BaseConfig, _own: &Self::Own) -> Ends {
        Ends::usual(base)
    }
}

fn object(v: Value) -> Map {
    match v {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

struct Typed<F: FamilyDef> {
    base: BaseConfig,
    own: F::Own,
}

impl<F: FamilyDef> std::fmt::Debug for Typed<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", F::MODEL_TYPE, self.base, self.own)
    }
}

impl<F: FamilyDef> FamilyConfig for Typed<F> {
    fn base(&self) -> &BaseConfig {
        &self.base
    }

    fn as_any(&self) -> &dyn Any {
        &self.own
    }

    fn check(&self) -> Result<()> {
        F::check(&self.base, &self.own)
    }

    fn block(&self, layer: usize, init: &Init) -> Result<Block> {
        F::block(&self.base, &self.own, layer, init)
    }

    fn extra_loss(&self, carried: &Carried) -> Result<Option<Var>> {
        F::extra_loss(&self.own, carried)
    }

    fn ends(&self) -> Ends {
        F::ends(&self.base, &self.own)
    }
}

impl<F: FamilyDef> ModelFamily for F {
    fn model_type(&self) -> &'static str {
        F::MODEL_TYPE
    }

    fn architecture(&self) -> &'static str {
        F::ARCHITECTURE
    }

    fn summary(&self) -> &'static str {
        F::SUMMARY
    }

    fn paper(&self) -> &'static str {
        F::PAPER
    }

    fn readme(&self) -> &'static str {
        F::README
    }

    fn keys(&self) -> Vec<&'static KeyInfo> {
        let base = BaseConfig::KEYS.iter().filter(|k| !F::ABSENT.contains(&k.name));
        base.chain(F::Own::KEYS).collect()
    }

    fn defaults(&self) -> Map {
        object(<F as FamilyDef>::defaults())
    }

    fn parse(&self, raw: &Map) -> Result<Arc<dyn FamilyConfig>> {
        let defaults = object(<F as FamilyDef>::defaults());
        let mut base = BaseConfig::with_defaults(&defaults, raw)?;
        F::adapt(&mut base);
        Ok(Arc::new(Typed::<F> { base, own: F::Own::default().read(&defaults)?.read(raw)? }))
    }

    fn presets(&self) -> Vec<(&'static str, Map)> {
        F::presets().into_iter().map(|(name, v)| (name, object(v))).collect()
    }

    fn layout(&self) -> KeyLayout {
        F::LAYOUT
    }

    fn freezes_padding(&self) -> bool {
        F::FREEZES_PADDING
    }

    fn peer_crosses_boundaries(&self) -> bool {
        F::PEER_CROSSES_BOUNDARIES
    }
}

/// The usual block: mixer (or softmax attention at hybrid layers), then gated MLP, each behind an RMS norm.
pub(crate) fn mixer_and_mlp<L: Layer + 'static>(
    base: &BaseConfig,
    layer: usize,
    init: &Init,
    mixer: impl FnOnce(&Init) -> Result<L>,
) -> Result<Block> {
    let norm = |key: &str| Norm::rms(&init.sub(key), base.hidden_size, base.norm_eps, true);
    let mixer_norm = norm("attn_norm")?;
    let at = init.sub("attn");
    let mixer: Box<dyn Layer> = match base.attention_at(layer)? {
        Some(spec) => Box::new(Attention::from_spec(&at, base.hidden_size, &spec)?),
        None => Box::new(mixer(&at)?),
    };
    let mlp_norm = norm("mlp_norm")?;
    let mlp: Box<dyn Layer> = Box::new(GatedMlp::new(&init.sub("mlp"), base)?);
    let parts = vec![
        SubLayer { key: "attn", norm: mixer_norm, layer: mixer },
        SubLayer { key: "mlp", norm: mlp_norm, layer: mlp },
    ];
    Ok(Block { entry: None, parts, residual_f32: false })
}

/// The block whose sub-layers are called mixer and MLP in checkpoints: `mixer_norm`, `mixer`, `mlp_norm`, `mlp`.
pub(crate) fn named_mixer_and_mlp(
    base: &BaseConfig,
    init: &Init,
    mixer: Box<dyn Layer>,
    mlp: &BaseConfig,
) -> Result<Block> {
    let norm = |key: &str| Norm::rms(&init.sub(key), base.hidden_size, base.norm_eps, true);
    let parts = vec![
        SubLayer { key: "mixer", norm: norm("mixer_norm")?, layer: mixer },
        SubLayer {
            key: "mlp",
            norm: norm("mlp_norm")?,
            layer: Box::new(GatedMlp::new(&init.sub("mlp"), mlp)?),
        },
    ];
    Ok(Block { entry: None, parts, residual_f32: false })
}

/// Checks that the gated MLP of the usual block has an activation it supports.
pub(crate) fn check_mlp(base: &BaseConfig) -> Result<()> {
    match base.hidden_act.as_str() {
        "swish" | "silu" => Ok(()),
        other => {
            Err(Error::config("hidden_act", format!("is `{other}`; the gated MLP supports: swish, silu")))
        }
    }
}

/// `size * factor` where the product must be a positive multiple of `parts`.
pub(crate) fn scaled(key: &'static str, size: usize, factor: f64, parts: usize) -> Result<usize> {
    let (product, n) = (size as f64 * factor, width(size, factor));
    if !(product.is_finite() && factor > 0.0)
        || n == 0
        || n > 1 << 31
        || (product - n as f64).abs() > 1e-5 * product
    {
        return Err(Error::config(
            key,
            format!("is {factor}: {size} times it is {product}, not a usable width"),
        ));
    }
    divides(key, n, parts)?;
    Ok(n)
}

/// `size * factor` as a number of channels; [`scaled`] has checked that it is one, but for rounding (3 * (1 / 3.0), say).
pub(crate) fn width(size: usize, factor: f64) -> usize {
    (size as f64 * factor).round() as usize
}

/// Errors unless `parts` (heads) is positive and divides `n`.
pub(crate) fn divides(key: &'static str, n: usize, parts: usize) -> Result<()> {
    if parts == 0 || !n.is_multiple_of(parts) {
        return Err(Error::config(key, format!("gives a width of {n}, which {parts} heads do not divide")));
    }
    Ok(())
}

/// Head dimensions of recurrences: the peer's defaults reach 512 (`head_dim` 256 with `expand_v` 2).
pub(crate) fn check_head_dim(key: &'static str, d: usize) -> Result<()> {
    check_head(key, d, 512)
}

/// Head dimensions of softmax attention.
pub(crate) fn check_attention_head(key: &'static str, d: usize) -> Result<()> {
    check_head(key, d, 256)
}

fn check_head(key: &'static str, d: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&d) {
        return Ok(());
    }
    Err(Error::config(key, format!("gives heads of {d}; supported: 1 to {most}")))
}

/// A window holds at least the token itself.
pub(crate) fn check_window(window: Option<usize>) -> Result<()> {
    match window {
        Some(0) => Err(Error::config("window_size", "is 0, expected a positive integer or null")),
        _ => Ok(()),
    }
}

/// Rotary embedding pairs channels, so heads must have an even width.
pub(crate) fn even_head_dim(key: &'static str, d: usize) -> Result<()> {
    if d.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::config(key, format!("gives heads of {d}; rotary embedding needs an even width")))
}

/// Value heads are a multiple of key heads.
pub(crate) fn check_value_heads(heads: usize, v_heads: Option<usize>) -> Result<()> {
    if heads == 0 {
        return Err(Error::config("num_heads", "is 0, expected a positive integer"));
    }
    match v_heads {
        Some(hv) if hv == 0 || hv % heads != 0 => {
            Err(Error::config("num_v_heads", format!("is {hv}, expected a multiple of num_heads {heads}")))
        }
        _ => Ok(()),
    }
}
