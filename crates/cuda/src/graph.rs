//! A sequence of launches recorded once and replayed as one.
//!
//! Policy: a replay repeats addresses, so memory inside a capture either is not allocated at all ([`Capture::Strict`]: an allocation is an error that names its place), or
//! belongs to the graph until that is dropped ([`Capture::Arena`]). Reading results, copying from the host and waiting are errors inside a capture. The capturing thread has the device to
//! itself meanwhile.

use cudarc::driver::sys;

use crate::{Error, Gpu, Result, driver::check, gpu::Capturing};

/// What a capture does with allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// They are errors.
    Strict,
    /// They belong to the graph, which reuses them among themselves and keeps them until it is dropped.
    Arena,
}

/// Recorded work.
#[derive(Debug)]
pub struct Graph {
    exec: sys::CUgraphExec,
    nodes: usize,
    arena: u64,
    gpu: Gpu,
}

// SAFETY: a graph is a handle; replays take `&self` and the driver queues them one after another.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Gpu {
    /// Records what `run` queues on the compute stream, without running it, and gives the graph beside what `run` gave. Results of `run` hold values only after a replay.
    ///
    /// # Errors
    /// Those of `run`; work that cannot be recorded; a capture inside a capture.
    pub fn capture<T, E: From<Error>>(
        &self,
        allocations: Capture,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Graph, T), E> {
        // Opened before, because its workspace must not belong to the graph. Where there is no library, the first product says so.
        let _ = self.blas();
        let arena = self.begin(allocations)?;
        let out = run();
        let graph = self.end(arena);
        match out {
            // The graph's own error is a consequence.
            Err(e) => Err(e),
            Ok(value) => Ok((graph?, value)),
        }
    }

    fn begin(&self, allocations: Capture) -> Result<u64> {
        let mut slot = self.capture_slot();
        let taken = || Error::invalid("capture", "a capture runs on this device already");
        if slot.is_some() {
            return Err(taken());
        }
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive for the rest of the process.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.compute().raw(), mode) })?;
        *slot =
            Some(Capturing { thread: std::thread::current().id(), strict: allocations == Capture::Strict });
        self.pool().open_arena().ok_or_else(taken)
    }

    fn end(&self, arena: u64) -> Result<Graph> {
        let mut raw = std::ptr::null_mut();
        self.bind()?;
        // SAFETY: `raw` outlives the call; the stream has been capturing since `begin`.
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.compute().raw(), &mut raw) });
        *self.capture_slot() = None;
        self.pool().end_arena();
        let made = ended.and_then(|()| instantiate(raw));
        if !raw.is_null() {
            // SAFETY: the executable graph does not need the recorded one any more.
            let _ = unsafe { sys::cuGraphDestroy(raw) };
        }
        match made {
            Ok((exec, nodes)) => Ok(Graph { exec, nodes, arena, gpu: *self }),
            Err(e) => {
                self.pool().close_arena(arena);
                Err(e)
            }
        }
    }
}

fn instantiate(raw: sys::CUgraph) -> Result<(sys::CUgraphExec, usize)> {
    let (mut exec, mut nodes) = (std::ptr::null_mut(), 0);
    // SAFETY: with a null array the call only counts; `nodes` outlives it.
    check("cuGraphGetNodes", unsafe { sys::cuGraphGetNodes(raw, std::ptr::null_mut(), &mut nodes) })?;
    // SAFETY: `raw` is a graph that was just recorded, `exec` outlives the call.
    check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, raw, 0) })?;
    Ok((exec, nodes))
}

impl Graph {
    /// Queues a replay on the compute stream.
    ///
    /// # Errors
    /// A driver failure.
    pub fn launch(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the graph is alive, and so is the memory that it uses: its arena's, and its inputs', which the recorder keeps.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.gpu.compute().raw()) })
    }

    /// How many launches, copies and fills it holds.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: not used again; the driver keeps it until replays under way are over.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
        self.gpu.pool().close_arena(self.arena);
    }
}
