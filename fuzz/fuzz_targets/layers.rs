//! GPTQ and AWQ with the configuration beside them: the input is that JSON up to the first zero byte, then the header's JSON up to the next one,
//! then the tensors' bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let split = |data: &'_ [u8]| data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (config, data) = data.split_at(split(data));
    let data = data.get(1..).unwrap_or_default();
    let (json, rest) = data.split_at(split(data));
    let length = json.len() as u64;
    let file = [&length.to_le_bytes()[..], json, rest.get(1..).unwrap_or_default()].concat();
    walsh_fuzz::check(&file, Some(config));
});
