//! Exported models: what is read back computes the run's own logits to the bit, in both containers; what cannot be held, or is malformed, is
//! refused by name.

mod common;

use common::{every_tier, quantizer};
use std::path::Path;
use walsh::io::{Archive, Container, Metadata};
use walsh::nn::{Gpt, GptConfig, KvCache, Probe, TrainPass};
use walsh::optim::StepState;
use walsh::qat::Quantizer;
use walsh::train::export::{Exported, ModelInfo, export};
use walsh::train::{CharVocab, Precision};
use walsh::{Context, DType, Error, Tensor, Tier};

const BLOCK: usize = 8;
const VOCAB: &str = "\n abcdefghij\u{e9}\u{4e16}";

fn config(embd: usize, bias: bool, quantizer: Option<Quantizer>) -> GptConfig {
    let vocab = VOCAB.chars().count();
    GptConfig { layers: 1, heads: 2, embd, block: BLOCK, vocab, dropout: 0.1, bias, quantizer }
}

/// A model whose norms and biases are not those of a fresh one.
fn model(context: &Context, config: GptConfig, dtype: DType) -> Gpt {
    let gpt = Gpt::new(context, config, 7, dtype).unwrap();
    let mut random = common::Gen::new(5);
    for (info, tensor) in gpt.parameters().iter().filter(|(info, _)| info.shape.len() == 1) {
        let (centre, spread) = match info.name.rsplit('.').next() {
            Some("weight") => (1.0, 0.2),
            Some("weight_scale" | "input_scale") => (0.02, 0.001),
            _ => (0.0, 0.2),
        };
        let values: Vec<f32> = random.normals(tensor.len()).iter().map(|v| centre + spread * v).collect();
        tensor.write(bytemuck::cast_slice(&values)).unwrap();
    }
    gpt
}

fn info(gpt: &Gpt) -> ModelInfo {
    let precision = if gpt.dtype() == DType::F16 { Precision::F16 } else { Precision::F32 };
    ModelInfo { gpt: gpt.config().clone(), vocab: CharVocab::of(VOCAB), precision, step: 12, val_loss: Some(1.25) }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Logits of whole sequences, with a graph and without, and token by token.
fn logits(gpt: &Gpt) -> [Vec<u32>; 3] {
    let context = gpt.parameters().context();
    let vocab = gpt.config().vocab as u32;
    let tokens: Vec<u32> = (0..4 * BLOCK as u32).map(|i| (i * i + 3) % vocab).collect();
    let batch = Tensor::from_u32(context, &tokens, &[4, BLOCK]).unwrap();
    // Some methods ask for random numbers and for so many tokens where a pass may be differentiated; forward, it rounds to nearest all the same.
    let state = Tensor::zeros(context, &[16], DType::U32).unwrap();
    let rounding = Some(TrainPass { state: state.buffer(), seed: 1, micro: 0 });
    let graph = gpt.probed_logits(&batch, None, Probe { rounding, ..Probe::default() }).unwrap().to_vec().unwrap();
    let plain = context.no_grad(|| gpt.logits(&batch, None)).unwrap().to_vec().unwrap();
    let mut cache = KvCache::new(gpt).unwrap();
    let mut decoded = Vec::new();
    for token in &tokens[..3] {
        decoded.extend(gpt.decode(*token, &mut cache).unwrap().to_vec().unwrap());
    }
    assert!(graph.iter().chain(&decoded).all(|v| v.is_finite()));
    [bits(&graph), bits(&plain), bits(&decoded)]
}

fn write(gpt: &Gpt, path: &Path, container: Container) -> walsh::Result<()> {
    export(gpt, &info(gpt), path, container, |_, _, _| Ok(())).map(|_| ())
}

fn read(context: &Context, path: &Path, dtype: DType) -> walsh::Result<Gpt> {
    Exported::open(path)?.expect("a model").load(context, dtype)
}

/// Method, weights, activations, rotation, width; and whether GGUF holds it.
type Case = (&'static str, &'static str, Option<&'static str>, Option<u32>, usize, bool);

const CASES: [Case; 19] = [
    ("quest", "int4:row:f32:centred:mse", Some("int4:row:f32:centred:mse"), Some(32), 64, false),
    ("ste", "int4:g32", Some("mxfp4"), None, 32, true),
    ("quest", "int3:row:f32:centred:mse", None, Some(64), 64, false),
    ("quest", "binary:mse", Some("binary:mse"), None, 32, false),
    ("ste", "nvfp4", Some("nvfp4"), None, 64, true),
    ("clipped:1.5", "int8:g32", None, None, 32, true),
    ("ste", "mxfp4:roundup", None, None, 32, true),
    ("ste", "nvfp4:ue4m3", None, None, 64, true),
    ("ste", "int2:g256", None, None, 256, true),
    ("ste", "nf4:dq", None, Some(32), 64, false),
    ("lsq:plus", "int4:tensor:f32:full", Some("int4:tensor:f32:full"), Some(32), 32, false),
    ("ste", "int3:asym", None, None, 96, false),
    ("ptq", "int4:g32:full:signed:exact:half-up", Some("int8:row"), None, 64, true),
    ("onebit", "binary:tensor", None, None, 32, false),
    ("bitnet", "ternary", Some("int8:row:f32"), None, 64, false),
    ("quartet", "mxfp4:mse", Some("mxfp4:mse"), Some(32), 32, false),
    ("lsq", "int3:tensor:f32:centred", None, None, 32, false),
    ("learned", "int8:tensor:f32:full", Some("int8:tensor:f32:full"), None, 32, false),
    ("bwn", "binary", None, None, 32, false),
];

#[test]
fn what_is_read_back_gives_the_same_logits_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    for context in every_tier() {
        // Of the lower tiers, and in f16, some: shaders differ by format, and take their time to compile.
        let best = context.tier() > Tier::Baseline;
        let cases = if best { &CASES[..] } else { &CASES[..2] };
        for (number, (method, weights, activations, hadamard, embd, gguf)) in cases.iter().copied().enumerate() {
            let quantizer = quantizer(method, weights, activations, hadamard);
            let dtypes = common::dtypes(&context);
            for dtype in if number % 4 == 1 { dtypes } else { vec![DType::F32] } {
                let gpt = model(&context, config(embd, number % 2 == 1, Some(quantizer)), dtype);
                let expected = logits(&gpt);
                assert_eq!(expected[0], expected[1]);
                for container in [Container::Walsh, Container::Gguf] {
                    let path = dir.path().join(format!("{number}.{container}"));
                    let what = format!("{quantizer}, {dtype}, {container}, {}", context.tier());
                    let written = write(&gpt, &path, container);
                    if container == Container::Gguf && !gguf {
                        let error = written.unwrap_err().to_string();
                        assert!(error.starts_with("--container: expected walsh"), "{what}: {error}");
                        assert!(!path.exists());
                        continue;
                    }
                    written.unwrap();
                    let exported = Exported::open(&path).unwrap().unwrap();
                    assert_eq!(*exported.info(), info(&gpt));
                    let again = exported.load(&context, dtype).unwrap();
                    assert!(logits(&again) == expected, "{what}");
                    // Reading and writing once more changes nothing.
                    let copy = dir.path().join("copy");
                    write(&again, &copy, container).unwrap();
                    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&copy).unwrap(), "{what}");
                }
            }
        }
    }
}

#[test]
fn weights_whose_scales_saturate_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    // Of 1e5 an int4 scale is 14286; rotated, a group of equal values is one of 32^(1/2) times as much, whose scale is beyond f16.
    for (weights, hadamard, value, refused) in [
        ("int4:g32", None, 1e5, None),
        ("int4:g32", Some(32), 1e5, Some("at most 65504 (f16)")),
        ("int4:g32", None, 1e6, Some("at most 65504 (f16)")),
        ("int4:g32:f32", None, 1e6, None),
        ("nvfp4:ue4m3", None, 1e4, Some("at most 448 (ue4m3)")),
        ("nvfp4", None, 1e4, None),
    ] {
        let gpt = model(&context, config(64, false, Some(quantizer("ste", weights, None, hadamard))), DType::F32);
        let name = "transformer.h.0.mlp.c_fc.weight";
        let (_, tensor) = gpt.parameters().iter().find(|(info, _)| info.name == name).unwrap();
        let mut values = tensor.to_vec().unwrap();
        // The second group of 32 of the third row.
        values[2 * 64 + 32..3 * 64].fill(value);
        tensor.write(bytemuck::cast_slice(&values)).unwrap();
        let path = dir.path().join("model");
        let written = write(&gpt, &path, Container::Walsh);
        match refused {
            None => written.unwrap(),
            Some(stored) => {
                let error = written.unwrap_err();
                assert!(matches!(error, Error::Invalid { .. }), "{error}");
                let group = if weights.starts_with("nvfp4") { 2 } else { 1 };
                let expected = format!("export: expected scales of {stored} in tensor `{name}` for {weights}, found ");
                let error = error.to_string();
                assert!(error.starts_with(&expected), "{error}");
                assert!(error.contains(&format!(" in row 2, group {group}; ")), "{error}");
                assert!(!path.exists());
            }
        }
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn a_model_in_full_precision_is_a_file_of_floats() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    for bias in [false, true] {
        let gpt = model(&context, config(32, bias, None), DType::F32);
        for container in [Container::Walsh, Container::Gguf] {
            let path = dir.path().join("file");
            write(&gpt, &path, container).unwrap();
            assert_eq!(logits(&read(&context, &path, DType::F32).unwrap()), logits(&gpt));
        }
    }
}

#[test]
fn gguf_has_what_gpt2_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    let path = dir.path().join("model.gguf");
    for bias in [false, true] {
        let gpt = model(&context, config(64, bias, Some(quantizer("ste", "int4:g32", None, None))), DType::F32);
        write(&gpt, &path, Container::Gguf).unwrap();
        let archive = Archive::open(&path).unwrap();
        let mut expected = vec![("token_embd.weight".to_owned(), vec![14, 64], "F32".to_owned())];
        let mut add =
            |name: String, shape: &[usize], kind: &str| expected.push((name, shape.to_vec(), kind.to_owned()));
        add("position_embd.weight".into(), &[BLOCK, 64], "F32");
        let q4 = "int4:g32:full:signed:exact:half-up";
        for n in 0..1 {
            for norm in ["attn_norm", "ffn_norm"] {
                add(format!("blk.{n}.{norm}.weight"), &[64], "F32");
                add(format!("blk.{n}.{norm}.bias"), &[64], "F32");
            }
            for (layer, rows, cols) in
                [("attn_qkv", 192, 64), ("attn_output", 64, 64), ("ffn_up", 256, 64), ("ffn_down", 64, 256)]
            {
                add(format!("blk.{n}.{layer}.weight"), &[rows, cols], q4);
                add(format!("blk.{n}.{layer}.bias"), &[rows], "F32");
            }
        }
        add("output_norm.weight".into(), &[64], "F32");
        add("output_norm.bias".into(), &[64], "F32");
        expected.sort();
        let entries = archive.entries().iter();
        let found: Vec<_> = entries.map(|e| (e.name().to_owned(), e.shape().to_vec(), e.kind())).collect();
        assert_eq!(found, expected);
        for entry in archive.entries().iter().filter(|e| e.name().ends_with(".bias")) {
            let zeros = archive.plain(entry, 0, u64::MAX).unwrap().iter().all(|byte| *byte == 0);
            assert_eq!(zeros, !bias, "{}", entry.name());
        }
        let Metadata::Gguf(values) = archive.metadata() else { panic!("GGUF's metadata") };
        let value = |key: &str| values.iter().find(|v| v.key == key).unwrap_or_else(|| panic!("{key}"));
        for (key, number) in [
            ("gpt2.context_length", BLOCK as u32),
            ("gpt2.embedding_length", 64),
            ("gpt2.feed_forward_length", 256),
            ("gpt2.block_count", 1),
            ("gpt2.attention.head_count", 2),
        ] {
            assert_eq!(value(key).as_u32(), Some(number), "{key}");
        }
        assert_eq!(value("general.architecture").as_text(), Some("gpt2"));
        assert_eq!(value("gpt2.attention.layer_norm_epsilon").bytes, 1e-5f32.to_le_bytes());
        assert_eq!(value("tokenizer.ggml.model").as_text(), Some("gpt2"));
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type"] {
            assert_eq!(value(key).describe(), "array of 14");
        }
    }
}

#[test]
fn weights_take_the_memory_of_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    for context in every_tier() {
        let path = dir.path().join("file");
        let config = config(256, false, Some(quantizer("quest", "int2:row:f32:centred:mse", None, Some(128))));
        let dense = config.parameters() * 4;
        write(&model(&context, config, DType::F32), &path, Container::Walsh).unwrap();
        // Two bits of 32, and what is dense: about 1 %.
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < dense / 10, "{size} bytes of {dense}");
        context.trim();
        let before = context.held_bytes();
        let gpt = read(&context, &path, DType::F32).unwrap();
        context.trim();
        // Dense parameters have room for gradients, and pipelines' parameter blocks are held, too.
        let held = context.held_bytes() - before;
        assert!(held < dense / 6, "{held} bytes of {dense}");
        drop(gpt);
    }
}

#[test]
fn a_model_of_codes_learns_nothing_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    let path = dir.path().join("file");
    for method in ["quest", "ptq"] {
        let gpt = model(
            &context,
            config(32, true, Some(quantizer(method, "int4:row:f32:centred:mse", None, Some(32)))),
            DType::F32,
        );
        write(&gpt, &path, Container::Walsh).unwrap();
        let gpt = read(&context, &path, DType::F32).unwrap();
        let tokens = Tensor::from_u32(&context, &[1, 2, 3, 4], &[1, 4]).unwrap();
        let targets = Tensor::from_u32(&context, &[2, 3, 4, 5], &[1, 4]).unwrap();
        let state = Tensor::zeros(&context, &[std::mem::size_of::<StepState>() / 4], DType::U32).unwrap();
        let pass = walsh::nn::TrainPass { state: state.buffer(), seed: 1, micro: 0 };
        let loss = gpt.logits(&tokens, Some(pass)).unwrap().cross_entropy(&targets, Default::default()).unwrap();
        loss.backward().unwrap();
        for (index, (info, _)) in gpt.parameters().iter().enumerate() {
            assert_eq!(gpt.parameters().gradient(index).is_some(), !gpt.is_quantized(index), "{}", info.name);
        }
    }
}

#[test]
fn files_that_are_not_the_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    let path = dir.path().join("model");
    let config = GptConfig { layers: 2, ..config(64, false, Some(quantizer("ste", "int4:g32", None, None))) };
    let gpt = model(&context, config, DType::F32);
    for container in [Container::Walsh, Container::Gguf] {
        write(&gpt, &path, container).unwrap();
        let whole = std::fs::read(&path).unwrap();
        // A change of the file's text of the same length, and what is said of it.
        let check = |from: &str, to: &str, parts: &[&str]| {
            let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("{from}"));
            assert_eq!(from.len(), to.len());
            let mut changed = whole.clone();
            changed[at..at + to.len()].copy_from_slice(to.as_bytes());
            let error = Exported::from_bytes("model", &changed)
                .and_then(|exported| exported.expect("a model").load(&context, DType::F32))
                .map(|_| ())
                .unwrap_err();
            assert!(matches!(error, Error::File { .. }) && !error.is_failure(), "{error}");
            let message = error.to_string();
            assert!(message.starts_with("model: expected"), "{message}");
            parts.iter().for_each(|part| assert!(message.contains(part), "{container}: {message}"));
        };
        // JSON within JSON has its quotes escaped.
        let quote = if container == Container::Gguf { "\"" } else { "\\\"" };
        let field = |name: &str, value: &str| format!("{quote}{name}{quote}:{value}");
        let change =
            |name: &str, from: &str, to: &str, parts: &[&str]| check(&field(name, from), &field(name, to), parts);
        change("version", "1", "2", &["version 1 of walsh's exported models, found 2"]);
        change("layers", "2", "9", &["tensors of a model of", "elements"]);
        change("layers", "2", "1", &["a parameter of the model", "tensor `"]);
        change("heads", "2", "5", &["settings that make sense", "a divisor of the width 64"]);
        change("embd", "64", "32", &["in int4:g32 as tensor `transformer.h.0.attn.c_attn.weight`"]);
        change("vocab", "14", "13", &["settings that make sense", "vocabulary: expected 13 characters, found 14"]);
        change("vocab", "14", "x4", &["walsh.model"]);
        change("dropout", "0.1", "7.1", &["dropout"]);
        if container == Container::Gguf {
            // The other names are longer.
            check(
                "blk.1.attn_qkv.weight",
                "blk.1.attn_qqq.weight",
                &["a parameter of the model as tensor `blk.1.attn_qqq"],
            );
            check(
                "blk.1.attn_qkv.weight",
                "blk.7.attn_qkv.weight",
                &["a parameter of the model as tensor `transformer.h.7"],
            );
            check("int4:g32", "int8:g32", &["int8:g32 in tensor `blk.0.attn_output.weight`"]);
            let archive = Archive::from_bytes("model", &whole, None).unwrap();
            assert!(archive.entry("blk.1.ffn_up.bias").is_some());
        } else {
            let other = String::from_utf8_lossy(&whole).find("walsh.model").map(|at| {
                let mut other = whole.clone();
                other[at] = b'W';
                other
            });
            assert!(Exported::from_bytes("model", &other.unwrap()).unwrap().is_none(), "tensors of another kind");
        }
    }
}

#[test]
fn other_files_and_models_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let context = every_tier().remove(0);
    let path = dir.path().join("model");
    let fails = |gpt: &Gpt, container: Container, parts: &[&str]| {
        let message = write(gpt, &path, container).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "{message}"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    let with = |quantizer| model(&context, config(32, false, Some(quantizer)), DType::F32);
    let rotated = with(quantizer("ste", "int4:g32", None, Some(32)));
    fails(&rotated, Container::Gguf, &["--container: expected walsh for rotated weights", "rotated by 32"]);
    let centred = with(quantizer("quest", "int4:row:f32:centred:mse", None, None));
    fails(&centred, Container::Gguf, &["expected walsh", "int4:row:f32:centred:mse", "half-integers"]);
    let rows = with(quantizer("ste", "int4:row:f32", None, None));
    fails(&rows, Container::Gguf, &["expected walsh", "f16 scale per group of 32"]);
    let wide = with(quantizer("ste", "int2:g256", None, None));
    fails(&wide, Container::Gguf, &["expected walsh", "rows of 32 are no multiple of TQ2_0's block of 256"]);
    for container in Container::ALL.into_iter().filter(|c| ![Container::Walsh, Container::Gguf].contains(c)) {
        fails(&rows, container, &["--container: expected walsh or gguf, which hold a whole model", container.name()]);
    }
    // A weight that is no number any more.
    let (number, tensor) = rows.parameters().iter().find(|(info, _)| info.name.ends_with("c_fc.weight")).unwrap();
    tensor.write(bytemuck::cast_slice(&vec![f32::NAN; tensor.len()])).unwrap();
    fails(&rows, Container::Walsh, &["finite scales", &number.name]);
    let other = ModelInfo { step: 1, ..info(&centred) };
    assert!(export(&rows, &other, &path, Container::Walsh, |_, _, _| Ok(())).is_err());
}
