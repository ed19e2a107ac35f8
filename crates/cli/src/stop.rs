//! Ctrl-C and SIGTERM: the first asks the running command to end properly, a second ends the program at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::failure::Failure;

/// Exit code of a program ended by Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// Installs the handler. The flag becomes true on the first signal.
pub fn on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
    })
    .map_err(|e| Failure::runtime(format!("cannot install the Ctrl-C handler: {e}")))?;
    Ok(flag)
}
