//! `walsh quantize`, `dequantize` and `inspect`: files in and out, and what they say to bad input.
#![cfg(feature = "cli")]

mod common;

use common::command::{Place, code, refused, walsh};
#[cfg(unix)]
use common::command::{interrupt, wait_for};
use serde_json::Value;
use std::path::Path;
use walsh::format::Format;
use walsh::io::convert::{Selection, dequantize_file, quantize_file};
use walsh::io::{Archive, Container, Dtype, Item, ItemContent, Metadata, Writer};

#[track_caller]
fn done(dir: &Path, args: &[&str]) -> String {
    let output = walsh(dir, args).output().unwrap();
    let message = code(&output, 0);
    String::from_utf8(output.stdout).unwrap() + &message
}

/// Values that f16 and bf16 hold too.
fn weights(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 29 + i / 7) % 61) as f32 / 32.0 - 1.0).collect()
}

/// A model of matrices in three types, a vector, counters and a batch of matrices.
fn model(dir: &Path) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let f32s = |x: &[f32]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let f16s = |x: &[f32]| x.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let bf16s = |x: &[f32]| x.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let tensors = vec![
        ("embedding.weight".to_owned(), Dtype::F32, vec![16, 64], f32s(&weights(1024))),
        ("h.0.attn.weight".to_owned(), Dtype::BF16, vec![32, 64], bf16s(&weights(2048))),
        ("h.0.mlp.weight".to_owned(), Dtype::F16, vec![32, 64], f16s(&weights(2048))),
        ("h.0.experts.weight".to_owned(), Dtype::F32, vec![2, 8, 64], f32s(&weights(1024))),
        ("h.0.norm".to_owned(), Dtype::F16, vec![64], f16s(&weights(64))),
        ("steps".to_owned(), Dtype::I64, vec![1], 7i64.to_le_bytes().to_vec()),
    ];
    let items = tensors.iter().map(|(name, dtype, shape, _)| Item {
        name: name.clone(),
        shape: shape.clone(),
        content: ItemContent::Plain(*dtype),
    });
    let metadata = Metadata::Texts(vec![("origin".into(), "a test".into())]);
    Writer::write(&dir.join("model.safetensors"), None, items.collect(), &metadata, |writer| {
        tensors.iter().enumerate().try_for_each(|(i, (.., bytes))| writer.plain(i, 0, bytes))
    })
    .unwrap();
    tensors
}

#[test]
fn quantize_inspect_and_dequantize_in_every_container() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = model(dir.path());
    let packed = 3;
    for (container, name) in [
        (Container::Walsh, "int4:g32:centred"),
        (Container::Bitsandbytes, "nf4:dq"),
        (Container::GptOss, "mxfp4"),
        (Container::Gptq, "int4:g64:asym"),
        (Container::GptqV2, "int8:row"),
        (Container::Awq, "int4:g32:asym"),
        (Container::Gguf, "int4"),
        (Container::Gguf, "nvfp4"),
    ] {
        let case = dir.path().join(format!("{container} {}", name.replace(':', " ")));
        std::fs::create_dir(&case).unwrap();
        let args = ["quantize", "../model.safetensors", "out", "--format", name, "--container", container.name()];
        let said = done(&case, &args);
        assert!(said.contains(&format!("{packed} tensors")) && said.contains("bits per weight"), "{said}");
        let value: Value = serde_json::from_str(&done(&case, &["inspect", "out", "--json"])).unwrap();
        assert_eq!(value["container"], container.name());
        let list = value["tensors"].as_array().unwrap();
        assert_eq!(list.len(), tensors.len());
        assert_eq!(list.iter().filter(|t| !t["format"].is_null()).count(), packed);
        let text = done(&case, &["inspect", "out"]);
        assert!(text.contains("h.0.mlp.weight") && text.contains("[32, 64]"), "{text}");
        done(&case, &["dequantize", "out", "back.safetensors"]);
        let back = Archive::open(&case.join("back.safetensors")).unwrap();
        assert_eq!((back.container(), back.entries().len()), (None, tensors.len()));
        let quantized = Archive::open(&case.join("out")).unwrap();
        for (name, dtype, shape, bytes) in &tensors {
            let entry = back.entry(name).unwrap();
            assert_eq!(entry.shape(), shape);
            let got = back.plain(entry, 0, u64::MAX).unwrap();
            let source = quantized.entry(name).unwrap();
            if source.format().is_none() {
                assert_eq!((entry.dtype(), &got), (Some(*dtype), bytes), "{name} in {container}");
                continue;
            }
            assert_eq!(entry.dtype(), Some(Dtype::F32));
            let tensor = quantized.packed(source).unwrap();
            let values = walsh::io::floats(Dtype::F32, &got).unwrap();
            let original = walsh::io::floats(*dtype, bytes).unwrap();
            for ((value, exact), x) in values.iter().zip(tensor.matrix.dequantize()).zip(original) {
                // The device rounds once, and once more where scales are double-quantized, of terms below 4.
                assert!(
                    (f64::from(*value) - exact).abs() <= 4.0 * 2f64.powi(-22),
                    "{name} in {container}: {value} {exact}"
                );
                // The coarsest step of these formats: NF4's widest gap, half of it, and E2M1's saturation.
                assert!((value - x).abs() <= 0.26, "{name} in {container}: {value} for {x}");
            }
        }
    }
    // Without its configuration the version of GPTQ is a guess.
    std::fs::create_dir(dir.path().join("alone")).unwrap();
    std::fs::copy(dir.path().join("gptq-v2 int8 row/out"), dir.path().join("alone/out")).unwrap();
    for (place, guessed) in [("gptq-v2 int8 row", false), ("alone", true)] {
        for args in [&["inspect", "out"][..], &["dequantize", "out", "back.safetensors"]] {
            assert_eq!(
                done(&dir.path().join(place), args).contains("read as version 1 of GPTQ"),
                guessed,
                "{place} {args:?}"
            );
        }
    }
    // The extension says which container, unless a flag does.
    for (flags, container) in [(&[][..], "gguf"), (&["--container", "walsh"], "walsh")] {
        let args = ["quantize", "model.safetensors", "named.GGUF", "--format", "int4"];
        assert!(done(dir.path(), &[&args[..], flags].concat()).contains(&format!(" in {container}, ")));
    }
    let gptq = std::fs::read_to_string(dir.path().join("gptq int4 g64 asym/quantize_config.json")).unwrap();
    let config: Value = serde_json::from_str(&gptq).unwrap();
    assert_eq!(
        (&config["bits"], &config["group_size"], &config["checkpoint_format"]),
        (&4.into(), &64.into(), &"gptq".into())
    );
    assert!(dir.path().join("awq int4 g32 asym/quant_config.json").exists());
    let archive = Archive::open(&dir.path().join("walsh int4 g32 centred/out")).unwrap();
    let Metadata::Texts(texts) = archive.metadata() else { panic!("safetensors") };
    assert!(texts.contains(&("origin".into(), "a test".into())), "{texts:?}");
}

#[test]
fn which_tensors_are_quantized() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let formats = |flags: &[&str]| -> Vec<String> {
        let args = [&["quantize", "model.safetensors", "out", "--format", "int4:g64"], flags].concat();
        done(dir.path(), &args);
        let archive = Archive::open(&dir.path().join("out")).unwrap();
        archive.entries().iter().filter(|e| e.format().is_some()).map(|e| e.name().to_owned()).collect()
    };
    assert_eq!(formats(&[]), ["embedding.weight", "h.0.attn.weight", "h.0.mlp.weight"]);
    assert_eq!(formats(&["--exclude", "embedding*"]), ["h.0.attn.weight", "h.0.mlp.weight"]);
    assert_eq!(
        formats(&["--include", "h.?.*.weight", "--exclude", "*.mlp.*"]),
        ["h.0.attn.weight", "h.0.experts.weight"]
    );
    let archive = Archive::open(&dir.path().join("out")).unwrap();
    let entry = archive.entry("h.0.experts.weight").unwrap();
    assert_eq!((entry.shape(), entry.format()), (&[2, 8, 64][..], Some("int4:g64".parse::<Format>().unwrap())));
}

#[test]
fn bad_input_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    let quantize = |format: &str, container: &str, more: &[&str], parts: &[&str]| {
        let args = ["quantize", "model.safetensors", "out", "--format", format, "--container", container];
        refused(dir, &[&args[..], more].concat(), parts);
    };
    quantize("int9", "walsh", &[], &["--format", "int9", "expected one of int2"]);
    quantize("int4", "zip", &[], &["--container", "one of walsh, bitsandbytes", "`zip`"]);
    quantize(
        "int4:centred",
        "gguf",
        &[],
        &["model.safetensors", "embedding.weight", "half-integers", "which walsh can hold"],
    );
    quantize("int4", "awq", &["--include", "h.0.experts*"], &["h.0.experts.weight", "two dimensions"]);
    quantize("int4", "walsh", &["--include", "nothing"], &["model.safetensors", "--include"]);
    quantize("nf4", "gptq", &[], &["embedding.weight", "integers", "bitsandbytes"]);
    refused(dir, &["quantize", "absent", "out", "--format", "int4"], &["absent"]);
    // A pattern that takes nothing, whatever the others take; also where no tensor would be left, the reason is the pattern.
    for (flag, pattern) in
        [("--exclude", "*embd*"), ("--exclude", "Embedding*"), ("--include", "h.1.*"), ("--include", "")]
    {
        let others = ["--include", "*", "--exclude", "*embedding*", flag, pattern];
        for more in [&others[..], &others[4..]] {
            let parts = [&format!("{flag}: expected "), "model.safetensors", &format!("`{pattern}`")];
            quantize("int4", "walsh", more, &parts);
        }
    }
    refused(dir, &["quantize", "model.safetensors", "model.safetensors", "--format", "int4"], &["OUTPUT"]);
    refused(dir, &["quantize", "model.safetensors", "no/out", "--format", "int4"], &["no/out"]);
    refused(dir, &["quantize", ".", "out", "--format", "int4"], &["directory"]);
    // Nothing is left of what would be quantized.
    for more in [&["--exclude", "*"][..], &["--include", "*", "--exclude", "*"]] {
        let parts: &[&str] = if more.len() == 2 {
            &["model.safetensors: expected a tensor", "none that --exclude matches", "found 3 that --exclude matches"]
        } else {
            &["--include: expected", "which --exclude matches too"]
        };
        quantize("int4", "walsh", more, parts);
    }
    refused(dir, &["dequantize", "absent", "out"], &["absent"]);
    refused(dir, &["inspect", "absent"], &["absent"]);
    // A truncated file, a value that is not finite, a file that is quantized already.
    let whole = std::fs::read(dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("short"), &whole[..whole.len() - 1]).unwrap();
    for args in
        [&["quantize", "short", "out", "--format", "int4"][..], &["dequantize", "short", "out"], &["inspect", "short"]]
    {
        refused(dir, args, &["short: expected", "the file's end"]);
    }
    let mut nan = whole;
    // The last of the tensors is a vector of 128 bytes, before it lies h.0.mlp.weight.
    let position = nan.len() - 128 - 2;
    nan[position..position + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(dir.join("nan"), nan).unwrap();
    refused(
        dir,
        &["quantize", "nan", "out", "--format", "int4"],
        &["nan: expected finite values", "`h.0.mlp.weight`", "NaN at element 2047"],
    );
    // Values whose scales are beyond f16, in the last group: by name, and what would do.
    let large: Vec<u8> = (0..128u16).flat_map(|i| (if i < 64 { 1.0 } else { 1e6f32 }).to_le_bytes()).collect();
    let items = vec![Item { name: "l.weight".into(), shape: vec![1, 128], content: ItemContent::Plain(Dtype::F32) }];
    let texts = Metadata::Texts(Vec::new());
    Writer::write(&dir.join("large"), None, items, &texts, |writer| writer.plain(0, 0, &large)).unwrap();
    let found = "found 1.42857e5 in row 0, group 1; int4:g64:f32 in the container walsh has scales for it";
    for flags in [&["int4:g64"][..], &["int4:g64", "--include", "*"]] {
        let args = [&["quantize", "large", "out", "--format"], flags].concat();
        refused(
            dir,
            &args,
            &["large: expected scales of at most 65504 (f16) in tensor `l.weight` for int4:g64", found],
        );
    }
    let args = ["quantize", "large", "out", "--container", "gguf", "--format", "int4"];
    refused(dir, &args, &["`l.weight` for int4:g32:full", "in row 0, group 2; int4:g32:f32"]);
    done(dir, &["quantize", "large", "large-packed", "--format", "int4:g64:f32"]);
    done(dir, &["quantize", "model.safetensors", "packed", "--format", "int4"]);
    refused(dir, &["quantize", "packed", "out", "--format", "int4"], &["packed", "not quantized", "walsh"]);
    // A file of tensors is no model to sample from.
    let gguf = ["quantize", "model.safetensors", "packed.gguf", "--format", "int4", "--container", "gguf"];
    done(dir, &gguf);
    let parts = ["packed.gguf: expected a model", "metadata key walsh.model", "found a GGUF file without it"];
    refused(dir, &["sample", "packed.gguf"], &parts);
    // A configuration of another model is not written over.
    std::fs::write(dir.join("quantize_config.json"), "{}").unwrap();
    quantize("int4", "gptq", &["--exclude", "*embedding*"], &["quantize_config.json", "another model"]);
}

/// A pattern that is given is to quantize something.
#[test]
fn an_include_that_quantizes_nothing_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    let all =
        ["quantize", "model.safetensors", "out", "--format", "int4:g64", "--include", "h.0.mlp.weight", "--include"];
    for (more, parts) in [
        (&["*.norm"][..], &["`*.norm`, which matches `h.0.norm` of the shape [64], in model.safetensors"][..]),
        (&["steps"], &["`steps`, which matches `steps` of I64", "f32, f16 or bf16 with two dimensions or more"]),
        (&["h.0.*n*m*", "--exclude", "h.0.e*"], &["matches `h.0.norm` of the shape [64], in"]),
        (&["h.0.e*", "--exclude", "h.0.ex*"], &["`h.0.experts.weight` which --exclude matches too"]),
        (&["?????*s", "--include", "steps"], &["`?????*s`, which matches none"]),
        (&["*[s-]*", "--include", "*"], &["`*[s-]*`, which matches none"]),
    ] {
        refused(dir, &[&all[..], more].concat(), &[&["--include: expected a pattern"], parts].concat());
    }
    let said = done(dir, &[&all[..], &["h.0*", "--exclude", "*.norm"]].concat());
    assert!(said.contains("3 tensors"), "{said}");
}

/// Scales of f16 end below, too: at half of 2^-24 what is left of a tensor is nothing.
#[test]
fn a_tensor_whose_scales_would_all_be_zeros_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, x: &[f32]| {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let item = Item { name: "l.weight".into(), shape: vec![4, 128], content: ItemContent::Plain(Dtype::F32) };
        let texts = Metadata::Texts(Vec::new());
        Writer::write(&dir.join(name), None, vec![item], &texts, |writer| writer.plain(0, 0, &bytes)).unwrap();
    };
    let tiny: Vec<f32> = weights(512).iter().map(|v| v * 1e-9).collect();
    write("tiny", &tiny);
    for (format, container, other) in [
        ("int4", "walsh", "int4:f32"),
        ("int4:asym", "walsh", "int4:f32:asym"),
        ("int8:row", "walsh", "int8:row:f32"),
        ("nvfp4:ue4m3", "walsh", "nvfp4"),
        ("int4", "gguf", "int4:g32:f32:full:signed:half-up"),
    ] {
        let found =
            format!("found none above 1e-9, all of which would become zeros; {other} in the container walsh has");
        let args = ["quantize", "tiny", "out", "--format", format, "--container", container];
        refused(dir, &args, &["tiny: expected values whose scales ", "`l.weight` for ", &found]);
    }
    let left = |input: &str, format: &str| {
        done(dir, &["quantize", input, "packed", "--format", format]);
        done(dir, &["dequantize", "packed", "back"]);
        let archive = Archive::open(&dir.join("back")).unwrap();
        let bytes = archive.plain(archive.entry("l.weight").unwrap(), 0, u64::MAX).unwrap();
        walsh::io::floats(Dtype::F32, &bytes).unwrap().iter().filter(|v| **v != 0.0).count()
    };
    for format in ["int4:f32", "nvfp4", "mxfp4"] {
        assert!(left("tiny", format) > 400, "{format}");
    }
    // Zeros are zeros, and so is a group of nothing much beside one of something.
    write("zeros", &[0.0; 512]);
    assert_eq!(left("zeros", "int4"), 0);
    let mut some = tiny;
    some[..128].copy_from_slice(&weights(128));
    write("some", &some);
    assert!((100..=128).contains(&left("some", "int4")));
}

/// What a run has written, and the configuration that says how a file is read, are not for these commands to replace.
#[test]
fn checkpoints_settings_and_configurations_are_not_written_over() {
    let place = Place::new();
    let dir = place.root();
    let train = ["train", "--text", "text.txt", "--preset", "nano", "--layers", "1", "--embd", "32", "--block", "16"];
    place.runs(&[&train[..], &["--batch", "2", "--steps", "1", "--eval-batches", "1", "--out", "run"]].concat());
    model(dir);
    let checkpoint = "run/step-000001.safetensors";
    let gptq = ["quantize", "model.safetensors", "g/model", "--format", "int4:g64", "--container", "gptq"];
    std::fs::create_dir(dir.join("g")).unwrap();
    done(dir, &gptq);
    std::fs::copy(dir.join("run/run.json"), dir.join("g/run.json")).unwrap();
    let quantize = |output: &str, container: &str, parts: &[&str]| {
        let args = ["quantize", "model.safetensors", output, "--format", "int4:g64", "--container", container];
        let before = std::fs::read(dir.join(output)).ok();
        refused(dir, &args, parts);
        assert!(std::fs::read(dir.join(output)).ok() == before, "{output} was written over");
    };
    for output in [checkpoint, "run/../run/step-000001.safetensors"] {
        quantize(output, "walsh", &["OUTPUT: expected", "no checkpoint of walsh", output]);
        refused(dir, &["dequantize", "g/model", output], &["OUTPUT: expected", "no checkpoint of walsh"]);
    }
    std::fs::write(dir.join("compare.jsonl"), "{\"name\":\"none\",\"info\":{}}\n{\"name\":\"ste\",\"info\":{}}\n")
        .unwrap();
    for output in ["run/run.json", "g/run.json", "run/metrics.jsonl", "compare.jsonl"] {
        let what = "not of a run or a comparison";
        quantize(output, "walsh", &["OUTPUT: expected", what, output]);
        refused(dir, &["dequantize", "g/model", output], &["OUTPUT: expected", what]);
        refused(dir, &["export", "run", output], &["OUTPUT: expected", what]);
    }
    // Whether they are there or not: once they were, the input would be read by them.
    for name in ["quantize_config.json", "quant_config.json", "config.json"] {
        for output in [format!("g/{name}"), format!("g/../g/{name}")] {
            let before = std::fs::read(dir.join(&output)).ok();
            refused(dir, &["dequantize", "g/model", &output], &["OUTPUT: expected", "the input's configuration", name]);
            assert!(std::fs::read(dir.join(&output)).ok() == before, "{output} was written over");
        }
        quantize(name, "walsh", &["OUTPUT: expected", "the input's configuration", name]);
        // Nor do tensors take the place of the configuration that is written with them.
        for container in ["gptq", "gptq-v2", "awq"] {
            let parts = [&format!("g/{name}: expected another name for a file of {container}")[..]];
            quantize(&format!("g/{name}"), container, &parts);
        }
    }
    // A file of that name that is no run's, and files that these commands have written, are.
    std::fs::write(dir.join("g/run.json"), "{}").unwrap();
    std::fs::write(dir.join("g/compare.jsonl"), "").unwrap();
    let model = "model.safetensors";
    let written = [(checkpoint, "packed"), (checkpoint, "packed"), (model, "g/run.json"), (model, "g/compare.jsonl")];
    for (input, output) in written {
        done(dir, &["quantize", input, output, "--format", "int4:row"]);
    }
    for _ in 0..2 {
        done(dir, &["dequantize", "packed", "back"]);
    }
    for file in ["packed", "back"] {
        assert!(!walsh::train::checkpoint::is_checkpoint(&dir.join(file)).unwrap());
    }
    done(dir, &gptq);
}

#[cfg(unix)]
#[test]
fn a_link_in_the_outputs_place_is_replaced_and_its_target_stays() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    std::fs::write(dir.path().join("target"), "old").unwrap();
    std::os::unix::fs::symlink("target", dir.path().join("out")).unwrap();
    done(dir.path(), &["quantize", "model.safetensors", "out", "--format", "int4"]);
    assert_eq!(std::fs::read(dir.path().join("target")).unwrap(), b"old");
    assert!(std::fs::symlink_metadata(dir.path().join("out")).unwrap().is_file());
}

/// A file that may not become as large as the output: what a full disk is to the command, without one.
#[cfg(unix)]
#[test]
fn a_write_that_fails_names_the_file_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    done(dir.path(), &["quantize", "model.safetensors", "packed", "--format", "int4"]);
    for [command, input, flag, value] in
        [["quantize", "model.safetensors", "--format", "int8"], ["dequantize", "packed", "--max-tier", "baseline"]]
    {
        // Without an adapter, whose driver might want larger files, too.
        let script = "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"";
        let output = std::process::Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_walsh"), command, input, "out", flag, value])
            .current_dir(dir.path())
            .env("VK_DRIVER_FILES", "none")
            .output()
            .unwrap();
        let message = code(&output, 1);
        assert!(message.contains("error: out: cannot write: "), "{message}");
        assert!(!dir.path().join("out").exists() && half(dir.path(), "out").is_none());
    }
}

/// The file that is being written in order to be `name`.
fn half(dir: &Path, name: &str) -> Option<std::path::PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.into_iter().find(|path| {
        let found = path.file_name().unwrap().to_str().unwrap();
        found.strip_prefix(name).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".partial"))
    })
}

/// Whatever is beside the output is not walsh's, the input least of all.
#[test]
fn no_other_file_is_written_over_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let path = |name: &str| dir.path().join(name);
    done(dir.path(), &["quantize", "model.safetensors", "packed", "--format", "int4"]);
    for (command, input, flags) in [
        ("quantize", "model.safetensors", &["--format", "int4", "--exclude", "h.*"][..]),
        ("dequantize", "packed", &[]),
    ] {
        let bytes = std::fs::read(path(input)).unwrap();
        done(dir.path(), &[&[command, input, "expected"], flags].concat());
        std::fs::write(path("out.partial"), &bytes).unwrap();
        let before = std::fs::read_dir(dir.path()).unwrap().count();
        for from in [input, "out.partial"] {
            done(dir.path(), &[&[command, from, "out"], flags].concat());
            assert!(
                std::fs::read(path("out")).unwrap() == std::fs::read(path("expected")).unwrap(),
                "{command} {from}"
            );
            assert!(std::fs::read(path("out.partial")).unwrap() == bytes, "{command} {from}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before + 1);
            std::fs::remove_file(path("out")).unwrap();
        }
        // Nor does a failure take it.
        std::fs::write(path("out.partial"), &bytes[..bytes.len() - 1]).unwrap();
        refused(dir.path(), &[&[command, "out.partial", "out"], flags].concat(), &["out.partial: expected"]);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_half_written_file() {
    let dir = tempfile::tempdir().unwrap();
    // Enough tensors that the signal comes in their midst.
    let bytes: Vec<u8> = weights(64 * 64).iter().flat_map(|v| v.to_le_bytes()).collect();
    let content = ItemContent::Plain(Dtype::F32);
    let items: Vec<Item> =
        (0..3000).map(|i| Item { name: format!("{i}.weight"), shape: vec![64, 64], content }).collect();
    let count = items.len();
    Writer::write(&dir.path().join("many"), None, items, &Metadata::Texts(Vec::new()), |writer| {
        (0..count).try_for_each(|i| writer.plain(i, 0, &bytes))
    })
    .unwrap();
    done(dir.path(), &["quantize", "many", "packed", "--format", "int4"]);
    for args in [&["quantize", "many", "out", "--format", "int4"][..], &["dequantize", "packed", "out"]] {
        std::fs::write(dir.path().join("out"), "old").unwrap();
        let mut child = walsh(dir.path(), args).spawn().unwrap();
        wait_for(&mut child, "file", || half(dir.path(), "out").is_some());
        // None where all was done before the signal came.
        if let Some(output) = interrupt(child) {
            let message = code(&output, 1);
            assert!(message.contains("stopping after this tensor"), "{message}");
            assert!(message.contains("interrupted: out was not written"), "{message}");
            assert_eq!(std::fs::read(dir.path().join("out")).unwrap(), b"old");
        }
        assert!(half(dir.path(), "out").is_none(), "{args:?}");
    }
}

/// One tensor that takes long, so that both signals come while it is under way.
#[cfg(unix)]
#[test]
fn a_second_ctrl_c_leaves_no_half_written_file() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = weights(4096 * 4096).iter().flat_map(|v| v.to_le_bytes()).collect();
    let items = vec![Item { name: "l.weight".into(), shape: vec![4096; 2], content: ItemContent::Plain(Dtype::F32) }];
    let texts = Metadata::Texts(Vec::new());
    Writer::write(&dir.path().join("large"), None, items, &texts, |writer| writer.plain(0, 0, &bytes)).unwrap();
    std::fs::write(dir.path().join("out"), "old").unwrap();
    // Until the first signal comes when the tensor is under way; one before ends the process in order.
    for pause in [50, 100, 200, 400, 800] {
        let mut command = walsh(dir.path(), &["quantize", "large", "out", "--format", "int4"]);
        let mut child = command.env("VK_DRIVER_FILES", "none").spawn().unwrap();
        wait_for(&mut child, "file", || half(dir.path(), "out").is_some());
        std::thread::sleep(std::time::Duration::from_millis(pause));
        let id = child.id().to_string();
        let signal = || std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
        signal();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(said.any(|line| line.contains("stopping after this tensor (again: at once)")));
        signal();
        let status = child.wait().unwrap();
        let rest: Vec<String> = said.collect();
        assert_eq!(status.code(), Some(1), "{rest:?}");
        assert_eq!(std::fs::read(dir.path().join("out")).unwrap(), b"old");
        assert!(half(dir.path(), "out").is_none(), "half an output is left");
        if rest.is_empty() {
            return;
        }
        assert!(rest.iter().any(|line| line.contains("interrupted: out was not written")), "{rest:?}");
    }
    panic!("the first signal always came before the tensor");
}

#[test]
fn an_error_of_the_callers_ends_a_conversion_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let path = |name: &str| dir.path().join(name);
    done(dir.path(), &["quantize", "model.safetensors", "packed", "--format", "int4"]);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    for at in 0..6 {
        let stop = |number: usize, _: usize, _: &str| {
            if number == at { Err(walsh::Error::Interrupted("enough".into())) } else { Ok(()) }
        };
        let (format, all) = ("int4:asym".parse().unwrap(), Selection::default());
        let quantized =
            quantize_file(None, &path("model.safetensors"), &path("out"), format, Container::Walsh, &all, stop);
        let dequantized = dequantize_file(None, &path("packed"), &path("out"), stop);
        for result in [quantized, dequantized] {
            assert_eq!(result.unwrap_err().to_string(), "interrupted: enough");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
    }
    // The last call comes when all is converted.
    let mut calls = 0;
    let mut count = |_: usize, _: usize, _: &str| {
        calls += 1;
        Ok(())
    };
    dequantize_file(None, &path("packed"), &path("out"), &mut count).unwrap();
    std::fs::remove_file(path("out")).unwrap();
    let late = dequantize_file(None, &path("packed"), &path("out"), |_, _, _| {
        calls -= 1;
        if calls == 0 { Err(walsh::Error::Interrupted("enough".into())) } else { Ok(()) }
    });
    assert_eq!(late.unwrap_err().to_string(), "interrupted: enough");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
}
