//! Readers against files that are almost right: valid files of every container, changed by a seeded generator that knows where headers, numbers and
//! names are. Nothing panics, and no input takes more memory than 16 times its size and 64 KiB.
//!
//! `WALSH_FUZZ_EXECUTIONS=10000000 cargo test --release --test fuzz_readers` runs for longer, `WALSH_FUZZ_SEED` changes the generator. The same
//! readers are behind the libFuzzer targets in `fuzz/`.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use walsh::format::{Format, PackedMatrix, Rounding};
use walsh::io::gguf::KeyValue;
use walsh::io::{Container, Dtype, Item, ItemContent, Metadata, PackedTensor, Writer, fuzz_bytes};
use walsh::nn::GptConfig;
use walsh::qat::Quantizer;
use walsh::train::export::{Exported, ModelInfo};
use walsh::train::{CharVocab, Precision};

/// Counts the bytes that each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    // Threads that end have no counters any more.
    let _ = HELD.try_with(|held| {
        let now = held.get().wrapping_add(more).wrapping_sub(less);
        held.set(now);
        // Other threads' memory may be freed here: that is no peak.
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(if now > usize::MAX / 2 { 0 } else { now })));
    });
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `work` held beyond what was held before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get().saturating_sub(before))
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A valid file and the configuration beside it.
#[derive(Clone)]
struct Seed {
    bytes: Vec<u8>,
    sidecar: Option<Vec<u8>>,
}

fn seed(container: Option<Container>, format: &str, shape: &[usize], order: Option<Vec<u32>>) -> Seed {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut items = vec![Item { name: "h.0.bias".into(), shape: vec![3], content: ItemContent::Plain(Dtype::F16) }];
    let mut metadata = Metadata::Texts(vec![("format".into(), "pt".into())]);
    let mut tensor = None;
    if let Some(container) = container {
        let format: Format = format.parse().unwrap();
        let (rows, cols) = container.matrix_shape(&format, shape);
        let x: Vec<f32> = (0..rows * cols).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let matrix = PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap();
        let permuted = order.is_some();
        tensor = Some(PackedTensor { matrix, shape: shape.to_vec(), dtype: Dtype::F16, order });
        let content = ItemContent::Packed { format, dtype: Dtype::F16, permuted };
        items.push(Item { name: "h.0.weight".into(), shape: shape.to_vec(), content });
        if container == Container::Gguf {
            let mut list = 8u32.to_le_bytes().to_vec();
            list.extend(2u64.to_le_bytes());
            list.extend([1, 0, 0, 0, 0, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0, 0]);
            metadata = Metadata::Gguf(vec![
                KeyValue::from_u32("general.alignment", 32),
                KeyValue { key: "list".into(), kind: 9, bytes: list },
            ]);
        }
    }
    Writer::write(&path, container, items, &metadata, |writer| {
        writer.plain(0, 0, &[0; 6])?;
        tensor.iter().try_for_each(|tensor| writer.packed(1, tensor).map(|_| ()))
    })
    .unwrap();
    let sidecar =
        ["quantize_config.json", "quant_config.json"].iter().find_map(|name| std::fs::read(dir.path().join(name)).ok());
    Seed { bytes: std::fs::read(&path).unwrap(), sidecar }
}

/// A field with as many small objects as its value: what takes most memory beside its text where a reader keeps it.
fn many_objects(count: usize) -> String {
    format!("\"x\":[{}]", vec!["{\"\":0}"; count].join(","))
}

fn seeds() -> Vec<Seed> {
    let order: Vec<u32> = (0..32).map(|i| (i * 5) % 32).collect();
    let mut all = vec![
        seed(None, "", &[], None),
        seed(Some(Container::Walsh), "int4:g16", &[2, 40], None),
        seed(Some(Container::Walsh), "nf4:dq", &[2, 64], Some((0..64).rev().collect())),
        seed(Some(Container::Walsh), "int3:asym", &[3, 33], None),
        seed(Some(Container::Bitsandbytes), "nf4", &[3, 30], None),
        seed(Some(Container::Bitsandbytes), "fp4:g32:dq", &[2, 2, 32], None),
        seed(Some(Container::GptOss), "mxfp4", &[2, 2, 64], None),
        seed(Some(Container::Gptq), "int4:g16:asym", &[8, 32], Some(order.clone())),
        seed(Some(Container::GptqV2), "int3:row:asym", &[32, 32], None),
        seed(Some(Container::Gptq), "int8:g32", &[4, 32], None),
        seed(Some(Container::Awq), "int4:g16:asym", &[8, 32], None),
        seed(Some(Container::Gguf), "int4:g32", &[2, 32], None),
        seed(Some(Container::Gguf), "int8:g32", &[2, 32], None),
        seed(Some(Container::Gguf), "int2:g256", &[1, 256], None),
        seed(Some(Container::Gguf), "mxfp4", &[2, 32], None),
        seed(Some(Container::Gguf), "nvfp4", &[1, 64], None),
    ];
    // A configuration most of which is about something else.
    for number in [7, 10] {
        let Seed { bytes, .. } = all[number].clone();
        let config = format!(r#"{{"bits":4,"group_size":16,"version":"GEMM",{}}}"#, many_objects(500));
        all.push(Seed { bytes, sidecar: Some(config.into_bytes()) });
    }
    for seed in &all {
        assert!(fuzz_bytes(&seed.bytes, seed.sidecar.as_deref()).unwrap() >= 1);
    }
    all
}

const NUMBERS: [u64; 18] =
    [0, 1, 2, 3, 4, 7, 16, 31, 32, 33, 255, 256, 65535, 1 << 31, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];

/// Words that mean something to a reader.
const TEXTS: [&str; 27] = [
    "U8",
    "I32",
    "U32",
    "F16",
    "F32",
    "BF16",
    "weight",
    ".codes",
    ".side",
    ".order",
    ".absmax",
    ".quant_map",
    "_blocks",
    "_scales",
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    "nf4",
    "int4:asym",
    "walsh.quantized",
    "quantization_config",
    "quant_method",
    "checkpoint_format",
    "gptq_v2",
    ".blocks",
    "[",
];

/// Changes a JSON text where numbers, strings and entries are.
fn change_text(text: &mut Vec<u8>, random: &mut Random) {
    let places = |text: &[u8], wanted: &dyn Fn(u8) -> bool| -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut start = None;
        for (i, byte) in text.iter().chain(b" ").enumerate() {
            match (wanted(*byte), start) {
                (true, None) => start = Some(i),
                (false, Some(from)) => {
                    found.push((from, i));
                    start = None;
                }
                _ => {}
            }
        }
        found
    };
    let numbers = places(text, &|b| b.is_ascii_digit());
    let strings = places(text, &|b| b.is_ascii_alphanumeric() || b"_.:".contains(&b));
    let replace = |text: &mut Vec<u8>, (from, to): (usize, usize), with: &[u8]| {
        text.splice(from..to, with.iter().copied());
    };
    match random.below(8) {
        0 | 1 if !numbers.is_empty() => {
            let place = *random.pick(&numbers);
            let number = random.pick(&NUMBERS).to_string();
            replace(text, place, number.as_bytes());
        }
        2 if !numbers.is_empty() => {
            let place = *random.pick(&numbers);
            let old: u64 = std::str::from_utf8(&text[place.0..place.1]).unwrap().parse().unwrap_or(0);
            let new = if random.below(2) == 0 { old.wrapping_add(1) } else { old.wrapping_mul(2) };
            replace(text, place, new.to_string().as_bytes());
        }
        3 if !strings.is_empty() => {
            let place = *random.pick(&strings);
            let with = *random.pick(&TEXTS);
            replace(text, place, with.as_bytes());
        }
        4 if !strings.is_empty() => {
            // One name or number in the place of another.
            let (a, b) = (*random.pick(&strings), *random.pick(&strings));
            let with = text[a.0..a.1].to_vec();
            replace(text, b, &with);
        }
        5 => {
            // Part of the text once more, as many times as a header may have it.
            let (a, b) = (random.below(text.len()), random.below(text.len()));
            let copy = text[a.min(b)..a.max(b)].repeat(1 + random.below(4));
            let at = random.below(text.len());
            replace(text, (at, at), &copy[..copy.len().min(4096)]);
        }
        6 => {
            let (a, b) = (random.below(text.len()), random.below(text.len()));
            text.drain(a.min(b)..a.max(b).min(a.min(b) + 40));
        }
        _ if !text.is_empty() => {
            let at = random.below(text.len());
            text[at] = *random.pick(b"{}[]\",:0- \\n\xFF");
        }
        _ => {}
    }
}

fn change_bytes(bytes: &mut Vec<u8>, random: &mut Random, start: usize) {
    if bytes.len() <= start {
        return;
    }
    let at = start + random.below(bytes.len() - start);
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = *random.pick(&[0, 1, 2, 3, 0x7F, 0x80, 0xFF]),
        2 | 3 => {
            let number = random.pick(&NUMBERS).to_le_bytes();
            let width = *random.pick(&[4, 8]);
            for (to, from) in bytes[at..].iter_mut().zip(&number[..width]) {
                *to = *from;
            }
        }
        4 => bytes.truncate(at),
        _ => {
            let end = (at + random.below(64)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
    }
}

fn mutate(all: &[Seed], random: &mut Random) -> Seed {
    let mut seed = random.pick(all).clone();
    for _ in 0..=random.below(4) {
        let gguf = seed.bytes.starts_with(b"GGUF");
        match random.below(16) {
            0 => {
                seed.bytes = {
                    let mut b = seed.bytes;
                    change_bytes(&mut b, random, 0);
                    b
                }
            }
            1 => seed.sidecar.clone_from(&random.pick(all).sidecar),
            2 => {
                if let Some(text) = &mut seed.sidecar {
                    change_text(text, random);
                }
            }
            _ if gguf => {
                // Mostly the header, which is what there is most to get wrong in.
                let end = seed.bytes.len().min(320);
                let rest = seed.bytes.split_off(end);
                change_bytes(&mut seed.bytes, random, 4);
                seed.bytes.extend(rest);
            }
            3 | 4 => change_bytes(&mut seed.bytes, random, 8),
            _ => {
                let length = seed.bytes.first_chunk().map_or(0, |l| u64::from_le_bytes(*l));
                let end = usize::try_from(length.saturating_add(8)).unwrap_or(usize::MAX).min(seed.bytes.len());
                if end > 8 {
                    let mut text = seed.bytes[8..end].to_vec();
                    change_text(&mut text, random);
                    let data = seed.bytes.split_off(end);
                    seed.bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
                }
            }
        }
    }
    seed
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn readers_neither_panic_nor_take_more_memory_than_they_may() {
    let executions = number("WALSH_FUZZ_EXECUTIONS", 120_000);
    let start = number("WALSH_FUZZ_SEED", 1);
    let all = seeds();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (mut read, mut refused, mut share) = (0, 0, 0.0f64);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let all = &all;
                scope.spawn(move || {
                    let mut random =
                        Random(0x9E37_79B9_7F4A_7C15 ^ (start << 8 | (thread + 1)).wrapping_mul(0xD134_2543_DE82_EF95));
                    let (mut counts, mut largest) = ([0u64; 2], 0.0f64);
                    for execution in 0..executions.div_ceil(threads) {
                        let Seed { bytes, sidecar } = mutate(all, &mut random);
                        let size = bytes.len() + sidecar.as_ref().map_or(0, Vec::len);
                        let work = || std::panic::catch_unwind(|| fuzz_bytes(&bytes, sidecar.as_deref()).is_ok());
                        let (result, peak) = peak(work);
                        let shown =
                            || format!("seed {start}, thread {thread}, execution {execution}:\n{bytes:?}\n{sidecar:?}");
                        let Ok(fine) = result else { panic!("a reader panicked: {}", shown()) };
                        assert!(peak <= 16 * size + (64 << 10), "{peak} bytes for a file of {size}: {}", shown());
                        counts[usize::from(fine)] += 1;
                        largest = largest.max(peak as f64 / (16 * size + (64 << 10)) as f64);
                    }
                    (counts, largest)
                })
            })
            .collect();
        for worker in workers {
            let ([bad, good], largest) = worker.join().unwrap();
            refused += bad;
            read += good;
            share = share.max(largest);
        }
    });
    println!("{read} files were read, {refused} refused; at most {:.0} % of the memory that is allowed", share * 100.0);
    // A generator whose files are all refused at once, or none, tests nothing.
    assert!(read * 50 > executions && refused * 4 > executions, "{read} read, {refused} refused");
}

#[test]
fn settings_of_exported_models_are_read_or_refused() {
    let gpt = GptConfig {
        layers: 1,
        heads: 1,
        embd: 16,
        block: 4,
        vocab: 3,
        dropout: 0.0,
        bias: false,
        quantizer: Some("int4:row:f32:centred:mse".parse().unwrap()).map(|weights| {
            Quantizer::new("quest:trust=1.5".parse().unwrap(), weights, Some(weights), Some(16)).unwrap()
        }),
    };
    let info = ModelInfo { gpt, vocab: CharVocab::of("abc"), precision: Precision::F32, step: 7, val_loss: Some(1.5) };
    let Metadata::Texts(texts) = info.metadata(Container::Walsh).unwrap() else { panic!("texts") };
    let json = &texts[0].1;
    let header = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    // As many elements as the model has parameters.
    let data = vec![0; 3232];
    let safetensors = |json: &[u8]| {
        let json = serde_json::to_string(&String::from_utf8_lossy(json)).unwrap();
        let tensor = "\"a\":{\"dtype\":\"I8\",\"shape\":[3232],\"data_offsets\":[0,3232]}";
        let text = format!("{{\"__metadata__\":{{\"walsh.model\":{json}}},{tensor}}}");
        [header(text.as_bytes()), data.clone()].concat()
    };
    let gguf = |json: &[u8]| {
        let value = [header(b"walsh.model"), 8u32.to_le_bytes().to_vec(), header(json)].concat();
        let shape = [1u32.to_le_bytes().to_vec(), 3232u64.to_le_bytes().to_vec()].concat();
        let tensor = [header(b"a"), shape, 24u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
        let counts = [1u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
        let mut file = [b"GGUF\x03\0\0\0".to_vec(), counts, value, tensor].concat();
        file.resize(file.len().next_multiple_of(32), 0);
        [file, data.clone()].concat()
    };
    for file in [safetensors(json.as_bytes()), gguf(json.as_bytes())] {
        assert_eq!(*Exported::from_bytes("file", &file).unwrap().unwrap().info(), info);
    }
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let (mut read, mut refused) = (0, 0);
    for execution in 0..number("WALSH_FUZZ_EXECUTIONS", 120_000) / 6 {
        let mut text = json.clone().into_bytes();
        for _ in 0..=random.below(3) {
            change_text(&mut text, &mut random);
        }
        let file = if execution % 2 == 0 { safetensors(&text) } else { gguf(&text) };
        let work = || std::panic::catch_unwind(|| Exported::from_bytes("file", &file).map(|found| found.is_some()));
        let (result, peak) = peak(work);
        let shown = || format!("execution {execution}: {}", String::from_utf8_lossy(&text));
        assert!(peak <= 16 * file.len() + (64 << 10), "{peak} bytes for a file of {}: {}", file.len(), shown());
        match result {
            Ok(Ok(found)) => read += u64::from(found),
            Ok(Err(error)) => {
                assert!(matches!(error, walsh::Error::File { .. }) && !error.is_failure(), "{error}: {}", shown());
                refused += 1;
            }
            Err(_) => panic!("a reader panicked: {}", shown()),
        }
    }
    assert!(read > 100 && refused > read, "{read} read, {refused} refused");
    // A vocabulary that is none, as long as a file can have it.
    let long = json.replace("abc", &"ba".repeat(1 << 20));
    for file in [safetensors(long.as_bytes()), gguf(long.as_bytes())] {
        let (result, peak) = peak(|| Exported::from_bytes("file", &file).map(|_| ()).unwrap_err().to_string());
        assert!(result.contains("not in ascending order"), "{result}");
        assert!(peak <= 16 * file.len() + (64 << 10), "{peak} bytes for a file of {}", file.len());
    }
}

#[test]
fn headers_of_many_small_things_stay_within_the_bound() {
    let safetensors =
        |json: String, data: usize| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let mut files = Vec::new();
    // As many tensors, pieces of metadata, dimensions, descriptions and keys as fit, each as short as it can be.
    let tensors = (0..30_000).map(|i| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
    files.push(safetensors(format!("{{{}}}", tensors.collect::<Vec<_>>().join(",")), 0));
    let metadata = (0..100_000).map(|i| format!("\"{i:x}\":\"\"")).collect::<Vec<_>>().join(",");
    files.push(safetensors(format!("{{\"__metadata__\":{{{metadata}}}}}"), 0));
    files.push(safetensors(format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}1]}}}}", "1,".repeat(300_000)), 1));
    let described = (0..20_000)
        .map(|i| format!("\\\"{i:x}\\\":{{\\\"format\\\":\\\"nf4\\\",\\\"shape\\\":[1],\\\"dtype\\\":\\\"U8\\\"}}"));
    let described = described.collect::<Vec<_>>().join(",");
    files.push(safetensors(
        format!(
            "{{\"__metadata__\":{{\"walsh.quantized\":\"{{\\\"version\\\":1,\\\"tensors\\\":{{{described}}}}}\"}}}}"
        ),
        0,
    ));
    let layers = (0..5000).map(|i| {
        let empty = "\"data_offsets\":[0,0]}";
        format!("\"{i:x}.qweight\":{{\"dtype\":\"I32\",\"shape\":[0,0],{empty},\"{i:x}.scales\":{{\"dtype\":\"F16\",\"shape\":[0,0],{empty}")
    });
    files.push(safetensors(format!("{{{}}}", layers.collect::<Vec<_>>().join(",")), 0));
    let gguf = |tensors: u64, values: u64, rest: &[u8]| {
        [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &values.to_le_bytes(), rest].concat()
    };
    let key = |i: u32| [&3u64.to_le_bytes()[..], &i.to_le_bytes()[..3], &7u32.to_le_bytes(), &[1]].concat();
    let keys: Vec<u8> = (0..30_000u32)
        .map(|i| i | 0x40_0000)
        .filter(|i| std::str::from_utf8(&i.to_le_bytes()[..3]).is_ok())
        .flat_map(key)
        .collect();
    let count = keys.len() as u64 / 16;
    files.push(gguf(0, count, &keys));
    let tensor = |i: u32| {
        let name = format!("{i:04x}");
        [
            &4u64.to_le_bytes()[..],
            name.as_bytes(),
            &1u32.to_le_bytes(),
            &0u64.to_le_bytes(),
            &24u32.to_le_bytes(),
            &[0; 8],
        ]
        .concat()
    };
    let mut tensors = gguf(30_000, 0, &(0..30_000).flat_map(tensor).collect::<Vec<u8>>());
    tensors.resize(tensors.len().next_multiple_of(32), 0);
    files.push(tensors);
    for (number, file) in files.iter().enumerate() {
        let (result, peak) = peak(|| fuzz_bytes(file, None).map_err(|e| e.to_string()));
        assert!(peak <= 16 * file.len() + (64 << 10), "file {number}: {peak} bytes for {}", file.len());
        // Half of them are valid.
        assert_eq!(result.is_ok(), [0, 5, 6].contains(&number), "file {number}: {result:?}");
    }
    // The same of configurations, whose bytes count with the file's.
    let file = seed(Some(Container::Gptq), "int4:g16:asym", &[8, 32], None).bytes;
    let many = many_objects(130_000);
    let keys = (0..80_000).map(|i| format!("\"{i:x}\":[]")).collect::<Vec<_>>().join(",");
    let long = "a".repeat(1_000_000);
    for (number, (config, fine)) in [
        (format!(r#"{{"bits":4,"group_size":16,{many}}}"#), true),
        (format!(r#"{{"quantization_config":{{"bits":4,{many},"group_size":16}}}}"#), true),
        (format!(r#"{{{many},"quantization_config":{{"bits":4}}}}"#), true),
        (format!(r#"{{"bits":4,{keys}}}"#), true),
        (format!(r#"{{"bits":4,"{long}":0}}"#), true),
        (format!(r#"{{"bits":4,"quant_method":"{long}"}}"#), false),
        (format!(r#"{{"bits":4,"checkpoint_format":"{long}"}}"#), false),
        (format!(r#"{{"bits":"{long}"}}"#), false),
    ]
    .into_iter()
    .enumerate()
    {
        let (result, peak) = peak(|| fuzz_bytes(&file, Some(config.as_bytes())).map_err(|e| e.to_string()));
        let size = file.len() + config.len();
        assert!(peak <= 16 * size + (64 << 10), "configuration {number}: {peak} bytes for {size}");
        assert_eq!(result.is_ok(), fine, "configuration {number}");
    }
}

#[test]
fn tensors_of_the_worst_shapes_stay_within_the_bound() {
    // Rows of few columns, which the packed matrix fills up to 32; and much data in few tensors.
    for (container, format, shape) in [
        (Container::Gptq, "int8:row:asym", [16384, 4]),
        (Container::GptqV2, "int2:row:asym", [16384, 16]),
        (Container::Awq, "int4:row:asym", [16384, 1]),
        (Container::Bitsandbytes, "nf4:g32", [4096, 32]),
        (Container::Bitsandbytes, "nf4:g32:dq", [4096, 33]),
        (Container::GptOss, "mxfp4", [4096, 32]),
        (Container::Gguf, "int4:g32", [4096, 32]),
        (Container::Gguf, "int8:g32", [4096, 32]),
        (Container::Gguf, "nvfp4", [4096, 64]),
        (Container::Gguf, "int2:g256", [1024, 256]),
        (Container::Walsh, "binary:g16", [4096, 1]),
        (Container::Walsh, "nf3", [4096, 129]),
    ] {
        let Seed { bytes, sidecar } = seed(Some(container), format, &shape, None);
        let (read, peak) = peak(|| fuzz_bytes(&bytes, sidecar.as_deref()).unwrap());
        assert_eq!(read, 2);
        let size = bytes.len() + sidecar.map_or(0, |text| text.len());
        assert!(peak <= 16 * size + (64 << 10), "{format} in {container}: {peak} bytes for {size}");
    }
}
