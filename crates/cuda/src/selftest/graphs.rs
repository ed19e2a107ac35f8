//! Graphs.

use super::{
    expect,
    ptx::{Axpy, floats},
};
use crate::{Arg, Buffer, Capture, Error, Gpu, Result, bytes_of};

const N: usize = 5000;

fn ramp(gpu: Gpu, factor: f32) -> Result<Buffer> {
    let x: Vec<f32> = (0..N).map(|i| i as f32 * factor).collect();
    gpu.upload(bytes_of(&x))
}

/// Replays read what their inputs hold then.
pub fn strict(gpu: Gpu) -> Result<String> {
    let axpy = Axpy::load(gpu)?;
    let (x, y) = (ramp(gpu, 1.0)?, gpu.zeros(4 * N)?);
    let (graph, ()) = gpu.capture(Capture::Strict, || {
        // SAFETY: both hold N floats and outlive the graph.
        unsafe {
            axpy.run(Arg::from(&y), Arg::from(&x), 2.0, 1, 0, N)?;
            axpy.run(Arg::from(&y), Arg::from(&y), 1.0, 0, 1, N)
        }
    })?;
    expect(floats(&y)?.iter().all(|v| *v == 0.0), || "capturing computed something".into())?;
    for factor in [1.0, -3.0] {
        x.copy_from(0, &ramp(gpu, factor)?, 0, 4 * N)?;
        graph.launch()?;
        let right = |(i, v): (usize, &f32)| *v == i as f32 * factor * 2.0 + 2.0;
        expect(floats(&y)?.iter().enumerate().all(right), || format!("the replay at {factor} is wrong"))?;
    }
    Ok(format!("{} nodes", graph.nodes()))
}

/// Temporaries and results inside the capture keep their addresses; work between replays does not disturb them.
pub fn arena(gpu: Gpu) -> Result<String> {
    let axpy = Axpy::load(gpu)?;
    let x = ramp(gpu, 1.0)?;
    let doomed = ramp(gpu, 100.0)?;
    let before = gpu.memory().in_use;
    let (graph, out) = gpu.capture(Capture::Arena, || -> Result<Buffer> {
        let mut last = gpu.zeros(4 * N)?;
        // Dropped inside: the graph still reads it in every replay.
        last.copy_from(0, &doomed, 0, 4 * N)?;
        drop(doomed);
        for _ in 0..4 {
            let next = gpu.alloc(4 * N)?;
            // SAFETY: all hold N floats; what is dropped here is reused in stream order at the earliest.
            unsafe { axpy.run(Arg::from(&next), Arg::from(&last), 0.5, 0, 1, N)? };
            last = next;
        }
        let sum = gpu.alloc(4 * N)?;
        // SAFETY: as above.
        unsafe { axpy.run(Arg::from(&sum), Arg::from(&last), 1.0, 0, 0, N)? };
        Ok(sum)
    })?;
    for round in 0..3 {
        let noise: Result<Vec<_>> = (0..8).map(|_| gpu.upload(&vec![0xAB; 4 * N])).collect();
        graph.launch()?;
        let right = |(i, v): (usize, &f32)| *v == i as f32 * 100.0 / 16.0 + 1.875;
        expect(floats(&out)?.iter().enumerate().all(right), || format!("replay {round} is wrong"))?;
        drop(noise?);
    }
    let nodes = graph.nodes();
    drop(graph);
    expect(floats(&out)?[1] == 8.125, || "the result was lost with the graph".into())?;
    drop((out, x));
    let after = gpu.memory().in_use;
    expect(after < before, || format!("{after} bytes in use, {before} before"))?;
    Ok(format!("{nodes} nodes"))
}

/// Allocating, reading, copying from the host and waiting are errors that name this file, and the device goes on.
pub fn refusals(gpu: Gpu) -> Result<String> {
    let buffer = gpu.zeros(64)?;
    type Act<'a> = (&'a str, &'a dyn Fn() -> Result<()>);
    let acts: [Act<'_>; 4] = [
        ("an allocation of 4.00 KiB", &|| gpu.alloc(4096).map(drop)),
        ("a copy to the host", &|| buffer.to_vec().map(drop)),
        ("a copy from the host", &|| buffer.write(0, &[1])),
        ("waiting", &|| gpu.synchronize()),
    ];
    for (what, act) in acts {
        let text = match gpu.capture(Capture::Strict, act) {
            Err(e @ Error::Capture { .. }) => e.to_string(),
            other => {
                return Err(Error::invalid("selftest", format!("{what} inside a capture gave {other:?}")));
            }
        };
        expect(text.contains(what) && text.contains("graphs.rs:"), || text)?;
    }
    let nested =
        gpu.capture(Capture::Strict, || gpu.capture(Capture::Strict, || Ok::<_, Error>(())).map(drop));
    expect(nested.is_err(), || "a capture inside a capture passed".into())?;
    expect(buffer.to_vec()? == [0; 64], || "memory changed".into())?;
    Ok("allocation, reads, writes, waiting, a second capture".into())
}
