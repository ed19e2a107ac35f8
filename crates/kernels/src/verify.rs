//! Runs the cases of a kernel on a GPU.

use std::time::{SystemTime, UNIX_EPOCH};

use flashlin_cuda::{Arg, Buffer, Gpu, GuardBuffer};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Loaded, Result,
    check::{Case, Data, Value, check_of, relative_error},
};

/// What the cases of one kernel gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Name of the kernel.
    pub name: String,
    /// Hash of the cubin that ran.
    pub sha256: String,
    /// How many cases ran.
    pub cases: usize,
    /// The largest relative L2 error over all outputs.
    pub error: f64,
    /// What did not pass; empty where all did.
    pub failures: Vec<String>,
}

impl Verdict {
    /// True where cases ran and all passed.
    pub fn passed(&self) -> bool {
        self.cases > 0 && self.failures.is_empty()
    }
}

/// Runs the registered cases of a kernel.
///
/// # Errors
/// It has no check, a case does not fit it, or the device fails. A wrong number is no error but a failure in the verdict.
pub fn verify_kernel(loaded: &Loaded, gpu: Gpu) -> Result<Verdict> {
    let kernel = loaded.kernel();
    let check = check_of(&kernel.kernel).ok_or_else(|| Error::Unverified {
        kernel: kernel.name.clone(),
        why: "there is no check for it".into(),
    })?;
    let mut verdict = Verdict {
        name: kernel.name.clone(),
        sha256: kernel.cubin.sha256.clone(),
        cases: 0,
        error: 0.0,
        failures: Vec::new(),
    };
    for case in check.cases(kernel)? {
        case.fits(kernel)?;
        run_case(loaded, gpu, &case, &mut verdict)?;
        verdict.cases += 1;
    }
    Ok(verdict)
}

/// Today in UTC, as records of checks write it: `YYYY-MM-DD`.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date(seconds / 86_400)
}

/// The date `days` days after 1970-01-01, in a calendar whose years begin in March, so that the leap day is a year's last.
fn date(days: u64) -> String {
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (d, month) =
        (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{d:02}")
}

/// Runs one case twice and compares.
fn run_case(loaded: &Loaded, gpu: Gpu, case: &Case, verdict: &mut Verdict) -> Result<()> {
    let first = outputs(loaded, gpu, case)?;
    let second = outputs(loaded, gpu, case)?;
    for ((name, got, expected), (_, again, _)) in first.iter().zip(&second) {
        let error = relative_error(&got.to_f64(), &expected.values);
        verdict.error = verdict.error.max(error);
        if error > expected.tolerance {
            let limit = expected.tolerance;
            verdict
                .failures
                .push(format!("{}: {name} is off by {error:.3e}, at most {limit:.0e}", case.label));
        }
        if got.bytes() != again.bytes() {
            verdict.failures.push(format!("{}: {name} differs between two runs", case.label));
        }
    }
    Ok(())
}

/// Launches once on fresh memory and gives the outputs beside what they should be.
fn outputs<'a>(
    loaded: &Loaded,
    gpu: Gpu,
    case: &'a Case,
) -> Result<Vec<(&'static str, Data, &'a crate::check::Expected)>> {
    let mut memory = Vec::new();
    let mut args = Vec::new();
    for (_, value) in &case.args {
        let (arg, held) = upload(gpu, value)?;
        args.push(arg);
        memory.push(held);
    }
    // SAFETY: number and kinds fit (`Case::fits` and `launch`); every address is memory of the size that the case states, which stays until the reads below have
    // waited.
    unsafe { loaded.launch(gpu.compute(), case.grid, &args)? };
    gpu.synchronize()?;
    let mut out = Vec::new();
    for ((name, value), held) in case.args.iter().zip(&memory) {
        let (dtype, expected) = match value {
            Value::Out { dtype, expected } => (*dtype, expected),
            Value::InOut { data, expected } => (data.dtype(), expected),
            _ => continue,
        };
        let mut data = Data::poison(dtype, expected.values.len())?;
        held.read(data.bytes_mut())?;
        out.push((*name, data, expected));
    }
    Ok(out)
}

/// Memory of one argument.
enum Held {
    None,
    /// Ends where the page ends.
    Guarded(GuardBuffer),
    /// For devices that cannot map by hand.
    Plain(Buffer),
}

impl Held {
    fn new(gpu: Gpu, bytes: usize) -> Result<Held> {
        if gpu.properties().virtual_memory {
            return Ok(Held::Guarded(GuardBuffer::new(gpu, bytes)?));
        }
        let buffer = gpu.alloc(bytes)?;
        buffer.fill_bytes(0xFF)?;
        Ok(Held::Plain(buffer))
    }

    fn write(&self, data: &[u8]) -> Result<()> {
        match self {
            Held::None => {}
            Held::Guarded(b) => b.write(data)?,
            Held::Plain(b) => b.write(0, data)?,
        }
        Ok(())
    }

    fn read(&self, data: &mut [u8]) -> Result<()> {
        match self {
            Held::None => {}
            Held::Guarded(b) => b.read(data)?,
            Held::Plain(b) => b.read(0, data)?,
        }
        Ok(())
    }

    fn arg(&self) -> Arg {
        Arg::Ptr(match self {
            Held::None => 0,
            Held::Guarded(b) => b.address(),
            Held::Plain(b) => b.address(),
        })
    }
}

fn upload(gpu: Gpu, value: &Value) -> Result<(Arg, Held)> {
    let held = match value {
        Value::I32(x) => return Ok((Arg::I32(*x), Held::None)),
        Value::I64(x) => return Ok((Arg::I64(*x), Held::None)),
        Value::F32(x) => return Ok((Arg::F32(*x), Held::None)),
        Value::Null => return Ok((Arg::Ptr(0), Held::None)),
        Value::Scratch(bytes) => Held::new(gpu, *bytes)?,
        Value::Out { dtype, expected } => {
            let poison = Data::poison(dtype, expected.values.len())?;
            let held = Held::new(gpu, poison.bytes().len())?;
            held.write(poison.bytes())?;
            held
        }
        Value::In(data) | Value::InOut { data, .. } => {
            let held = Held::new(gpu, data.bytes().len())?;
            held.write(data.bytes())?;
            held
        }
    };
    Ok((held.arg(), held))
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_civil() {
        for (days, text) in
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (11_017, "2000-03-01"), (20_454, "2026-01-01")]
        {
            assert_eq!(date(days), text);
        }
    }
}
