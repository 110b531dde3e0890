//! Containers byte by byte: what their owners' layouts say of small tensors worked out by hand, what encoders do at ties, and round trips of every
//! format that a container holds.

use std::path::Path;
use walsh::format::{Format, Grid, Header, PackedMatrix, Rounding, Store};
use walsh::io::convert::{Selection, quantize_file};
use walsh::io::gguf::KeyValue;
use walsh::io::{Archive, Container, Dtype, Item, ItemContent, Metadata, PackedTensor, Writer};

/// A safetensors file, put together here on its own.
fn safetensors(metadata: &str, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{metadata}"));
    }
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!("{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"));
        data.extend(bytes);
    }
    let json = format!("{{{}}}", entries.join(","));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &data].concat()
}

/// A GGUF file, put together here on its own: name, dimensions innermost first, type, bytes.
fn gguf(tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let text = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.bytes());
    };
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(1u64.to_le_bytes());
    text(&mut file, "general.alignment");
    file.extend(4u32.to_le_bytes());
    file.extend(64u32.to_le_bytes());
    let mut data: Vec<u8> = Vec::new();
    for (name, dimensions, kind, bytes) in tensors {
        text(&mut file, name);
        file.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|n| file.extend(n.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(64), 0);
    }
    file.resize(file.len().next_multiple_of(64), 0);
    file.extend(data);
    file
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn read(bytes: &[u8], sidecar: Option<&str>, name: &str) -> PackedTensor {
    let archive = Archive::from_bytes("test", bytes, sidecar.map(str::as_bytes)).unwrap();
    archive.packed(archive.entry(name).unwrap()).unwrap()
}

/// Reading everything in it fails, with a message that has these parts.
#[track_caller]
fn refused(bytes: &[u8], sidecar: Option<&str>, parts: &[&str]) {
    let error = walsh::io::fuzz_bytes(bytes, sidecar.map(str::as_bytes)).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

fn codes(matrix: &PackedMatrix) -> Vec<u32> {
    let layout = matrix.layout();
    (0..layout.rows).flat_map(|row| (0..layout.cols).map(move |col| matrix.code(row, col))).collect()
}

/// Writes one tensor and returns the file.
fn write(container: Container, name: &str, tensor: &PackedTensor) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_to(&path, container, name, tensor).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (dir, bytes)
}

/// How many bytes the tensor takes.
fn write_to(path: &Path, container: Container, name: &str, tensor: &PackedTensor) -> walsh::Result<u64> {
    let content =
        ItemContent::Packed { format: tensor.matrix.format(), dtype: tensor.dtype, permuted: tensor.order.is_some() };
    let item = Item { name: name.to_owned(), shape: tensor.shape.clone(), content };
    let metadata = Metadata::Texts(Vec::new());
    Writer::write(path, Some(container), vec![item], &metadata, |writer| writer.packed(0, tensor))
}

fn quantized(container: Container, format: &str, x: &[f32], shape: &[usize]) -> PackedTensor {
    let format: Format = format.parse().unwrap();
    let (rows, cols) = container.matrix_shape(&format, shape);
    let matrix = PackedMatrix::quantize(format, x, rows, cols, Rounding::Nearest).unwrap();
    PackedTensor { matrix, shape: shape.to_vec(), dtype: Dtype::F32, order: None }
}

/// The bytes of a tensor of a safetensors file.
fn part(file: &[u8], name: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let offset = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + length;
    file[offset(0)..offset(1)].to_vec()
}

#[test]
fn gpt_oss_has_even_elements_low() {
    // Codes 0 to 15 twice, and the same backwards; scales 2^1 and 2^-1.
    let up: Vec<u8> = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE].repeat(2);
    let down: Vec<u8> = [0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01].repeat(2);
    let file = safetensors(
        "",
        &[
            ("e.w_blocks", "U8", &[2, 1, 1, 16], [up.clone(), down].concat()),
            ("e.w_scales", "U8", &[2, 1, 1], vec![128, 126]),
            ("e.bias", "F32", &[1], floats(&[0.5])),
        ],
    );
    let tensor = read(&file, None, "e.w");
    assert_eq!((tensor.shape.as_slice(), tensor.matrix.format().to_string().as_str()), (&[2, 1, 32][..], "mxfp4"));
    let expected: Vec<u32> = (0..32).map(|i| i % 16).chain((0..32).map(|i| 15 - i % 16)).collect();
    assert_eq!(codes(&tensor.matrix), expected);
    // E2M1: code 5 is 3, code 15 is -6.
    let values = tensor.matrix.dequantize();
    assert_eq!((values[5], values[15], values[32], values[42]), (6.0, -12.0, -3.0, 1.5));
    let (_dir, written) = write(Container::GptOss, "e.w", &tensor);
    assert_eq!(part(&written, "e.w_blocks")[..16], up);
    assert_eq!(part(&written, "e.w_scales"), [128, 126]);
    // As OpenAI's own files spell it.
    let file = safetensors("", &[("w.blocks", "U8", &[1, 1, 16], up), ("w.scales", "U8", &[1, 1], vec![127])]);
    assert_eq!(read(&file, None, "w").matrix.value(0, 7), 6.0);
}

const NF4_MAP: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

#[test]
fn bitsandbytes_has_even_elements_high() {
    // 70 elements: the second block has six of them.
    let bytes: Vec<u8> = (0..35).map(|i| (((2 * i % 16) << 4) | ((2 * i + 1) % 16)) as u8).collect();
    assert_eq!(bytes[..3], [0x01, 0x23, 0x45]);
    let state = br#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [7, 10]}"#.to_vec();
    let file = safetensors(
        "",
        &[
            ("a.weight", "U8", &[35, 1], bytes.clone()),
            ("a.weight.absmax", "F32", &[2], floats(&[2.0, 0.5])),
            ("a.weight.quant_map", "F32", &[16], floats(&NF4_MAP)),
            ("a.weight.quant_state.bitsandbytes__nf4", "U8", &[state.len()], state),
        ],
    );
    let tensor = read(&file, None, "a.weight");
    assert_eq!((tensor.shape.as_slice(), tensor.dtype), (&[7, 10][..], Dtype::BF16));
    // Ten columns hold no whole block: the matrix is one row.
    assert_eq!((tensor.matrix.layout().rows, tensor.matrix.layout().cols), (1, 70));
    assert_eq!(codes(&tensor.matrix), (0..70).map(|i| i % 16).collect::<Vec<u32>>());
    let values = tensor.matrix.dequantize();
    assert_eq!((values[0], values[15], values[64], values[69]), (-2.0, 2.0, -0.5, f64::from(NF4_MAP[5]) * 0.5));
    let (_dir, written) = write(Container::Bitsandbytes, "a.weight", &tensor);
    assert_eq!(part(&written, "a.weight"), bytes);
    assert_eq!(part(&written, "a.weight.absmax"), floats(&[2.0, 0.5]));
    assert_eq!(part(&written, "a.weight.quant_map"), floats(&NF4_MAP));
    let state: serde_json::Value =
        serde_json::from_slice(&part(&written, "a.weight.quant_state.bitsandbytes__nf4")).unwrap();
    assert_eq!(state, serde_json::json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [7, 10]}));
    assert_eq!(read(&written, None, "a.weight"), tensor);
}

#[test]
fn bitsandbytes_nested_scales_are_a_map_a_scale_and_an_offset() {
    // FP4: code 3 is 1, code 11 is -1. Two rows of one block; the map of the file has its own values.
    let map: Vec<f32> = (0..256).map(|i| (i as f32 - 128.0) / 128.0).collect();
    let fp4: [f32; 8] = [0.0, 0.0625 / 12.0, 8.0 / 12.0, 1.0, 4.0 / 12.0, 6.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0];
    let table: Vec<f32> = fp4.iter().copied().chain(fp4.map(|v| -v)).collect();
    let state = br#"{"quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": [2, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}"#
        .to_vec();
    let file = safetensors(
        "",
        &[
            ("p.weight", "U8", &[64, 1], [vec![0x3B; 32], vec![0x30; 32]].concat()),
            ("p.weight.absmax", "U8", &[2], vec![192, 64]),
            ("p.weight.nested_absmax", "F32", &[1], floats(&[4.0])),
            ("p.weight.nested_quant_map", "F32", &[256], floats(&map)),
            ("p.weight.quant_map", "F32", &[16], floats(&table)),
            ("p.weight.quant_state.bitsandbytes__fp4", "U8", &[state.len()], state),
        ],
    );
    let tensor = read(&file, None, "p.weight");
    assert_eq!(tensor.matrix.format().to_string(), "fp4:dq");
    // 0.5 * 4 + 0.25 and -0.5 * 4 + 0.25.
    assert_eq!((tensor.matrix.value(0, 0), tensor.matrix.value(0, 1)), (2.25, -2.25));
    assert_eq!((tensor.matrix.value(1, 0), tensor.matrix.value(1, 1)), (-1.75, 0.0));
    let (_dir, written) = write(Container::Bitsandbytes, "p.weight", &tensor);
    for name in ["p.weight", "p.weight.absmax", "p.weight.nested_absmax", "p.weight.nested_quant_map"] {
        assert_eq!(part(&written, name), part(&file, name), "{name}");
    }
    assert_eq!(read(&written, None, "p.weight"), tensor);
}

#[test]
fn gptq_packs_along_columns_and_stores_zero_points_less_one() {
    // Weight [8, 8]: code of row n at column k is (n + k) % 16, zero point n, scale 1; one group of all columns.
    let qweight: Vec<u32> =
        vec![0x7654_3210, 0x8765_4321, 0x9876_5432, 0xA987_6543, 0xBA98_7654, 0xCB_A9_87_65, 0xDCBA_9876, 0xEDCB_A987];
    let scales: Vec<u8> = [0x00, 0x3C].repeat(8);
    let file = |zeros: u32| {
        safetensors(
            "",
            &[
                ("l.qweight", "I32", &[1, 8], words(&qweight)),
                ("l.qzeros", "I32", &[1, 1], words(&[zeros])),
                ("l.scales", "F16", &[1, 8], scales.clone()),
                ("l.g_idx", "I32", &[8], words(&[0; 8])),
                ("l.bias", "F16", &[8], vec![0; 16]),
            ],
        )
    };
    // Version 1: -1 is 15 in four bits.
    let v1 = file(0x6543_210F);
    let config = r#"{"bits": 4, "group_size": -1, "desc_act": false, "sym": false}"#;
    let tensor = read(&v1, Some(config), "l.weight");
    assert_eq!(tensor.matrix.format().to_string(), "int4:row:asym");
    for (n, k) in (0..8).flat_map(|n| (0..8).map(move |k| (n, k))) {
        assert_eq!(tensor.matrix.value(n, k), k as f64, "{n} {k}");
    }
    let v2 = file(0x7654_3210);
    let config = r#"{"bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"}"#;
    assert_eq!(read(&v2, Some(config), "l.weight"), tensor);
    for (container, file) in [(Container::Gptq, &v1), (Container::GptqV2, &v2)] {
        let (dir, written) = write(container, "l.weight", &tensor);
        for name in ["l.qweight", "l.qzeros", "l.scales", "l.g_idx"] {
            assert_eq!(part(&written, name), part(file, name), "{name} in {container}");
        }
        let archive = Archive::open(&dir.path().join("file")).unwrap();
        assert_eq!(archive.container(), Some(container));
        assert_eq!(archive.packed(archive.entry("l.weight").unwrap()).unwrap(), tensor);
    }
}

#[test]
fn gptq_of_three_bits_runs_across_words() {
    // One column of weights, 32 codes k % 8: three words, lowest bits first; 32 rows because zero points are packed along them.
    let mut bits = 0u128;
    for k in 0..32u32 {
        bits |= u128::from(k % 8) << (3 * k);
    }
    let column: Vec<u32> = (0..3).map(|i| (bits >> (32 * i)) as u32).collect();
    // 7 6 5 4 3 2 1 0 in binary from the top: 111 110 101 100 011 010 001 000, 24 bits; the word has 8 more: 10 001 000.
    assert_eq!(column[0], 0b10_001_000_111_110_101_100_011_010_001_000);
    let qweight: Vec<u32> = column.iter().flat_map(|w| [*w; 32]).collect();
    let file = safetensors(
        "",
        &[
            ("l.qweight", "I32", &[3, 32], words(&qweight)),
            // Zero point 4 as 3 in each three bits.
            ("l.qzeros", "I32", &[1, 3], words(&[0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D])),
            ("l.scales", "F16", &[1, 32], [0x00, 0x40].repeat(32)),
        ],
    );
    let tensor = read(&file, None, "l.weight");
    assert_eq!(tensor.matrix.format().to_string(), "int3:row:asym");
    for (n, k) in [(0, 0), (0, 10), (31, 21), (7, 31)] {
        assert_eq!(tensor.matrix.value(n, k), 2.0 * (f64::from(k as u32 % 8) - 4.0));
    }
    let (_dir, written) = write(Container::Gptq, "l.weight", &tensor);
    assert_eq!(part(&written, "l.qweight"), words(&qweight));
    assert_eq!(part(&written, "l.qzeros"), part(&file, "l.qzeros"));
    // Symmetric: the zero points are those of the grid, and are left out.
    let symmetric = r#"{"bits": 3, "group_size": -1, "sym": true}"#;
    let other = read(&file, Some(symmetric), "l.weight");
    assert_eq!(other.matrix.format().to_string(), "int3:row:full");
    assert_eq!(other.matrix.dequantize(), tensor.matrix.dequantize());
}

#[test]
fn gptq_in_another_order_of_columns() {
    // Weight [8, 32] in two groups of 16: even columns belong to group 1, odd ones to group 0. Code of column k is k % 16 in every row.
    let word = |first: u32| (0..8).fold(0, |word, j| word | ((first + j) % 16) << (4 * j));
    let qweight: Vec<u32> = (0..4).flat_map(|r| [word(8 * r); 8]).collect();
    let g_idx: Vec<u32> = (0..32).map(|k| (k + 1) % 2).collect();
    let file = safetensors(
        "",
        &[
            ("l.qweight", "I32", &[4, 8], words(&qweight)),
            ("l.qzeros", "I32", &[2, 1], words(&[0xFFFF_FFFF, 0xFFFF_FFFF])),
            // 1 for group 0, 2 for group 1.
            ("l.scales", "F16", &[2, 8], [[0x00, 0x3C].repeat(8), [0x00, 0x40].repeat(8)].concat()),
            ("l.g_idx", "I32", &[32], words(&g_idx)),
        ],
    );
    let config = r#"{"quantization_config": {"bits": 4, "group_size": 16, "desc_act": true}}"#;
    let tensor = read(&file, Some(config), "l.weight");
    let order: Vec<u32> = (0..16).map(|i| 2 * i + 1).chain((0..16).map(|i| 2 * i)).collect();
    assert_eq!(tensor.order.as_deref(), Some(order.as_slice()));
    let values = walsh::io::convert::dequantize_tensor(None, &tensor).unwrap();
    for k in 0..32 {
        assert_eq!(values[32 + k], (k % 16) as f32 * if k % 2 == 0 { 2.0 } else { 1.0 }, "column {k}");
    }
    let (dir, written) = write(Container::Gptq, "l.weight", &tensor);
    for name in ["l.qweight", "l.qzeros", "l.scales", "l.g_idx"] {
        assert_eq!(part(&written, name), part(&file, name), "{name}");
    }
    let config = std::fs::read_to_string(dir.path().join("quantize_config.json")).unwrap();
    assert!(config.contains("\"desc_act\": true"), "{config}");
    // A file that cannot take its place leaves a configuration that was there before, and no new one.
    for others in [true, false] {
        if !others {
            std::fs::remove_file(dir.path().join("quantize_config.json")).unwrap();
        }
        let path = dir.path().join(format!("taken {others}"));
        let content = ItemContent::Packed { format: tensor.matrix.format(), dtype: tensor.dtype, permuted: true };
        let item = Item { name: "l.weight".into(), shape: tensor.shape.clone(), content };
        let error = Writer::write(&path, Some(Container::Gptq), vec![item], &Metadata::Texts(Vec::new()), |writer| {
            std::fs::create_dir(&path).unwrap();
            writer.packed(0, &tensor)
        });
        assert!(matches!(error, Err(walsh::Error::Io { .. })), "{error:?}");
        assert_eq!(dir.path().join("quantize_config.json").exists(), others);
    }
    // walsh's own container keeps the order, others have none.
    let (_dir, written) = write(Container::Walsh, "l.weight", &tensor);
    assert_eq!(read(&written, None, "l.weight"), tensor);
    let error = write_to(&dir.path().join("other"), Container::Awq, "l.weight", &tensor).unwrap_err().to_string();
    assert!(error.contains("columns are in their own order"), "{error}");
    // A group of 15 and one of 17 columns.
    let mut uneven = g_idx;
    uneven[0] = 0;
    let position = file.len() - words(&uneven).len();
    let broken = [&file[..position], &words(&uneven)].concat();
    refused(&broken, Some(r#"{"bits": 4, "group_size": 16}"#), &["l.weight", "groups of 16 columns"]);
}

#[test]
fn awq_packs_rows_in_its_order() {
    // Weight [8, 16]: code of row r is r in every column; zero points 7 - r; two columns' words are the same.
    // Nibbles from the lowest: rows 0 2 4 6 1 3 5 7.
    let file = safetensors(
        "",
        &[
            ("l.qweight", "I32", &[16, 1], words(&[0x7531_6420; 16])),
            ("l.qzeros", "I32", &[1, 1], words(&[0x0246_1357])),
            ("l.scales", "F16", &[1, 8], [0x00, 0x3C].repeat(8)),
        ],
    );
    let config = r#"{"w_bit": 4, "q_group_size": 16, "version": "gemm", "zero_point": true}"#;
    let archive = Archive::from_bytes("test", &file, Some(config.as_bytes())).unwrap();
    assert_eq!(archive.container(), Some(Container::Awq));
    let tensor = archive.packed(archive.entry("l.weight").unwrap()).unwrap();
    assert_eq!(tensor.matrix.format().to_string(), "int4:g16:asym");
    for r in 0..8 {
        assert_eq!(tensor.matrix.value(r, 3), 2.0 * r as f64 - 7.0, "row {r}");
    }
    let (dir, written) = write(Container::Awq, "l.weight", &tensor);
    for name in ["l.qweight", "l.qzeros", "l.scales"] {
        assert_eq!(part(&written, name), part(&file, name), "{name}");
    }
    let archive = Archive::open(&dir.path().join("file")).unwrap();
    assert_eq!(archive.packed(archive.entry("l.weight").unwrap()).unwrap(), tensor);
}

#[test]
fn gguf_blocks() {
    let byte = |i: usize| (i % 16) as u8;
    // Q4_0, type 2: d = -0.5; element j low, element j + 16 high.
    let q4_0: Vec<u8> = [0x00, 0xB8].into_iter().chain((0..16).map(|j| byte(j) | byte(15 - j) << 4)).collect();
    // Q8_0, type 8: d = 2; -128, -1, 0, 1, 127 and zeros.
    let mut q8_0 = vec![0x00, 0x40, 0x80, 0xFF, 0x00, 0x01, 0x7F];
    q8_0.resize(34, 0);
    // TQ2_0, type 35: all zero (01 in each two bits) but for byte 3: elements 3, 35, 67, 99 are 1, -1, 0, 1; and byte 33: element 129 is -1.
    let mut tq2_0 = vec![0b01_01_01_01; 64];
    tq2_0[3] = 0b10_01_00_10;
    tq2_0[33] = 0b01_01_01_00;
    tq2_0.extend([0x00, 0x3C]);
    // MXFP4, type 39: scale 2^-1.
    let mxfp4: Vec<u8> = [126].into_iter().chain((0..16).map(|j| byte(j) | byte(15 - j) << 4)).collect();
    // NVFP4, type 40: scales 1, 1.5, 2^-9 and 448 as E4M3; per sub-block element j low, element j + 8 high.
    let nvfp4: Vec<u8> =
        [0x38, 0x3C, 0x01, 0x7E].into_iter().chain((0..32).map(|j| byte(j % 8) | byte(15 - j % 8) << 4)).collect();
    let file = gguf(&[
        ("a", &[32], 2, q4_0),
        ("b", &[32, 1], 8, q8_0),
        ("c", &[256, 1], 35, tq2_0),
        ("d", &[32, 2], 39, [mxfp4.clone(), mxfp4].concat()),
        ("e.weight", &[64, 1], 40, nvfp4.clone()),
        ("f.weight", &[64, 1], 40, nvfp4),
        ("f.scale", &[1], 0, floats(&[0.25])),
        ("g", &[3], 0, floats(&[1.0, 2.0, 3.0])),
    ]);
    let value = |name: &str, col: usize| read(&file, None, name).matrix.value(0, col);
    // (q - 8) * -0.5.
    assert_eq!([value("a", 0), value("a", 15), value("a", 16), value("a", 31)], [4.0, -3.5, -3.5, 4.0]);
    assert_eq!([0, 1, 2, 3, 4].map(|i| value("b", i)), [-256.0, -2.0, 0.0, 2.0, 254.0]);
    assert_eq!([3, 35, 67, 99, 129, 128, 0].map(|i| value("c", i)), [1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 0.0]);
    assert_eq!([value("d", 7), value("d", 9), value("d", 16)], [3.0, -0.25, -3.0]);
    assert_eq!([0, 7, 8, 23, 39, 48].map(|i| value("e.weight", i)), [0.0, 6.0, -6.0, 9.0, 6.0 / 512.0, 0.0]);
    assert_eq!([value("f.weight", 7), value("f.weight", 55)], [1.5, 672.0]);
    let tensor = read(&file, None, "d");
    assert_eq!((tensor.shape, tensor.matrix.format().to_string()), (vec![2, 32], "mxfp4:half-zero".to_owned()));
    let archive = Archive::from_bytes("test", &file, None).unwrap();
    assert!(archive.entry("f.scale").is_none(), "a tensor's scale is part of it");
    // Each comes back as it was.
    for name in ["a", "b", "c", "d", "e.weight", "f.weight"] {
        let tensor = read(&file, None, name);
        let (_dir, written) = write(Container::Gguf, name, &tensor);
        assert_eq!(read(&written, None, name), tensor, "{name}");
        let block = |file: &[u8]| {
            let archive = Archive::from_bytes("test", file, None).unwrap();
            archive.entry(name).unwrap().bytes().unwrap()
        };
        assert_eq!(block(&written), block(&file));
    }
}

/// One f32 of that name beside an NVFP4 tensor is its scale; whatever else has the name is a tensor.
#[test]
fn gguf_scales_are_told_from_tensors_of_their_name() {
    let nvfp4 = quantized(Container::Gguf, "nvfp4:ue4m3:half-zero", &hard(4, 64), &[4, 64]);
    let q4_0 = quantized(Container::Gguf, "int4:g32:exact:half-up:full:signed", &hard(4, 64), &[4, 64]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.gguf");
    let write = |tensor: &PackedTensor, name: &str, dtype: Dtype, shape: &[usize]| {
        let packed = ItemContent::Packed { format: tensor.matrix.format(), dtype: tensor.dtype, permuted: false };
        let items = vec![
            Item { name: name.into(), shape: shape.to_vec(), content: ItemContent::Plain(dtype) },
            Item { name: "l.weight".into(), shape: tensor.shape.clone(), content: packed },
        ];
        let bytes = vec![0x40; dtype.bytes() as usize * shape.iter().product::<usize>()];
        let texts = Metadata::Texts(Vec::new());
        Writer::write(&path, Some(Container::Gguf), items, &texts, |writer| {
            writer.plain(0, 0, &bytes)?;
            writer.packed(1, tensor)
        })?;
        Ok::<_, walsh::Error>(bytes)
    };
    for shape in [&[][..], &[1], &[1, 1]] {
        let error = write(&nvfp4, "l.scale", Dtype::F32, shape).unwrap_err().to_string();
        let file = format!("{}: tensor `l.scale`: expected", path.display());
        assert!(error.starts_with(&file) && error.contains("`l.weight`") && error.contains("scale"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    for (tensor, name, dtype, shape) in [
        (&nvfp4, "l.scale", Dtype::F32, &[64][..]),
        (&nvfp4, "l.scale", Dtype::F16, &[1]),
        (&nvfp4, "l.scales", Dtype::F32, &[1]),
        (&q4_0, "l.scale", Dtype::F32, &[1]),
    ] {
        let bytes = write(tensor, name, dtype, shape).unwrap();
        let archive = Archive::open(&path).unwrap();
        let plain = archive.entry(name).unwrap();
        assert_eq!((plain.dtype(), plain.shape()), (Some(dtype), shape), "{name}");
        assert_eq!(archive.plain(plain, 0, u64::MAX).unwrap(), bytes, "{name}");
        assert_eq!(archive.packed(archive.entry("l.weight").unwrap()).unwrap(), *tensor, "{name}");
    }
    // A scale of the tensor's own is written by this name.
    let own = quantized(Container::Gguf, "nvfp4", &hard(4, 64), &[4, 64]);
    let error = write(&own, "l.scale", Dtype::F32, &[64]).unwrap_err().to_string();
    assert!(error.contains("`l.scale` is taken"), "{error}");
}

#[test]
fn gguf_metadata_is_kept_as_it_is() {
    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(2u64.to_le_bytes());
    for text in ["a", "bc"] {
        nested.extend(8u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
        nested.extend((text.len() as u64).to_le_bytes());
        nested.extend(text.bytes());
    }
    let metadata = vec![
        KeyValue::from_text("general.architecture", "llama"),
        KeyValue::from_u32("general.alignment", 128),
        KeyValue { key: "x.bool".into(), kind: 7, bytes: vec![1] },
        KeyValue { key: "x.f64".into(), kind: 12, bytes: 1.5f64.to_le_bytes().to_vec() },
        KeyValue { key: "x.arrays".into(), kind: 9, bytes: nested },
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.gguf");
    let plain =
        |name: &str, n: usize| Item { name: name.to_owned(), shape: vec![n], content: ItemContent::Plain(Dtype::F16) };
    let items = vec![plain("a", 3), plain("b", 1)];
    Writer::write(&path, Some(Container::Gguf), items, &Metadata::Gguf(metadata.clone()), |writer| {
        writer.plain(1, 0, &[1, 2])?;
        writer.plain(0, 0, &[3, 4, 5, 6])?;
        writer.plain(0, 4, &[7, 8])
    })
    .unwrap();
    let archive = Archive::open(&path).unwrap();
    assert_eq!(archive.metadata(), &Metadata::Gguf(metadata.clone()));
    let shown: Vec<String> = metadata.iter().map(KeyValue::describe).collect();
    assert_eq!(shown, ["llama", "128", "true", "1.5", "array of 2"]);
    assert_eq!(archive.plain(archive.entry("a").unwrap(), 0, 100).unwrap(), [3, 4, 5, 6, 7, 8]);
    assert_eq!(archive.plain(archive.entry("a").unwrap(), 4, 100).unwrap(), [7, 8]);
    assert_eq!(archive.plain(archive.entry("b").unwrap(), 0, 1).unwrap(), [1]);
    assert_eq!(std::fs::metadata(&path).unwrap().len() % 128, 0, "ggml's readers want the last tensor padded too");
}

fn encoding(container: Container, name: &str) -> Format {
    container.format(name).unwrap()
}

fn encoded(container: Container, name: &str, x: &[f32], cols: usize) -> PackedMatrix {
    let format = encoding(container, name);
    PackedMatrix::quantize(format, x, x.len() / cols, cols, Rounding::Nearest).unwrap()
}

fn padded(x: &[f32], to: usize) -> Vec<f32> {
    x.iter().copied().chain(std::iter::repeat(0.0)).take(to).collect()
}

#[test]
fn ggml_q4_0_puts_the_largest_at_minus_eight_and_rounds_ties_up() {
    // d = m / -8; q = min(15, trunc(x / d + 8.5)).
    let x = [-8.0, 7.5, 8.0, 0.5, -0.5, 3.5, -7.5, 0.0];
    let matrix = encoded(Container::Gguf, "int4", &padded(&x, 32), 32);
    assert_eq!(matrix.scale(0, 0, false), 1.0);
    assert_eq!((0..8).map(|i| matrix.code(0, i)).collect::<Vec<_>>(), [0, 15, 15, 9, 8, 12, 1, 8]);
    // The largest is positive: d is negative, and -0.5 / -1 + 8.5 = 9.
    let x = [8.0, -0.5, 0.5, -7.0];
    let matrix = encoded(Container::Gguf, "int4", &padded(&x, 32), 32);
    assert_eq!(matrix.scale(0, 0, false), -1.0);
    assert_eq!((0..4).map(|i| matrix.code(0, i)).collect::<Vec<_>>(), [0, 9, 8, 15]);
    // Codes are chosen by d before it is rounded to f16. d = 1.0004 becomes 1 (the next f16 is 1.00098); 0.50015 / 1.0004 is below a half.
    let x = [-8.0032, 0.500_15];
    let matrix = encoded(Container::Gguf, "int4", &padded(&x, 32), 32);
    assert_eq!((matrix.scale_bits(0, 0), matrix.code(0, 1)), (0x3C00, 8));
    // All zero: d = 0, all codes 8.
    let matrix = encoded(Container::Gguf, "int4", &[0.0; 32], 32);
    assert_eq!((matrix.scale_bits(0, 0), matrix.code(0, 31)), (0, 8));
}

#[test]
fn ggml_q8_0_and_tq2_0_round_half_away_from_zero() {
    let x = [127.0, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5];
    let matrix = encoded(Container::Gguf, "int8", &padded(&x, 32), 32);
    assert_eq!(matrix.scale(0, 0, false), 1.0);
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|i| matrix.value(0, i)), [127.0, 1.0, -1.0, 2.0, 3.0, -3.0, 127.0]);
    // d = max |x| = 2, not 2 / 127; rounded to -1, 0 or 1.
    for name in ["int2", "ternary"] {
        let matrix = encoded(Container::Gguf, name, &padded(&[2.0, 1.0, -1.0, 0.999, -0.999], 256), 256);
        assert_eq!([0, 1, 2, 3, 4].map(|i| matrix.value(0, i)), [2.0, 2.0, -2.0, 0.0, 0.0]);
        assert_eq!(matrix.code(0, 255), 2);
    }
}

#[test]
fn ggml_mxfp4_breaks_ties_toward_zero_and_ocp_to_even() {
    let x = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -5.0];
    let toward_zero = [6.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 0.0, -0.5, -4.0];
    let to_even = [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0, -4.0];
    for (container, expected) in [(Container::Gguf, toward_zero), (Container::GptOss, to_even)] {
        let matrix = encoded(container, "mxfp4", &padded(&x, 32), 32);
        // floor(log2 6) - 2 + 127.
        assert_eq!(matrix.scale_bits(0, 0), 127);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(|i| matrix.value(0, i)), expected, "{container}");
    }
    // The first of the entries that are equally near is +0, not -0.
    let matrix = encoded(Container::Gguf, "mxfp4", &padded(&x, 32), 32);
    assert_eq!(matrix.code(0, 8), 0);
    // floor: 7 saturates at 6; amax = 0 is byte 0.
    let matrix = encoded(Container::Gguf, "mxfp4", &padded(&[7.0], 32), 32);
    assert_eq!((matrix.value(0, 0), matrix.scale_bits(0, 0)), (6.0, 127));
    assert_eq!(encoded(Container::Gguf, "mxfp4", &[0.0; 32], 32).scale_bits(0, 0), 0);
}

#[test]
fn ggml_nvfp4_rounds_its_scales_half_up() {
    // (amax / 6, byte). A tie between 1 and 1.125 goes up; 248 and more are the largest; what lies between 7 and 8 times 2^-9 is 7 of them.
    let cases: [(f32, u32); 12] = [
        (1.0, 0x38),
        (1.0625, 0x39),
        (1.0624, 0x38),
        (1.1875, 0x3A),
        (240.0, 0x77),
        (247.0, 0x77),
        (248.0, 0x7E),
        (256.0, 0x7E),
        (0.001_953_125, 0x01),
        (0.000_976_562_5, 0x01),
        (0.000_9, 0x00),
        (0.015_3, 0x07),
    ];
    for (scale, byte) in cases {
        let matrix = encoded(Container::Gguf, "nvfp4", &padded(&[scale * 6.0], 64), 64);
        assert_eq!(matrix.scale_bits(0, 0), byte, "{scale}");
        assert_eq!(matrix.header(Header::Factor), 1.0, "there is no scale of the tensor");
        assert_eq!(matrix.scale_bits(0, 3), 0);
    }
    let matrix = encoded(Container::Gguf, "nvfp4", &padded(&[6.0, 5.0, -0.25, -3.5], 64), 64);
    assert_eq!([0, 1, 2, 3].map(|i| matrix.code(0, i)), [7, 6, 0, 13]);
}

#[test]
fn bitsandbytes_goes_up_only_above_the_threshold() {
    // NF4: the largest magnitude of the block is 1; the middle between codes 7 and 8 stays at 7. FP4 the same by magnitude.
    let middle = NF4_MAP[8] / 2.0;
    let matrix = encoded(Container::Bitsandbytes, "nf4", &padded(&[-1.0, middle, middle * 1.000_1], 64), 64);
    assert_eq!([0, 1, 2].map(|i| matrix.code(0, i)), [0, 7, 8]);
    let x = [1.0, 0.208_333, 0.208_334, -0.208_333, -0.208_334, 0.0];
    let matrix = encoded(Container::Bitsandbytes, "fp4", &padded(&x, 64), 64);
    // 0.2083333 lies between 2/12 (code 6) and 3/12 (code 7).
    assert_eq!([0, 1, 2, 3, 4, 5].map(|i| matrix.code(0, i)), [3, 6, 7, 14, 15, 0]);
}

/// Values with outliers, a row of zeros and all magnitudes.
fn hard(rows: usize, cols: usize) -> Vec<f32> {
    let value = |i: usize| {
        let v = ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0;
        if i % 311 == 7 { v * 20.0 } else { v * (1.0 + (i / cols) as f32) }
    };
    (0..rows * cols).map(|i| if i / cols == 1 { 0.0 } else { value(i) }).collect()
}

#[test]
fn every_format_comes_back_from_every_container_that_holds_it() {
    let mut formats = Format::all();
    let more = ["int2:g64", "int3:g32:asym", "int8:row", "nf4:g128:dq", "fp4:g4096", "int4:g32", "nvfp4:ue4m3"];
    formats.extend(more.iter().map(|f| f.parse::<Format>().unwrap()));
    for container in Container::ALL {
        formats.extend(container.encodings().iter().map(|(_, format)| *format));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut held = 0;
    for (rows, cols) in [(32, 256), (8, 96), (3, 37), (5, 512)] {
        let x = hard(rows, cols);
        for (container, format) in Container::ALL.into_iter().flat_map(|c| formats.iter().map(move |f| (c, *f))) {
            let tensor = match container.supports(&format, &[rows, cols]) {
                Ok(()) => quantized(container, &format.to_string(), &x, &[rows, cols]),
                Err(reason) => {
                    assert!(container != Container::Walsh && !reason.is_empty());
                    continue;
                }
            };
            held += 1;
            // A configuration beside the file belongs to one model.
            let path = dir.path().join(format!("{held}"));
            std::fs::create_dir(&path).unwrap();
            let path = path.join("file");
            let bytes = write_to(&path, container, "a.weight", &tensor);
            let bytes = bytes.unwrap_or_else(|e| panic!("{format} in {container}: {e}"));
            let archive = Archive::open(&path).unwrap_or_else(|e| panic!("{format} in {container}: {e}"));
            assert_eq!(archive.container(), Some(container));
            let entry = archive.entry("a.weight").unwrap();
            assert_eq!(entry.bytes(), Some(bytes), "{format} in {container}");
            let back = archive.packed(entry).unwrap();
            assert_eq!(back.shape, [rows, cols]);
            let (a, b) = (&tensor.matrix, &back.matrix);
            assert_eq!(a.codes(), b.codes(), "{format} in {container}");
            let layout = a.layout();
            for (row, group) in (0..layout.rows).flat_map(|row| (0..layout.groups).map(move |g| (row, g))) {
                for i in 0..layout.scales {
                    let scale = group * layout.scales + i;
                    assert_eq!(a.scale_bits(row, scale), b.scale_bits(row, scale), "{format} in {container}");
                }
                assert_eq!(a.scale(row, group, true), b.scale(row, group, true), "{format} in {container}");
                if matches!(format.grid(), Grid::ZeroPoint { .. }) {
                    assert_eq!(a.zero(row, group), b.zero(row, group), "{format} in {container}");
                }
            }
            assert_eq!(a.dequantize(), b.dequantize(), "{format} in {container}");
            let own = container.encodings().iter().any(|(_, own)| *own == format);
            if container == Container::Walsh || own {
                assert_eq!(a, b, "{format} in {container}");
            }
        }
    }
    assert!(held > 250, "{held}");
}

#[test]
fn values_are_computed_as_they_are_defined() {
    for format in Format::all() {
        let tensor = quantized(Container::Walsh, &format.to_string(), &hard(5, 200), &[5, 200]);
        let values = walsh::io::convert::dequantize_tensor(None, &tensor).unwrap();
        for (i, (got, want)) in values.iter().zip(tensor.matrix.dequantize()).enumerate() {
            assert_eq!(*got, want as f32, "{format}: element {i}");
        }
    }
}

#[test]
fn what_a_container_cannot_hold_is_refused_with_the_reason() {
    let cases: [(Container, &str, &[usize], &str); 22] = [
        (Container::Gguf, "int4:g32:centred", &[4, 64], "half-integers"),
        (Container::Gguf, "int4:g32:asym", &[4, 64], "no zero points"),
        (Container::Gguf, "int4:row", &[4, 64], "per group of 32"),
        (Container::Gguf, "int2:g256:full", &[4, 256], "per group of 256"),
        (Container::Gguf, "nf4", &[4, 64], "Q4_0"),
        (Container::Gguf, "mxfp4", &[4, 48], "no multiple of MXFP4's block of 32"),
        (Container::Gguf, "nvfp4", &[4, 48], "no multiple of NVFP4's block of 64"),
        (Container::Gguf, "mxfp4", &[1, 1, 1, 1, 32], "four dimensions"),
        (Container::GptOss, "nvfp4", &[4, 64], "mxfp4 alone"),
        (Container::GptOss, "mxfp4", &[4, 48], "block of 32"),
        (Container::GptOss, "mxfp4", &[64], "two dimensions"),
        (Container::Bitsandbytes, "int4", &[4, 64], "table"),
        (Container::Bitsandbytes, "nf4:row", &[4, 64], "32 to 4096"),
        (Container::Bitsandbytes, "nf4:f16", &[4, 64], "f32 or double-quantized"),
        (Container::Gptq, "int4:centred", &[8, 128], "half-integers"),
        (Container::Gptq, "int5:asym", &[32, 128], "2, 3, 4 or 8 bits"),
        (Container::Gptq, "int4:f32", &[8, 128], "f16"),
        (Container::Gptq, "int4", &[8, 127], "8 codes"),
        (Container::GptqV2, "int4:tensor", &[8, 128], "row or group"),
        (Container::Awq, "int3:asym", &[8, 128], "4 bits"),
        (Container::Awq, "int4", &[8, 192], "group of 128"),
        (Container::Awq, "mxfp4", &[8, 128], "integers"),
    ];
    for (container, format, shape, reason) in cases {
        let format: Format = format.parse().unwrap();
        let error = container.check("tensor `a`", &format, shape).unwrap_err();
        assert!(!error.is_failure());
        let message = error.to_string();
        for part in ["tensor `a`", reason, &format.to_string(), "walsh", container.name()] {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
    // Layers are named after their weight, and a file has one format where its configuration says so.
    let tensor = quantized(Container::Gptq, "int4:asym", &hard(8, 128), &[8, 128]);
    let dir = tempfile::tempdir().unwrap();
    let error = write_to(&dir.path().join("a"), Container::Gptq, "embedding", &tensor).unwrap_err().to_string();
    assert!(error.contains("`embedding`") && error.contains("..weight"), "{error}");
    let file = format!("{}: tensor `", dir.path().join("a").display());
    assert!(error.starts_with(&file), "{error}");
    let nvfp4 = quantized(Container::Gguf, "nvfp4", &hard(8, 128), &[8, 128]);
    let error = write_to(&dir.path().join("a"), Container::Gguf, "embedding", &nvfp4).unwrap_err().to_string();
    assert!(error.contains("nvfp4:ue4m3"), "{error}");
    let long = format!("{}.weight", "a".repeat(60));
    let error = write_to(&dir.path().join("a"), Container::Gguf, &long, &nvfp4).unwrap_err().to_string();
    assert!(error.contains("63 bytes"), "{error}");
    // -2 has no place among ternary codes.
    let mut ternary = quantized(Container::Gguf, "int2:g256:exact:half-away", &hard(1, 256), &[1, 256]);
    ternary.matrix.set_code(0, 5, 0);
    let error = write_to(&dir.path().join("a"), Container::Gguf, "a", &ternary).unwrap_err().to_string();
    assert!(error.starts_with(&file) && error.contains("`a`") && error.contains("-2"), "{error}");
    let mut broken = quantized(Container::Walsh, "int4:f32", &hard(1, 256), &[1, 256]);
    broken.matrix.set_scale_bits(0, 1, f32::NAN.to_bits());
    let error = write_to(&dir.path().join("a"), Container::Walsh, "a", &broken).unwrap_err().to_string();
    assert!(error.starts_with(&file) && error.contains("finite"), "{error}");
    // Too much, too little, and something else than was announced.
    let item = Item { name: "a".into(), shape: vec![2], content: ItemContent::Plain(Dtype::F32) };
    for (number, from, bytes) in [(0, 4, 8), (0, 0, 4), (1, 0, 8)] {
        let error =
            Writer::write(&dir.path().join("a"), None, vec![item.clone()], &Metadata::Texts(Vec::new()), |writer| {
                writer.plain(number, from, &vec![0; bytes])
            });
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", dir.path().join("a").display())), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-written is left");
}

#[test]
fn malformed_safetensors_are_refused_with_the_tensors_name() {
    let one = |dtype: &str, shape: &[usize], bytes: usize| safetensors("", &[("w", dtype, shape, vec![0; bytes])]);
    refused(b"", None, &["safetensors or GGUF", "0 bytes"]);
    // No file of either container: text, a length that cannot be one, a length and no header.
    refused(b"# A title\n", None, &["expected a safetensors or GGUF file", "starts with `# A titl`"]);
    refused(&[255; 16], None, &["safetensors or GGUF", r"\xff\xff"]);
    refused(&[&8u64.to_le_bytes()[..], b"nonsense"].concat(), None, &["safetensors or GGUF"]);
    refused(&[&9u64.to_le_bytes()[..], b"nonsense"].concat(), None, &["safetensors or GGUF"]);
    // One of safetensors that was cut off, and one with a damaged header.
    refused(&100u64.to_le_bytes(), None, &["a safetensors header of at most 0 bytes", "100"]);
    refused(
        &[&100u64.to_le_bytes()[..], b"{\"a\":"].concat(),
        None,
        &["a safetensors header of at most 5 bytes", "100"],
    );
    refused(&[&8u64.to_le_bytes()[..], b"{onsense"].concat(), None, &["a safetensors header"]);
    refused(&one("F32", &[2, 2], 15), None, &["16 bytes in tensor `w`", "15"]);
    refused(&one("F17", &[1], 4), None, &["`w`", "F17"]);
    refused(&one("U8", &[usize::MAX, 2], 4), None, &["countable bytes in tensor `w`"]);
    refused(&one("U8", &[usize::MAX, 2, 0], 4), None, &["countable bytes in tensor `w`"]);
    refused(&one("U8", &[1; 9], 1), None, &["`w`", "8 dimensions"]);
    let whole = one("F32", &[2], 8);
    refused(&whole[..whole.len() - 1], None, &["`w`", "the file's end"]);
    refused(&[&whole[..], b"x"].concat(), None, &["the file's end"]);
    let twice = safetensors("", &[("w", "U8", &[1], vec![0]), ("w", "U8", &[1], vec![0])]);
    refused(&twice, None, &["unique names in tensor `w`"]);
    let header =
        |json: &str, data: usize| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let overlap =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    refused(&header(overlap, 3), None, &["tensor `b`"]);
    let backwards = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#;
    refused(&header(backwards, 2), None, &["tensor `a`"]);
    let huge = r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#;
    refused(&header(huge, 2), None, &["tensor `a`"]);
}

/// A written file with the text of its header changed.
fn changed(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let json = std::str::from_utf8(&file[8..8 + length]).unwrap();
    assert!(json.contains(from), "{from} is not in {json}");
    let json = json.replacen(from, to, 1);
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &file[8 + length..]].concat()
}

/// The same with bytes of one tensor changed.
fn poked(file: &[u8], name: &str, bytes: &[u8]) -> Vec<u8> {
    let old = part(file, name);
    let at = file.windows(old.len()).rposition(|w| w == old).unwrap();
    let mut file = file.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn malformed_containers_are_refused_with_the_tensors_name() {
    let file = |container: Container, format: &str| {
        write(container, "a.weight", &quantized(container, format, &hard(8, 128), &[8, 128])).1
    };
    let walsh_file = file(Container::Walsh, "nf4");
    refused(&changed(&walsh_file, r#"\"version\":1"#, r#"\"version\":2"#), None, &["version 1", "2"]);
    refused(&changed(&walsh_file, r#"\"shape\":[8,128]"#, r#"\"shape\":[8,129]"#), None, &["`a.weight`", "codes"]);
    refused(&changed(&walsh_file, r#"\"shape\":[8,128]"#, r#"\"shape\":[0,128]"#), None, &["`a.weight`"]);
    for (from, to, reason) in [
        (r#"\"nf4\""#, r#"\"nf9\""#, "nf9"),
        (r#"\"nf4\""#, "4", "`4`"),
        (r#"\"shape\":[8,128]"#, r#"\"shape\":[-1,128]"#, "`-1`"),
        (r#"\"dtype\""#, r#"\"type\""#, "missing field `dtype`"),
    ] {
        let bytes = changed(&walsh_file, from, to);
        refused(&bytes, None, &["walsh.quantized", "tensor `a.weight`", reason]);
        let error = walsh::io::fuzz_bytes(&bytes, None).unwrap_err().to_string();
        assert_eq!(error.matches(" at line 1 column ").count(), 1, "{error}");
    }
    // Codes without a description: all are lost, and one of them.
    let reason = "a description under the metadata key walsh.quantized in tensor `a.weight`";
    for key in ["walsh.quantised", "format"] {
        refused(&changed(&walsh_file, "walsh.quantized", key), None, &[reason]);
    }
    refused(&changed(&walsh_file, r#"\"a.weight\":{"#, r#"\"b\":{"#), None, &["`b`", "b.codes"]);
    let only = r#"\"tensors\":{"#;
    let length = u64::from_le_bytes(*walsh_file.first_chunk().unwrap()) as usize;
    let json = std::str::from_utf8(&walsh_file[8..8 + length]).unwrap();
    let start = json.find(only).unwrap() + only.len();
    let end = start + json[start..].find("}}").unwrap() + 1;
    refused(&changed(&walsh_file, &json[start..end], ""), None, &[reason]);
    // Beside tensors of another container, too; and what only has a name like theirs is a tensor.
    let pair = |dtype: &str| {
        safetensors("", &[("a.codes", dtype, &[2], words(&[1, 2])), ("a.side", "U32", &[1], words(&[3]))])
    };
    refused(&pair("U32"), None, &["walsh.quantized in tensor `a`"]);
    assert_eq!(walsh::io::fuzz_bytes(&pair("F32"), None).unwrap(), 2);
    refused(&changed(&walsh_file, "a.weight.codes", "b.weight.codes"), None, &["`a.weight`", "a.weight.codes"]);
    let mut side = part(&walsh_file, "a.weight.side");
    side[32 * 4..33 * 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    refused(&poked(&walsh_file, "a.weight.side", &side), None, &["`a.weight`", "finite scales"]);
    let mut side = part(&walsh_file, "a.weight.side");
    side[16 * 4] ^= 1;
    refused(&poked(&walsh_file, "a.weight.side", &side), None, &["`a.weight`", "the values of nf4"]);

    let bnb = file(Container::Bitsandbytes, "nf4:dq");
    for name in ["absmax", "nested_absmax", "nested_quant_map", "quant_map"] {
        let missing = changed(&bnb, &format!("\"a.weight.{name}\""), "\"other\"");
        refused(&missing, None, &["`a.weight`", name]);
    }
    refused(&changed(&bnb, "a.weight.quant_state.bitsandbytes__nf4", "other"), None, &["`a.weight`", "quant_state"]);
    refused(&poked(&bnb, "a.weight.quant_map", &[1]), None, &["`a.weight`", "quant_map"]);
    refused(&poked(&bnb, "a.weight.nested_absmax", &[0, 0, 0xC0, 0x7F]), None, &["`a.weight`", "finite scales"]);
    let state = part(&bnb, "a.weight.quant_state.bitsandbytes__nf4");
    for (from, to, reason) in [
        ("\"blocksize\":64", "\"blocksize\":65", "blocksize"),
        ("[8,128]", "[8,120]", "elements"),
        ("\"nf4\"", "\"nf5\"", "quant_type"),
        ("float32", "float64", "dtype"),
        ("256", "255", "nested_blocksize"),
    ] {
        let text = std::str::from_utf8(&state).unwrap().replacen(from, to, 1);
        assert_eq!(text.len(), state.len());
        let name = "a.weight.quant_state.bitsandbytes__nf4";
        refused(&poked(&bnb, name, text.as_bytes()), None, &["`a.weight`", reason]);
    }
    let described = format!(r#""dtype":"U8","shape":[{}]"#, state.len());
    for (dtype, shape) in [("F32", vec![128]), ("F16", vec![256]), ("I8", vec![512]), ("U8", vec![1, 512])] {
        let other = format!(r#""dtype":"{dtype}","shape":{shape:?}"#);
        let parts = ["`a.weight`", "U8 of one dimension as `a.weight.quant_state", dtype, &format!("{shape:?}")];
        refused(&changed(&bnb, &described, &other), None, &parts);
    }

    let oss = file(Container::GptOss, "mxfp4");
    refused(&changed(&oss, "a.weight_scales", "other"), None, &["a.weight_scales"]);
    refused(&changed(&oss, "[8, 4, 16]", "[8, 8, 8]"), None, &["`a.weight_blocks`", "16 bytes"]);
    refused(&poked(&oss, "a.weight_scales", &[255]), None, &["`a.weight`", "finite scales"]);
    // Blocks that are none, and scales without any. The 512 bytes of the former and the 32 of the latter stay.
    let is = |dtype: &str, shape: &[usize]| format!(r#""dtype":"{dtype}","shape":{shape:?}"#);
    for (dtype, shape) in [
        ("F32", &[8, 4, 4][..]),
        ("I32", &[8, 4, 4]),
        ("F16", &[8, 4, 8]),
        ("BF16", &[8, 4, 8]),
        ("U32", &[128]),
        ("I64", &[64]),
        ("I8", &[8, 4, 16]),
        ("U8", &[32, 16]),
        ("U8", &[512]),
    ] {
        let bytes = changed(&oss, &is("U8", &[8, 4, 16]), &is(dtype, shape));
        refused(&bytes, None, &["`a.weight_blocks`", "U8 of three", dtype, &format!("{shape:?}")]);
    }
    refused(&changed(&oss, &is("U8", &[8, 4, 16]), &is("U8", &[4, 8, 16])), None, &["a.weight_scales", "[8, 4]"]);
    refused(&changed(&oss, &is("U8", &[8, 4]), &is("F32", &[8])), None, &["a.weight_scales", "F32 [8]"]);
    refused(&changed(&oss, "a.weight_blocks", "other"), None, &["`a.weight_scales`", "`a.weight_blocks` beside it"]);
    let dotted = |name: &'static str| safetensors("", &[(name, "U8", &[1, 2], vec![127; 2])]);
    refused(&dotted("w.scales"), None, &["`w.scales`", "`w.blocks` beside it"]);
    // A layout that is not gpt-oss', and names alone.
    let mlx = [("w.scales", "U8", &[1, 2][..], vec![127; 2]), ("w.weight", "U32", &[1, 8], words(&[0; 8]))];
    let plain = [("w_blocks", "F32", &[1][..], floats(&[0.5])), ("w_scales", "F32", &[1, 1], floats(&[0.5]))];
    for tensors in [&mlx, &plain] {
        let bytes = safetensors("", tensors);
        let archive = Archive::from_bytes("test", &bytes, None).unwrap();
        assert_eq!((archive.container(), archive.entries().len()), (None, 2));
    }

    let gptq = file(Container::Gptq, "int4:asym");
    for name in ["qzeros", "scales"] {
        refused(&changed(&gptq, &format!("a.{name}"), "other"), None, &[&format!("a.{name}")]);
    }
    refused(&changed(&gptq, "a.qweight", "other"), None, &["`a.", "`.qweight` beside it"]);
    refused(&changed(&gptq, "\"a.scales\":{\"dtype\":\"F16\"", "\"a.scales\":{\"dtype\":\"I16\""), None, &["a.scales"]);
    refused(&changed(&gptq, "[16, 8]", "[8, 16]"), None, &["`a.qweight`"]);
    refused(&gptq, Some(r#"{"bits": 8, "group_size": 128}"#), &["`a.qweight`", "8 bits"]);
    refused(&gptq, Some(r#"{"bits": 4, "group_size": 64}"#), &["`a.qweight`", "2 groups"]);
    refused(&gptq, Some(r#"{"bits": 4, "group_size": 100}"#), &["group_size"]);
    refused(&gptq, Some("{"), &["configuration"]);
    let says = |method: &str| format!(r#"{{"quant_method": "{method}", "bits": 4, "group_size": 128}}"#);
    let awq = file(Container::Awq, "int4:asym");
    for (file, own, other) in [(&gptq, "gptq", "awq"), (&awq, "awq", "gptq")] {
        let parts = [&format!("the layout of {other}, the quant_method of"), "`a.qweight`", &format!("that of {own}")];
        refused(file, Some(&says(other)), &parts.map(|part| part as &str));
        for method in [own, &own.to_uppercase()] {
            walsh::io::fuzz_bytes(file, Some(says(method).as_bytes())).unwrap();
        }
        refused(file, Some(&says("hqq")), &["quant_method gptq or awq in the configuration", "`a.qweight`", "hqq"]);
        refused(file, Some(r#"{"quant_method": "hqq"}"#), &["quant_method gptq or awq", "hqq"]);
    }
    // Layouts: those that are known under each key, and one that is not.
    for (file, key, known, expected) in [
        (&gptq, "checkpoint_format", &["gptq", "GPTQ", "gptq_v2"][..], "checkpoint_format gptq or gptq_v2 of gptq in"),
        (&gptq, "format", &["gptq", "gptq_v2"], "format gptq or gptq_v2 of gptq in"),
        (&gptq, "version", &["gemv"], ""),
        (&awq, "version", &["gemm", "GEMM"], "version gemm of awq in"),
        (&awq, "checkpoint_format", &["gemm"], "checkpoint_format gemm of awq in"),
    ] {
        let says = |value: &str| format!(r#"{{"bits": 4, "group_size": 128, "{key}": "{value}", "desc_act": false}}"#);
        for value in known {
            walsh::io::fuzz_bytes(file, Some(says(value).as_bytes())).unwrap();
        }
        for value in if expected.is_empty() { &[][..] } else { &["marlin", "gemv", ""] } {
            refused(file, Some(&says(value)), &[expected, "the configuration", "`a.qweight`", value]);
        }
    }
    refused(&gptq, Some(r#"{"bits": 4, "is_marlin_format": true}"#), &["is_marlin_format false", "`a.qweight`"]);
    walsh::io::fuzz_bytes(&gptq, Some(br#"{"bits": 4, "is_marlin_format": false, "checkpoint_format": null}"#))
        .unwrap();
    // Fields that are not what they should be, and what is no object at all.
    for (config, reason) in [
        (r#"{"bits": "4"}"#, "`bits`"),
        (r#"{"w_bit": 4.5}"#, "`w_bit`"),
        (r#"{"group_size": "all"}"#, "`group_size`"),
        (r#"{"bits": 4, "sym": "yes"}"#, "`sym`"),
        (r#"{"bits": 4, "quant_method": 3}"#, "`quant_method`"),
        ("[4, 128]", "an object of settings"),
        (r#"{"quantization_config": [4, 128]}"#, "an object of settings"),
    ] {
        refused(&gptq, Some(config), &["a configuration as JSON", reason]);
    }
    refused(&poked(&gptq, "a.scales", &[0, 0x7C]), None, &["`a.weight`", "finite scales"]);
    let mut out_of_range = vec![0; 128 * 4];
    out_of_range[0] = 1;
    refused(&poked(&gptq, "a.g_idx", &out_of_range), None, &["`a.weight`", "g_idx"]);
}

#[test]
fn malformed_gguf_is_refused_with_the_tensors_name() {
    let good = gguf(&[("a", &[32, 2], 2, vec![0; 36]), ("b", &[4], 0, vec![0; 16])]);
    assert_eq!(walsh::io::fuzz_bytes(&good, None).unwrap(), 2);
    for length in [4, 8, 23, 60, 120, good.len() - 64] {
        let reason = if length == 23 { "the file's end" } else { "expected" };
        refused(&good[..length], None, &[reason]);
    }
    let mut version = good.clone();
    version[4] = 2;
    refused(&version, None, &["version 3 of GGUF", "2"]);
    version[4..8].copy_from_slice(&[0, 0, 0, 3]);
    refused(&version, None, &["big-endian"]);
    let mut many = good.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&many, None, &["tensors in what is left of the file"]);
    refused(&gguf(&[("a", &[33], 2, vec![0; 18])]), None, &["`a`", "multiple of 32 for Q4_0"]);
    refused(&gguf(&[("a", &[1 << 40, 1 << 40], 0, vec![0; 18])]), None, &["`a`"]);
    refused(&gguf(&[("a", &[256], 12, vec![0; 144])]), None, &["`a`", "Q4_K"]);
    refused(&gguf(&[("a", &[256], 99, vec![0; 144])]), None, &["`a`", "number 99"]);
    refused(&gguf(&[("a", &[1, 1, 1, 1, 1], 0, vec![0; 4])]), None, &["`a`", "dimensions"]);
    refused(&gguf(&[("a", &[1], 0, vec![0; 4]), ("a", &[1], 0, vec![0; 4])]), None, &["unique names", "`a`"]);
    let mut nan = vec![0, 0x7E];
    nan.resize(18, 0);
    refused(&gguf(&[("a", &[32], 2, nan)]), None, &["`a`", "finite scales"]);
    refused(&gguf(&[("a", &[32], 39, vec![255; 17])]), None, &["`a`", "finite scales"]);
    refused(&gguf(&[("a", &[256], 35, vec![0xFF; 66])]), None, &["`a`", "ternary codes"]);
    refused(&gguf(&[("a", &[64], 40, vec![0x80; 36])]), None, &["`a`", "without a sign"]);
    // Two tensors at one place: the second one's offset is the last number of the header before the padding.
    let position = good.windows(8).rposition(|w| w == 64u64.to_le_bytes()).unwrap();
    let mut overlap = good.clone();
    overlap[position..position + 8].copy_from_slice(&0u64.to_le_bytes());
    refused(&overlap, None, &["bytes of its own", "`a`", "`b`"]);
    overlap[position..position + 8].copy_from_slice(&32u64.to_le_bytes());
    refused(&overlap, None, &["`b`", "multiple of 64"]);
}

#[test]
fn the_table_of_formats_and_containers_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let place = |mark: &str| text.find(mark).unwrap_or_else(|| panic!("docs/formats.md has the mark `{mark}`"));
    let after = |mark: &str| place(mark) + mark.len();
    let (options, end) = (after("<!-- options -->\n"), place("<!-- end of options -->"));
    let between = &text[end..after("<!-- generated -->\n")];
    let table = walsh::format::options_table();
    let expected = format!("{}{table}{between}{}", &text[..options], walsh::io::table());
    if std::env::var_os("WALSH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
        return;
    }
    assert!(text == expected, "docs/formats.md: write it with `WALSH_WRITE_DOCS=1 cargo test --test files table`");
}

/// A plain tensor beside two quantized ones in a file, and whether it comes back as it was where it is not refused by name.
#[track_caller]
fn beside(container: Container, name: &str, dtype: Dtype, shape: &[usize]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let (input, path) = (dir.path().join("input"), dir.path().join("file"));
    let content = ItemContent::Plain(Dtype::F32);
    let mut items: Vec<Item> =
        ["l.weight", "q.weight"].map(|name| Item { name: name.into(), shape: vec![32, 256], content }).into();
    items.push(Item { name: name.into(), shape: shape.to_vec(), content: ItemContent::Plain(dtype) });
    // Also where they would do as an order of columns.
    let bytes: Vec<u8> = match dtype {
        Dtype::U32 => words(&(0..shape.iter().product::<usize>() as u32).rev().collect::<Vec<_>>()),
        _ => vec![0x40; dtype.bytes() as usize * shape.iter().product::<usize>()],
    };
    let x = hard(32, 256);
    let weights = floats(&x);
    Writer::write(&input, None, items, &Metadata::Texts(Vec::new()), |writer| {
        (0..2).try_for_each(|i| writer.plain(i, 0, &weights))?;
        writer.plain(2, 0, &bytes)
    })
    .map_err(|e| e.to_string())?;
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    let format = match container {
        Container::Walsh => "int8",
        Container::Bitsandbytes => "nf4",
        Container::GptOss => "mxfp4",
        _ => "int4",
    };
    let format = container.format(format).unwrap();
    let only = Selection { include: vec!["?.weight".into()], exclude: Vec::new() };
    if let Err(error) = quantize_file(None, &input, &path, format, container, &only, |_, _, _| Ok(())) {
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "{error}");
        return Err(error.to_string());
    }
    let archive = Archive::open(&path).unwrap_or_else(|e| panic!("{name} in {container}: {e}"));
    assert_eq!((archive.container(), archive.entries().len()), (Some(container), 3), "{name}");
    let plain = archive.entry(name).unwrap_or_else(|| panic!("{name} in {container} is lost"));
    assert_eq!((plain.dtype(), plain.shape()), (Some(dtype), shape), "{name} in {container}");
    assert_eq!(archive.plain(plain, 0, u64::MAX).unwrap(), bytes, "{name} in {container}");
    let expected = quantized(container, &format.to_string(), &x, &[32, 256]);
    for weight in ["l.weight", "q.weight"] {
        let tensor = archive.packed(archive.entry(weight).unwrap()).unwrap();
        assert_eq!((tensor.matrix.dequantize(), tensor.order), (expected.matrix.dequantize(), None), "{name}");
    }
    Ok(())
}

/// Whatever is written can be read, and what could not be is refused by name.
#[test]
fn what_quantize_writes_comes_back_whatever_its_plain_tensors_are_called() {
    let endings = [
        "",
        ".order",
        ".codes",
        ".side",
        ".absmax",
        ".nested_absmax",
        ".nested_quant_map",
        ".scales",
        ".scale",
        ".g_idx",
        "_blocks",
        "_scales",
        ".blocks",
        ".orders",
        ".bias",
    ];
    let bases = ["l.weight", "l", "p"];
    let kinds = [
        (Dtype::U32, &[256][..]),
        (Dtype::F32, &[256]),
        (Dtype::U8, &[32, 8]),
        (Dtype::F32, &[1]),
        (Dtype::F32, &[2, 3]),
    ];
    let (mut held, mut refused) = (0, 0);
    for (number, container) in Container::ALL.into_iter().enumerate() {
        for (i, (base, ending)) in bases.iter().flat_map(|b| endings.map(|e| (b, e))).enumerate() {
            let name = format!("{base}{ending}");
            if name == "l.weight" {
                continue;
            }
            // One of the kinds each, another one in another container; of orders, which only some kinds would do as, every one.
            let all = if ending == ".order" { 0..kinds.len() } else { (i + number) % 5..(i + number) % 5 + 1 };
            for (dtype, shape) in &kinds[all] {
                // GGUF has no tensors without a sign.
                if container == Container::Gguf && matches!(dtype, Dtype::U32 | Dtype::U8) {
                    continue;
                }
                match beside(container, &name, *dtype, shape) {
                    Ok(()) => held += 1,
                    Err(error) => {
                        assert!(error.contains(&format!("`{name}`")), "{name} in {container}: {error}");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(held > 200 && (20..100).contains(&refused), "{held} {refused}");
}

#[test]
fn only_names_that_a_reader_would_take_are_refused() {
    let all = [
        Container::Walsh,
        Container::Bitsandbytes,
        Container::GptOss,
        Container::Gptq,
        Container::GptqV2,
        Container::Awq,
    ];
    let layers = &all[3..];
    for (name, refusing) in [
        ("l.weight.order", &all[..1]),
        ("l.order", &[]),
        ("p.order", &[]),
        ("p.absmax", &all[1..2]),
        ("l.weight.nested_absmax", &all[1..2]),
        ("p.nested_quant_map", &all[1..2]),
        ("p.g_idx", layers),
        ("p.scales", &[]),
        ("p_blocks", &[]),
        ("l.weight.codes", &all[..1]),
        ("l.weight.absmax", &all[1..2]),
        ("l.weight_scales", &all[2..3]),
        ("l.scales", layers),
        ("l.g_idx", layers),
    ] {
        for container in all {
            let result = beside(container, name, Dtype::F32, &[256]);
            assert_eq!(result.is_err(), refusing.contains(&container), "{name} in {container}: {result:?}");
            if let Err(error) = result {
                let taken = error.contains("is taken") || error.contains("a part of a quantized tensor; leave it out");
                assert!(taken && error.contains(&format!("`{name}`")), "{error}");
            }
        }
    }
    // What marks another container, wherever it would be looked for, and what no header can hold.
    let dir = tempfile::tempdir().unwrap();
    let write = |container: Option<Container>, name: &str, dtype: Dtype, shape: &[usize], texts: usize| {
        let item = Item { name: name.into(), shape: shape.to_vec(), content: ItemContent::Plain(dtype) };
        let texts = Metadata::Texts((0..texts).map(|i| (i.to_string(), String::new())).collect());
        let path = dir.path().join("file");
        let bytes = vec![0; dtype.bytes() as usize * shape.iter().product::<usize>()];
        Writer::write(&path, container, vec![item], &texts, |writer| writer.plain(0, 0, &bytes))?;
        let archive = Archive::open(&path).unwrap();
        assert_eq!(archive.plain(archive.entry(name).unwrap(), 0, u64::MAX).unwrap(), bytes, "{name}");
        Ok::<_, walsh::Error>(())
    };
    let marks = [
        ("a.quant_map", Dtype::F32, &[16][..]),
        ("a_blocks", Dtype::U8, &[1, 1, 16]),
        ("a_scales", Dtype::U8, &[2, 3]),
        ("a.qweight", Dtype::I32, &[1]),
        ("a.qzeros", Dtype::I32, &[1]),
    ];
    for (name, dtype, shape) in marks {
        let error = write(None, name, dtype, shape, 0).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("a part of a quantized tensor"), "{error}");
        write(Some(Container::Walsh), name, dtype, shape, 0).unwrap();
    }
    // Two that are marks together only.
    let marks = [
        (Some(Container::Walsh), ["a.codes", "a.side"], [Dtype::U32; 2]),
        (Some(Container::Gptq), ["a.codes", "a.side"], [Dtype::U32; 2]),
        (None, ["a.codes", "a.side"], [Dtype::U32; 2]),
        (None, ["a_blocks", "a_scales"], [Dtype::F32, Dtype::U8]),
    ];
    for (container, names, dtypes) in marks {
        let item = |i: usize| Item { name: names[i].into(), shape: vec![4], content: ItemContent::Plain(dtypes[i]) };
        let pair = vec![item(0), item(1)];
        let error = Writer::write(&dir.path().join("pair"), container, pair, &Metadata::Texts(Vec::new()), |_| Ok(()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("`{}`", names[0])) && error.contains("a part of a quantized tensor"),
            "{error}"
        );
        for i in 0..2 {
            write(container, names[i], dtypes[i], &[4], 0).unwrap();
        }
    }
    for name in ["a.absmax", "a.g_idx"] {
        for container in [None, Some(Container::Bitsandbytes), Some(Container::Gptq)] {
            write(container, name, Dtype::I32, &[1], 0).unwrap();
        }
    }
    write(None, "a", Dtype::U8, &[1; 8], 999).unwrap();
    for (name, dimensions, texts, part) in
        [("__metadata__", 1, 0, "another name"), ("a", 9, 0, "at most 8 dimensions"), ("a", 1, 1000, "1000 strings")]
    {
        let error = write(None, name, Dtype::U8, &vec![1; dimensions], texts).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let format: Format = "mxfp4".parse().unwrap();
    assert!(Container::GptOss.supports(&format, &[1, 1, 1, 1, 1, 1, 32]).is_ok());
    assert!(Container::GptOss.supports(&format, &[1, 1, 1, 1, 1, 1, 1, 32]).unwrap_err().contains("7 dimensions"));
}

/// The types that walsh does not read have a place in the file, too.
#[test]
fn gguf_tensors_of_other_types_lie_within_the_file_and_by_themselves() {
    let kinds: [(u32, &str, u64, usize); 25] = [
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (29, "IQ1_M", 256, 56),
        (31, "Q4_0_4_4", 32, 18),
        (32, "Q4_0_4_8", 32, 18),
        (33, "Q4_0_8_8", 32, 18),
        (34, "TQ1_0", 256, 54),
        (36, "IQ4_NL_4_4", 32, 18),
        (41, "Q1_0", 128, 18),
    ];
    let opened = |bytes: &[u8]| Archive::from_bytes("test", bytes, None).map(|_| ()).unwrap_err().to_string();
    for (kind, name, values, bytes) in kinds {
        let good = gguf(&[("a", &[values, 8], kind, vec![0; 8 * bytes]), ("b", &[4], 0, vec![0; 16])]);
        let archive = Archive::from_bytes("test", &good, None).unwrap();
        let entry = archive.entry("a").unwrap();
        assert_eq!((entry.kind(), entry.bytes(), entry.is_read()), (name.to_owned(), Some(8 * bytes as u64), false));
        let error = opened(&gguf(&[("a", &[values, 8], kind, vec![0; bytes])]));
        assert!(error.contains("`a`") && error.contains(&format!("{} bytes at", 8 * bytes)), "{error}");
        let error = opened(&gguf(&[("a", &[values / 2, 8], kind, vec![0; 8 * bytes])]));
        assert!(error.contains("`a`") && error.contains(&format!("multiple of {values} for {name}")), "{error}");
        // At the place of the other one, and where no file ends.
        let place = ((8 * bytes) as u64).next_multiple_of(64);
        let position = good.windows(8).take(200).position(|w| w == place.to_le_bytes()).unwrap();
        for (offset, part) in [(0u64, "bytes of its own"), (1 << 40, "the file's end")] {
            let mut moved = gguf(&[("b", &[4], 0, vec![0; 16]), ("a", &[values, 8], kind, vec![0; 8 * bytes])]);
            let position = moved.windows(8).take(200).rposition(|w| w == 64u64.to_le_bytes()).unwrap();
            moved[position..position + 8].copy_from_slice(&offset.to_le_bytes());
            assert!(opened(&moved).contains(part), "{name}: {}", opened(&moved));
        }
        let mut moved = good.clone();
        moved[position..position + 8].copy_from_slice(&0u64.to_le_bytes());
        assert!(opened(&moved).contains("bytes of its own"), "{name}");
    }
    // Of two sizes.
    let unknown = gguf(&[("a", &[64], 42, Vec::new())]);
    let archive = Archive::from_bytes("test", &unknown, None).unwrap();
    assert_eq!(archive.entry("a").unwrap().bytes(), None);
}

#[test]
fn store_without_a_scale_of_the_tensor_is_a_format_of_its_own() {
    let format: Format = "nvfp4:ue4m3:half-zero".parse().unwrap();
    assert_eq!((format.store(), format.name(), format.bits_per_element(16, 64)), (Store::Ue4m3, "nvfp4", 4.5));
    assert!("mxfp4:ue4m3".parse::<Format>().is_err());
}

#[test]
fn of_the_configurations_beside_a_file_the_one_of_its_method_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let x = hard(8, 128);
    let read = |file: &str| {
        let archive = Archive::open(&path(file))?;
        archive.packed(archive.entry("a.weight").unwrap())
    };
    // Both models, each with its configuration, in one directory: symmetric GPTQ of groups of 32, AWQ of groups of 64.
    let gptq = quantized(Container::Gptq, "int4:g32", &x, &[8, 128]);
    let awq = quantized(Container::Awq, "int4:g64:asym", &x, &[8, 128]);
    write_to(&path("gptq"), Container::Gptq, "a.weight", &gptq).unwrap();
    write_to(&path("awq"), Container::Awq, "a.weight", &awq).unwrap();
    assert_eq!((read("gptq").unwrap().matrix.codes(), read("awq").unwrap().matrix), (gptq.matrix.codes(), awq.matrix));
    // Without its own, each is refused, and the other's file is named.
    std::fs::remove_file(path("quant_config.json")).unwrap();
    let error = read("awq").unwrap_err().to_string();
    assert!(error.contains("awq: expected the layout of gptq, the quant_method of quantize_config.json"), "{error}");
    read("gptq").unwrap();
    // One that names no method is taken before one that names another.
    std::fs::write(path("quant_config.json"), r#"{"w_bit": 4, "q_group_size": 64}"#).unwrap();
    read("awq").unwrap();
}

#[test]
fn an_older_configuration_counts_beside_a_readable_one_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let gptq = quantized(Container::Gptq, "int4:g32", &hard(8, 128), &[8, 128]);
    write_to(&path("gptq"), Container::Gptq, "a.weight", &gptq).unwrap();
    // As AutoGPTQ wrote it once: no method by name. That it counts shows in the grid, which without it would have zero points.
    std::fs::write(path("quantize_config.json"), r#"{"bits": 4, "group_size": 32, "sym": true}"#).unwrap();
    let format = || Archive::open(&path("gptq")).map(|archive| archive.entry("a.weight").unwrap().format().unwrap());
    let symmetric = format().unwrap();
    assert!(matches!(symmetric.grid(), Grid::Int { bits: 4, .. }), "{symmetric}");
    // What a model says of itself is no quantization, whatever its fields are called; what it says of quantization comes first if it names the method.
    for (model, zero_points) in [
        (r#"{"model_type": "gpt2", "vocab_size": 50257}"#, false),
        (r#"{"bits": "many", "group_size": "some"}"#, false),
        (r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false}}"#, true),
        (r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}"#, false),
        (r#"{"quantization_config": {"bits": 4, "group_size": 64}}"#, false),
    ] {
        std::fs::write(path("config.json"), model).unwrap();
        let format = format().unwrap();
        assert_eq!(matches!(format.grid(), Grid::ZeroPoint { .. }), zero_points, "{model}: {format}");
    }
    // Another method's is passed over as well, if there is one that counts.
    std::fs::write(path("config.json"), r#"{"quantization_config": {"quant_method": "hqq", "bits": 4}}"#).unwrap();
    assert_eq!(format().unwrap(), symmetric);
    // One that cannot be read might have been the one that counts: it is named, not passed over.
    let refused = |expected: &str| {
        let error = format().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: {expected}", path("config.json").display())), "{error}");
    };
    std::fs::write(path("config.json"), r#"{"quantization_config": {"#).unwrap();
    refused("expected a configuration as JSON, found EOF");
    std::fs::write(path("config.json"), " ".repeat((1 << 20) + 1)).unwrap();
    refused("expected a configuration of at most 1048576 bytes, found more");
    std::fs::remove_file(path("config.json")).unwrap();
    std::fs::create_dir(path("config.json")).unwrap();
    refused("cannot ");
    #[cfg(unix)]
    {
        std::fs::remove_dir(path("config.json")).unwrap();
        std::os::unix::fs::symlink(path("config.json"), path("config.json")).unwrap();
        refused("cannot open");
    }
}
