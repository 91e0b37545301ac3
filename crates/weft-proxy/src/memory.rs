//! Gives back the memory that only the start needed. Command line, TLS set-up, xDS decoding and
//! lowering touch most of the program's code once; as pages of a file they count as resident until
//! the kernel is short of memory, which on a node full of sidecars is too late.

use std::io;

/// Unmaps this program's code pages. What still runs comes back from the page cache at once, with
/// a minor fault for each 64 KiB. Call it when the start is over, not again and again.
pub fn release_startup_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let program = std::fs::read_link("/proc/self/exe")?;
    let Some(program) = program.to_str() else { return Ok(()) };
    for line in maps.lines() {
        if let Some((start, length)) = code_range(line, program) {
            unmap(start, length)?;
        }
    }
    Ok(())
}

/// `START-END r-xp … PATH` of the program itself. Only code: it is never written to, not even by
/// the dynamic linker, so what is dropped is in the file.
fn code_range(line: &str, program: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("r-xp ") || !rest.ends_with(program) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[allow(unsafe_code, reason = "madvise has no safe form")]
fn unmap(start: usize, length: usize) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a private mapping of the running program's file that is readable and
    // executable but not writable, as /proc/self/maps just said, and the program's own code is
    // never unmapped. Its pages hold exactly the file's bytes, so a page that is dropped is read
    // again from the file, with the same content, when it is next touched.
    unsafe { madvise(address, length, Advice::LinuxDontNeed) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_found() {
        let program = "/usr/bin/weft-proxy";
        let line = |flags: &str, path: &str| {
            format!("55d0-75d0 {flags} 00647000 fe:00 10010753        {path}")
        };
        assert_eq!(code_range(&line("r-xp", program), program), Some((0x55d0, 0x2000)));
        for flags in ["r--p", "rw-p", "rwxp"] {
            assert_eq!(code_range(&line(flags, program), program), None);
        }
        assert_eq!(code_range(&line("r-xp", "/lib/libc.so.6"), program), None);
    }

    #[test]
    fn the_program_goes_on() {
        release_startup_code().unwrap();
        assert_eq!(format!("{:?}", vec![1, 2, 3]), "[1, 2, 3]");
    }
}
