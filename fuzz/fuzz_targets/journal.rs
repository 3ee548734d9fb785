//! Any bytes as a segment: the scanner comes to an end, never panics and never leaves the file. The first byte chooses
//! whether the input is the file, or what lies behind valid checksums, so that the decoders there are reached too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walcast::journal::fuzzing;

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode & 1 {
        0 => fuzzing::check(bytes),
        _ => fuzzing::check(&fuzzing::seal(bytes)),
    };
});
