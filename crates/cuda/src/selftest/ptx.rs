//! Launches, with a few lines of the driver's own assembly, so that they can be checked without any bundle.

use super::{expect, median_ms, numbers};
use crate::{Arg, Buffer, Error, Function, Gpu, GuardBuffer, Module, Result, bytes_of, bytes_of_mut};

/// y[i] = a x[i] + b + c for i < n, one thread an element; b is an i64, c an i32, n an i32.
const AXPY: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry axpy(.param .u64 y, .param .u64 x, .param .f32 a, .param .u64 b, .param .u32 c, .param .u32 n)
{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .reg .b64 %d<6>;
    .reg .f32 %f<6>;
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r0, %r0, %r1, %r2;
    ld.param.u32 %r3, [n];
    setp.ge.u32 %p, %r0, %r3;
    @%p bra end;
    ld.param.u64 %d0, [x];
    ld.param.u64 %d1, [y];
    mul.wide.u32 %d2, %r0, 4;
    add.u64 %d0, %d0, %d2;
    add.u64 %d1, %d1, %d2;
    ld.global.f32 %f0, [%d0];
    ld.param.f32 %f1, [a];
    ld.param.u64 %d3, [b];
    cvt.rn.f32.s64 %f2, %d3;
    ld.param.u32 %r4, [c];
    cvt.rn.f32.s32 %f3, %r4;
    fma.rn.f32 %f0, %f0, %f1, %f2;
    add.f32 %f0, %f0, %f3;
    st.global.f32 [%d1], %f0;
end:
    ret;
}
";

/// The kernel above, on a device.
pub struct Axpy(Function);

impl Axpy {
    pub fn load(gpu: Gpu) -> Result<Axpy> {
        let module = Module::load_ptx(gpu, "the selftest's axpy", AXPY)?;
        Ok(Axpy(module.function("axpy", "axpy")?))
    }

    /// y = a x + b + c.
    ///
    /// # Safety
    /// Both addresses hold `n` floats until the launch has run.
    pub unsafe fn run(&self, y: Arg, x: Arg, a: f32, b: i64, c: i32, n: usize) -> Result<()> {
        let grid = [n.div_ceil(256) as u32, 1, 1];
        let args = [y, x, Arg::F32(a), Arg::I64(b), Arg::I32(c), Arg::I32(n as i32)];
        // SAFETY: these are its parameters; the addresses are the caller's promise.
        unsafe { self.0.launch_threads(self.0.gpu().compute(), grid, [256, 1, 1], 0, &args) }
    }
}

/// The floats of a buffer.
pub fn floats(buffer: &Buffer) -> Result<Vec<f32>> {
    let mut out = vec![0f32; buffer.len() / 4];
    buffer.read(0, bytes_of_mut(&mut out))?;
    Ok(out)
}

/// Arguments of every kind arrive, inside guarded memory, and an empty grid launches nothing.
pub fn arguments(gpu: Gpu) -> Result<String> {
    let begin = std::time::Instant::now();
    let axpy = Axpy::load(gpu)?;
    let load = begin.elapsed().as_secs_f64() * 1e3;
    let n = 10_007;
    let x: Vec<f32> = numbers(1, n).iter().map(|v| *v as f32).collect();
    let (gx, gy) = (GuardBuffer::new(gpu, 4 * n)?, GuardBuffer::new(gpu, 4 * n)?);
    gx.write(bytes_of(&x))?;
    // SAFETY: both hold `n` floats and live until the read below.
    unsafe { axpy.run(Arg::from(&gy), Arg::from(&gx), 2.5, -40_000_000_000, 7, n)? };
    let mut y = vec![0f32; n];
    gy.read(bytes_of_mut(&mut y))?;
    let want = |v: f32| v.mul_add(2.5, -4e10) + 7.0;
    expect(x.iter().zip(&y).all(|(x, y)| want(*x) == *y), || "axpy gave wrong numbers".into())?;
    let marked = gpu.upload(bytes_of(&[3f32; 4]))?;
    // SAFETY: nothing is launched.
    unsafe { axpy.0.launch(gpu.compute(), [0, 1, 1], &[])? };
    expect(floats(&marked)? == [3.0; 4], || "an empty grid wrote".into())?;
    let [threads, registers, ..] = axpy.0.attributes()?;
    Ok(format!("compiled and loaded in {load:.1} ms; {registers} registers, up to {threads} threads"))
}

/// What the host pays for a launch.
pub fn launch_cost(gpu: Gpu) -> Result<String> {
    let axpy = Axpy::load(gpu)?;
    let (x, y) = (gpu.zeros(1024)?, gpu.zeros(1024)?);
    // SAFETY: both hold 256 floats.
    let one = || unsafe { axpy.run(Arg::from(&y), Arg::from(&x), 1.0, 0, 0, 256) };
    let count = 2000;
    (0..100).try_for_each(|_| one())?;
    gpu.synchronize()?;
    let begin = std::time::Instant::now();
    (0..count).try_for_each(|_| one())?;
    let host = begin.elapsed().as_secs_f64() / f64::from(count);
    gpu.synchronize()?;
    let both = begin.elapsed().as_secs_f64() / f64::from(count);
    let begin = std::time::Instant::now();
    (0..count).try_for_each(|_| gpu.bind())?;
    let bind = begin.elapsed().as_secs_f64() / f64::from(count);
    let (graph, ()) = gpu.capture(crate::Capture::Strict, || (0..count).try_for_each(|_| one()))?;
    let replay = median_ms(gpu, 5, || graph.launch())? / f64::from(count);
    Ok(format!(
        "{:.2} us on the host ({:.2} us to bind the context), {:.2} us with the device, {:.2} us inside a graph",
        host * 1e6,
        bind * 1e6,
        both * 1e6,
        replay * 1e3
    ))
}

/// Reads beyond a guarded buffer on purpose and says how that was reported. The context is lost afterwards: run it in a process of its own.
///
/// # Errors
/// The access passed, or was reported in another way than as an asynchronous error that names the launch.
pub fn fault(gpu: Gpu) -> Result<String> {
    let axpy = Axpy::load(gpu)?;
    let n = 1024;
    let (x, y) = (GuardBuffer::new(gpu, 4 * n)?, gpu.zeros(8 * n)?);
    // SAFETY: not kept on purpose: the second half of `x` is unmapped, so that the device faults.
    unsafe { axpy.run(Arg::from(&y), Arg::from(&x), 1.0, 0, 0, 2 * n)? };
    // Waits without an error path of its own, so that `check` is the first to meet the failure.
    std::thread::sleep(std::time::Duration::from_millis(200));
    match gpu.check("the step that faults") {
        Err(e @ Error::Asynchronous { .. }) => {
            let text = e.to_string();
            expect(text.contains("axpy") && text.contains("the step that faults"), || text.clone())?;
            expect(gpu.alloc(1 << 20).and_then(|b| b.to_vec()).is_err(), || "a lost device computes".into())?;
            Ok(text)
        }
        other => Err(Error::invalid("selftest", format!("an access beyond the page gave {other:?}"))),
    }
}
