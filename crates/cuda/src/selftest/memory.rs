//! Memory, copies, streams.

use super::{expect, median_ms, numbers};
use crate::{Error, Gpu, GuardBuffer, Pinned, Result, bytes_of};

const MIB: usize = 1 << 20;

/// Patterns of lengths around the pieces of the staging ring come back as they went.
pub fn round_trip(gpu: Gpu) -> Result<String> {
    let data: Vec<u8> = (0..100 * MIB as u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    for len in [0, 1, 255, 64 << 10, 8 * MIB, 8 * MIB + 1, data.len()] {
        let buffer = gpu.upload(&data[..len])?;
        expect(buffer.to_vec()? == data[..len], || format!("{len} bytes came back changed"))?;
    }
    let buffer = gpu.upload(&data)?;
    let copy = gpu.alloc(data.len())?;
    copy.copy_from(0, &buffer, 0, data.len())?;
    let mut part = vec![0; 1000];
    copy.read(12_345, &mut part)?;
    expect(part == data[12_345..13_345], || "a copied part differs".into())?;
    expect(buffer.write(data.len() - 1, &[1, 2]).is_err(), || "a write beyond the end passed".into())?;
    expect(copy.copy_from(0, &copy, 10, 100).is_err(), || "an overlapping copy passed".into())?;
    let begin = std::time::Instant::now();
    buffer.write(0, &data)?;
    gpu.synchronize()?;
    let up = begin.elapsed().as_secs_f64();
    // Touched before, so that the system's page faults stay out of the time.
    let mut back = vec![1; data.len()];
    let begin = std::time::Instant::now();
    buffer.read(0, &mut back)?;
    let down = begin.elapsed().as_secs_f64();
    let speed = |s: f64| data.len() as f64 / s / 1e9;
    Ok(format!("to the device {:.1} GB/s, back {:.1} GB/s", speed(up), speed(down)))
}

/// A freed block serves the next request of its size, cleared where asked, and the counters agree.
pub fn reuse(gpu: Gpu) -> Result<String> {
    let before = gpu.memory();
    let first = gpu.upload(&vec![7; 3 * MIB])?;
    let address = first.address();
    expect(address.is_multiple_of(256), || format!("address {address:#x} is not aligned"))?;
    drop(first);
    let second = gpu.zeros(3 * MIB)?;
    expect(second.address() == address, || "a freed block was not reused".into())?;
    expect(second.to_vec()?.iter().all(|b| *b == 0), || "zeros are not zero".into())?;
    let stats = gpu.memory();
    expect(stats.hits > before.hits && stats.in_use == before.in_use + 4 * MIB, || {
        format!("{before:?} then {stats:?}")
    })?;
    drop(second);
    let begin = std::time::Instant::now();
    for _ in 0..10_000 {
        drop(gpu.zeros(4096)?);
    }
    let hit = begin.elapsed().as_secs_f64() / 1e4;
    gpu.trim()?;
    expect(gpu.memory().cached == 0, || "trim left memory".into())?;
    let begin = std::time::Instant::now();
    drop(gpu.zeros(64 * MIB)?);
    Ok(format!(
        "{:.2} us for zeroed memory from the cache, {:.0} us for new",
        hit * 1e6,
        begin.elapsed().as_secs_f64() * 1e6
    ))
}

/// Asking for too much, by a limit and by the device's size, is an error with its facts; the next request passes.
pub fn out_of_memory(gpu: Gpu) -> Result<String> {
    gpu.trim()?;
    let held = gpu.memory().in_use;
    gpu.set_memory_limit(Some(held + 64 * MIB));
    let fill: Result<Vec<_>> = (0..4).map(|_| gpu.alloc(16 * MIB)).collect();
    let refused = gpu.alloc(16 * MIB);
    let kept = fill?;
    drop(kept);
    let again = gpu.alloc(32 * MIB);
    gpu.set_memory_limit(None);
    again?;
    expect(
        matches!(&refused, Err(Error::OutOfMemory(o)) if o.asked == 16 * MIB && o.in_use == held + 64 * MIB),
        || format!("beyond the limit came {refused:?}"),
    )?;
    let total = gpu.properties().memory_bytes;
    // More than the device has, and then all of it: the second is refused by the driver, not by arithmetic.
    for bytes in [total * 2, total] {
        let text = match gpu.alloc(bytes) {
            Err(e @ Error::OutOfMemory(_)) => e.to_string(),
            other => return Err(Error::invalid("selftest", format!("{bytes} bytes gave {other:?}"))),
        };
        expect(text.contains("would help"), || text)?;
    }
    let data: Vec<u8> = (0..=255).cycle().take(MIB).collect();
    expect(gpu.upload(&data)?.to_vec()? == data, || "memory is wrong after a refusal".into())?;
    Ok(format!("{} was refused, then {} served", crate::error::size(total), crate::error::size(MIB)))
}

/// A copy on the copy stream is seen by the compute stream after it waits, and memory used there is not reused before.
pub fn streams(gpu: Gpu) -> Result<String> {
    let len = 64 * MIB;
    let mut pinned = Pinned::new(gpu, len)?;
    pinned.as_mut_slice().iter_mut().enumerate().for_each(|(i, b)| *b = (i * 7) as u8);
    let out = gpu.zeros(len)?;
    for _ in 0..5 {
        let buffer = gpu.zeros(len)?;
        gpu.copy().after(gpu.compute())?;
        // SAFETY: `pinned` lives until the synchronisation below, and nothing writes it.
        unsafe { pinned.write_to(&buffer, 0, len, gpu.copy())? };
        buffer.used_on(gpu.copy())?;
        gpu.compute().after(gpu.copy())?;
        out.copy_from(0, &buffer, 0, len)?;
        drop(buffer);
        // Would overwrite the copy's target if the block came back too early.
        gpu.zeros(len)?;
    }
    let same = out.to_vec()? == pinned.as_slice();
    gpu.synchronize()?;
    expect(same, || "the compute stream saw an unfinished copy".into())?;
    let (a, b) = (gpu.timed_event()?, gpu.timed_event()?);
    a.record(gpu.copy())?;
    // SAFETY: as above.
    unsafe { pinned.write_to(&out, 0, len, gpu.copy())? };
    b.record(gpu.copy())?;
    let ms = a.elapsed_ms(&b)?;
    gpu.check("the selftest of streams")?;
    Ok(format!("pinned to device {:.1} GB/s", len as f64 / f64::from(ms) / 1e6))
}

/// Guarded memory holds what is written, for lengths that are no multiple of anything.
pub fn guard(gpu: Gpu) -> Result<String> {
    let begin = std::time::Instant::now();
    let lengths = [16, 100, 4096, 2 * MIB, 2 * MIB + 48];
    for len in lengths {
        let buffer = GuardBuffer::new(gpu, len)?;
        let data = bytes_of(&numbers(len as u64, len / 8 + 1))[..len].to_vec();
        buffer.write(&data)?;
        let mut back = vec![0; len];
        buffer.read(&mut back)?;
        expect(back == data, || format!("{len} bytes came back changed"))?;
        let end = buffer.address() + len as u64;
        expect(
            buffer.address().is_multiple_of(16) && end.next_multiple_of(16).is_multiple_of(2 * MIB as u64),
            || format!("{len} bytes end at {end:#x}"),
        )?;
    }
    let made = begin.elapsed().as_secs_f64() * 1e3 / lengths.len() as f64;
    let begin = std::time::Instant::now();
    (0..100).try_for_each(|_| GuardBuffer::new(gpu, 4096).map(drop))?;
    Ok(format!("{made:.2} ms a new buffer, {:.3} ms a reused one", begin.elapsed().as_secs_f64() * 10.0))
}

/// The ceiling of everything that only moves bytes: read and write of 4 GiB (or a sixteenth of the memory).
pub fn bandwidth(gpu: Gpu) -> Result<String> {
    let len = large(gpu);
    let copy = copy_bandwidth(gpu)? / 1e9;
    let a = gpu.zeros(len)?;
    let fill = len as f64 / median_ms(gpu, 10, || a.fill_bytes(1))? / 1e6;
    Ok(format!("copy {copy:.0} GB/s read and written, fill {fill:.0} GB/s"))
}

/// More than any cache holds.
fn large(gpu: Gpu) -> usize {
    (4usize << 30).min(gpu.properties().memory_bytes / 16)
}

/// Bytes read and written a second by a large copy on the device: the ceiling of what memory bounds.
///
/// # Errors
/// Memory; a driver failure.
pub fn copy_bandwidth(gpu: Gpu) -> Result<f64> {
    let len = large(gpu);
    let (a, b) = (gpu.zeros(len)?, gpu.zeros(len)?);
    let ms = median_ms(gpu, 10, || b.copy_from(0, &a, 0, len))?;
    Ok(2.0 * len as f64 / ms * 1e3)
}
