//! The allocator, and giving back the memory that only the start needed. Command line, TLS set-up, xDS decoding and
//! lowering touch most of the program's code once; as pages of a file they count as resident until
//! the kernel is short of memory, which on a node full of sidecars is too late.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

/// The program's allocator: mimalloc, asked for alignment only where it does not give it by itself.
///
/// Asked always, as its own wrapper does, it makes every block above 1 KiB whose size is no power
/// of two larger by its alignment and fetches it on a slow way.
pub struct Allocator;

/// Blocks of at least this size have this alignment without asking. Bytes.
const ALIGNED: usize = 16;

#[allow(unsafe_code, reason = "the allocator's own calls")]
mod ffi {
    use super::c_void;

    // SAFETY: mimalloc's public functions, of these signatures in all its versions.
    unsafe extern "C" {
        pub(super) fn mi_malloc(size: usize) -> *mut c_void;
        pub(super) fn mi_zalloc(size: usize) -> *mut c_void;
        pub(super) fn mi_realloc(block: *mut c_void, size: usize) -> *mut c_void;
        /// `force`: pages too that were in use a moment ago.
        pub(super) fn mi_collect(force: bool);
    }
}

fn is_aligned_anyway(layout: Layout) -> bool {
    layout.align() <= ALIGNED && layout.align() <= layout.size()
}

// SAFETY: mimalloc's functions allocate and free as `GlobalAlloc` asks and may be mixed; those
// without an alignment give the one of `ALIGNED`, and of smaller blocks at least their size's largest
// power of two (as C's `malloc` must), which `is_aligned_anyway` has compared.
#[allow(unsafe_code, reason = "an allocator has no safe form")]
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match is_aligned_anyway(layout) {
            true => unsafe { ffi::mi_malloc(layout.size()) }.cast(),
            false => unsafe { MiMalloc.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match is_aligned_anyway(layout) {
            true => unsafe { ffi::mi_zalloc(layout.size()) }.cast(),
            false => unsafe { MiMalloc.alloc_zeroed(layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match is_aligned_anyway(layout) && layout.align() <= size {
            true => unsafe { ffi::mi_realloc(block.cast(), size) }.cast(),
            false => unsafe { MiMalloc.realloc(block, layout, size) },
        }
    }
}

/// Unmaps the pages of files that this program only reads: its code and constants, and those of its
/// libraries. What still runs comes back from the page cache at once, with a minor fault for each
/// 64 KiB. Call it when the start is over, not again and again.
pub fn release_startup_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, length) in clean_file_ranges(&maps) {
        unmap(start, length)?;
    }
    Ok(())
}

/// Mappings of files that cannot be written to and of which no page was ever changed, not even by
/// the dynamic linker, as its relocated tables are: what is dropped is in the file.
fn clean_file_ranges(smaps: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = file_range(line) {
            candidate = range;
        } else if line.split_whitespace().eq(["Anonymous:", "0", "kB"]) {
            ranges.extend(candidate.take());
        }
    }
    ranges
}

/// `START-END r?-p OFFSET DEVICE INODE PATH`: the first line of a mapping. The inner value is its
/// range when it is private, readable, not writable and of a file.
fn file_range(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let flags = words.next()?;
    let of_a_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    let clean = of_a_file && matches!(flags, "r-xp" | "r--p");
    Some(clean.then(|| end.checked_sub(start)).flatten().map(|length| (start, length)))
}

/// As [`release_freed`], and what the C libraries have freed, of all threads: the cryptography takes
/// its keys from the system's own allocator, which keeps what it had of a burst.
#[allow(unsafe_code, reason = "the allocator's own call")]
pub(crate) fn release_all_freed() {
    release_freed();
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) may be called at any time on any thread.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Between two collections of an idle thread: each looks at all its pages.
const IDLE_COLLECTION: Duration = Duration::from_secs(5);

/// For a thread that is about to wait: gives back what a burst of work has left, every few seconds
/// at most.
pub fn release_freed_when_idle() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    if LAST.get().is_none_or(|last| now.duration_since(last) >= IDLE_COLLECTION) {
        release_freed();
        LAST.set(Some(now));
    }
}

/// Gives the pages back to the system of which this thread has freed every block. The allocator does so
/// by itself only as it allocates, and a thread that has become idle does not.
#[allow(unsafe_code, reason = "the allocator's own call")]
pub(crate) fn release_freed() {
    // SAFETY: it may be called at any time on any thread, whether or not that thread ever
    // allocated with mimalloc.
    unsafe { ffi::mi_collect(true) }
}

#[allow(unsafe_code, reason = "madvise has no safe form")]
fn unmap(start: usize, length: usize) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a private mapping of the running program or one of its libraries that
    // is not writable and has no changed page, as /proc/self/smaps just said; such mappings are
    // never unmapped or written while the program runs. The pages hold exactly the file's bytes, so
    // a page that is dropped is read again from the file, with the same content, when touched.
    unsafe { madvise(address, length, Advice::LinuxDontNeed) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code, reason = "the allocator is called as a collection would")]
    fn blocks_are_aligned_as_asked() {
        for size in (1..300).chain([1000, 1025, 3000, 5000, 8192, 10_000, 70_000, 200_000]) {
            for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: sizes are not zero, and blocks are freed with the layout they have.
                unsafe {
                    let block = Allocator.alloc(layout);
                    assert!(block.addr().is_multiple_of(align), "{layout:?}");
                    block.write_bytes(1, size);
                    let block = Allocator.realloc(block, layout, size * 2);
                    assert!(block.addr().is_multiple_of(align), "{layout:?} twice");
                    assert_eq!(*block.add(size - 1), 1);
                    let twice = Layout::from_size_align(size * 2, align).unwrap();
                    Allocator.dealloc(block, twice);
                    let block = Allocator.alloc_zeroed(layout);
                    assert!(block.addr().is_multiple_of(align) && *block.add(size - 1) == 0);
                    Allocator.dealloc(block, layout);
                }
            }
        }
    }

    #[test]
    fn only_unchanged_mappings_of_files_are_found() {
        let mapping = |flags: &str, path: &str, anonymous: &str| {
            format!(
                "55d0-75d0 {flags} 00647000 fe:00 10010753        {path}\nRss:  4 kB\n\
                 Anonymous:        {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let (program, found) = ("/usr/bin/weft-proxy", [(0x55d0, 0x2000)]);
        assert_eq!(clean_file_ranges(&mapping("r-xp", program, "0")), found);
        assert_eq!(clean_file_ranges(&mapping("r--p", program, "0")), found);
        assert_eq!(clean_file_ranges(&mapping("r--p", program, "8")), []);
        assert_eq!(clean_file_ranges(&mapping("r--p", "", "0")), []);
        assert_eq!(clean_file_ranges(&mapping("r-xp", "[vdso]", "0")), []);
        for flags in ["rw-p", "rwxp", "r--s"] {
            assert_eq!(clean_file_ranges(&mapping(flags, program, "0")), []);
        }
    }

    #[test]
    fn the_program_goes_on() {
        release_startup_code().unwrap();
        assert_eq!(format!("{:?}", vec![1, 2, 3]), "[1, 2, 3]");
    }
}
