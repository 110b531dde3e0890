//! Everything in safetensors: walsh's own tensors, bitsandbytes', gpt-oss', GPTQ's and AWQ's. The input is the header's JSON up to the first zero byte,
//! then the tensors' bytes; the length in front is put there, so that the fuzzer need not find it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (json, rest) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let length = json.len() as u64;
    walsh_fuzz::check(&[&length.to_le_bytes()[..], json, rest].concat(), None);
    // The same bytes as a whole file.
    walsh_fuzz::check(data, None);
});
