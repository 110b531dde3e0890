//! GGUF: the input is what follows magic and version.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    walsh_fuzz::check(&[b"GGUF\x03\0\0\0", data].concat(), None);
});
