//! The rotation on a GPU (kernel in `tiles/src/rope`): a lane a pair of channels. The table of cosines and sines is sent once; with xPos every call
//! sends its own, a row a token, as its factors depend on the call.

use flashlin_tensor::{
    Error, Result, Tensor,
    cuda::{Arg, Launcher},
};

use super::{
    OP,
    cpu::{Turn, angles},
};

/// x `[B, T, H, D]` rotated, or rotated back.
pub(super) fn rotate(turn: &Turn, x: &Tensor, back: bool) -> Result<Tensor> {
    let on = Launcher::on(OP, x)?;
    let kernel = on.find("rope", on.float("x", x.dtype())?, &[])?;
    let lanes = kernel.need_generic("N").map_err(Error::Kernel)?.max(1) as usize;
    let x = on.dense(x, x.dtype())?;
    let y = Tensor::empty(x.dims(), x.dtype(), &x.device())?;
    let half = turn.dim / 2;
    let n = turn.positions.len() * turn.heads * (turn.width - half);
    on.int(x.numel())?;
    let [cos, sin] = match &turn.factors {
        None => turn.tables.on_device(&x.device())?,
        Some(_) => scaled(turn, half, &x)?,
    };
    let position = on.table(places(turn)?)?;
    let mut args = vec![on.at(&x)?, on.at(&cos)?, on.at(&sin)?, on.at(&position)?, on.at(&y)?];
    args.extend([on.int(n)?, on.int(turn.heads)?, on.int(turn.width)?, on.int(half)?]);
    args.extend([Arg::I32(i32::from(turn.interleaved)), Arg::F32(if back { -1.0 } else { 1.0 })]);
    // SAFETY: x and y are dense, heads rows of width channels for each token; the tables reach every position's row of half.
    unsafe { on.launch(&kernel.name, [n.div_ceil(lanes), 1, 1], &args) }?;
    Ok(y)
}

/// The row of the table for every token, negative where its angle is.
fn places(turn: &Turn) -> Result<Vec<i32>> {
    let long = |p: i64| Error::unsupported(OP, format!("position {p} on a GPU"), "up to 2^31 - 1");
    let row = |(token, &p): (usize, &i64)| {
        let place = if turn.factors.is_some() { token as i64 } else { p };
        i32::try_from(place).map_err(|_| long(place))
    };
    turn.positions.iter().enumerate().map(row).collect()
}

/// cos and sin of every token with its xPos factors (and its sign).
fn scaled(turn: &Turn, half: usize, like: &Tensor) -> Result<[Tensor; 2]> {
    let tokens = turn.positions.len();
    let mut all = [vec![0f32; tokens * half], vec![0f32; tokens * half]];
    let [cos, sin] = &mut all;
    for (token, (c, s)) in cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).enumerate() {
        angles::<f32>(turn, token, false, c, s);
    }
    let [cos, sin] = all.map(|x| Tensor::from_vec(x, &[tokens * half])?.to_device(&like.device()));
    Ok([cos?, sin?])
}
