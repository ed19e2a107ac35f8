//! Small tables of integers on a GPU, kept by content: every layer of a pass, and every step of a run, asks for the same ones, and an upload costs
//! more than the kernel that reads it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::{Device, Result, Tensor};

/// Tables that are kept; the one unused longest goes first.
const KEPT: usize = 64;
/// Longer tables are not kept.
const LONGEST: usize = 1 << 18;

struct Entry {
    device: Device,
    values: Arc<[i32]>,
    tensor: Tensor,
}

/// The table on the device.
pub(super) fn get(device: Device, values: Vec<i32>) -> Result<Tensor> {
    cached(device, values, |values| Tensor::from_slice(values, &[values.len()])?.to_device(&device))
}

fn cached(device: Device, values: Vec<i32>, send: impl FnOnce(&[i32]) -> Result<Tensor>) -> Result<Tensor> {
    if values.len() > LONGEST {
        return send(&values);
    }
    static ENTRIES: OnceLock<Mutex<Vec<Entry>>> = OnceLock::new();
    let mut entries = ENTRIES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    // The most recent stand last.
    if let Some(at) = entries.iter().rposition(|e| e.device == device && *e.values == *values) {
        let entry = entries.remove(at);
        let tensor = entry.tensor.clone();
        entries.push(entry);
        return Ok(tensor);
    }
    let tensor = send(&values)?;
    if entries.len() >= KEPT {
        entries.remove(0);
    }
    entries.push(Entry { device, values: values.into(), tensor: tensor.clone() });
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tables_are_kept_and_others_sent_again() {
        // An ordinal of its own: no other test shares the entries.
        let device = Device::Cuda(usize::MAX);
        let mut sent = 0;
        let mut get = |first: i32| {
            let t = cached(device, vec![first, 1], |v| {
                sent += 1;
                Tensor::from_slice(v, &[v.len()])
            });
            assert_eq!(t.unwrap().to_vec::<i32>().unwrap(), [first, 1]);
            sent
        };
        assert_eq!((get(0), get(0), get(7), get(0)), (1, 1, 2, 2));
        for i in 100..100 + KEPT as i32 - 1 {
            get(i);
        }
        assert_eq!(get(0), KEPT as i32 + 1);
        assert_eq!(get(7), KEPT as i32 + 2);
    }
}
