//! What the command says to bad input: one message that names what is wrong, exit code 2, nothing left behind. None of it reaches the model.
#![cfg(feature = "cli")]

mod common;

use common::command::{refused, walsh};

#[test]
fn bad_flags() {
    let dir = tempfile::tempdir().unwrap();
    let train = |flags: &[&str], parts: &[&str]| {
        let args: Vec<&str> = ["train", "--preset", "nano"].iter().chain(flags).copied().collect();
        refused(dir.path(), &args, parts);
    };
    train(&["--heads", "3"], &["--heads", "expected a divisor of the width 64", "found 3"]);
    train(&["--layers", "0"], &["--layers", "expected 1 to", "found 0"]);
    train(&["--block", "32"], &["--block: expected at least 64 with the built-in corpus"]);
    train(&["--lr", "nan"], &["--lr: expected a number above 0"]);
    train(&["--steps", "-1"], &["--steps"]);
    train(&["--max-tier", "magic"], &["--max-tier: expected one of baseline, subgroup, coop", "`magic`"]);
    train(&["--precision", "f8"], &["--precision", "auto, f32, f16", "f8"]);
    train(&["--method", "none", "--weights", "int4"], &["--weights: expected no format beside --method none"]);
    train(&["--method", "ste"], &["--method: expected none where there are no --weights, found ste"]);
    train(&["--method", "magic"], &["--method", "none, ptq, ste", "magic"]);
    train(&["--activations", "int4"], &["--activations: expected --weights beside it"]);
    train(&["--resume"], &["--resume: expected --out"]);
    train(&["--colour"], &["--colour"]);
    refused(dir.path(), &["train", "--preset", "giant"], &["nano, cpu, baby, gpt2", "giant"]);
    refused(dir.path(), &["train", "--adapter", "no such adapter"], &["no GPU adapter found"]);
    refused(dir.path(), &["sample", "x", "--temperature", "-1"], &["--temperature: expected a number of at least 0"]);
    refused(dir.path(), &["sample", "x", "--top-k", "0"], &["--top-k: expected at least 1"]);
    refused(dir.path(), &["juggle"], &["juggle"]);
}

#[test]
fn bad_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    write("empty.txt", b"");
    write("short.txt", b"too short");
    write("latin.txt", b"na\xEFve");
    write("foreign.safetensors", b"no safetensors at all");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    write("run/run.json", b"{}");
    std::fs::create_dir(dir.path().join("damaged")).unwrap();
    write("damaged/step-000007.safetensors", b"half");

    let train = |flags: &[&str], parts: &[&str]| {
        let args: Vec<&str> = ["train", "--preset", "nano"].iter().chain(flags).copied().collect();
        refused(dir.path(), &args, parts);
    };
    train(&["--text", "empty.txt"], &["empty.txt: expected at least 73 characters", "an empty file"]);
    train(&["--text", "short.txt"], &["short.txt: expected at least 73 characters", "found 9"]);
    train(&["--text", "latin.txt"], &["latin.txt: expected UTF-8", "0xef at offset 2"]);
    train(&["--text", "missing.txt"], &["missing.txt: cannot read"]);
    train(&["--text", "empty"], &["empty: cannot read"]);
    train(&["--out", "run"], &["run: expected a directory without a run", "--resume"]);
    train(&["--out", "damaged"], &["damaged: expected a directory without a run"]);
    train(&["--out", "run", "--resume"], &["run.json: expected the settings of a run"]);
    std::fs::create_dir(dir.path().join("comparison")).unwrap();
    write("comparison/compare.jsonl", b"");
    for resume in [&[][..], &["--resume"]] {
        let flags = [&["--out", "comparison"], resume].concat();
        train(&flags, &["comparison: expected a directory of a run of its own (--out), found that of a comparison"]);
    }
    train(&["--out", "short.txt"], &["short.txt: expected a directory"]);
    for (flag, value, expected) in [
        ("--steps", "abc", "a whole number, 0 or above"),
        ("--seed", "-1", "a whole number, 0 or above"),
        ("--steps", "99999999999999999999", "a smaller whole number"),
        ("--lr", "", "a number"),
        ("--dropout", "0,1", "a number"),
    ] {
        train(&[flag, value], &[&format!("{flag}: expected {expected}, found `{value}`")]);
    }
    refused(dir.path(), &["compare", "--lr", "4e-3,"], &["--lr: expected a number, found ``"]);
    refused(dir.path(), &["compare", "--seeds", "1,b"], &["--seeds: expected a whole number, 0 or above, found `b`"]);
    refused(dir.path(), &["sample", "run", "--tokens", "-1"], &["--tokens: expected a whole number", "found `-1`"]);
    refused(dir.path(), &["bench", "--seconds", "abc"], &["--seconds: expected a number, found `abc`"]);
    let sample = |path: &str, parts: &[&str]| refused(dir.path(), &["sample", path], parts);
    sample("missing", &["missing: cannot open"]);
    sample("foreign.safetensors", &["foreign.safetensors: expected a whole checkpoint", "truncated or foreign"]);
    sample("empty", &["empty: expected a directory with a whole checkpoint"]);
    sample("damaged", &["step-000007.safetensors: expected a whole checkpoint", "damaged: expected a directory"]);
}

#[test]
fn help_and_version_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["train", "--help"], &["compare", "--help"], &["--version"]] {
        let output = walsh(dir.path(), args).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
    }
    let help = String::from_utf8(walsh(dir.path(), &["train", "--help"]).output().unwrap().stdout).unwrap();
    for flag in [
        "text",
        "preset",
        "layers",
        "heads",
        "embd",
        "block",
        "batch",
        "accumulate",
        "dropout",
        "lr",
        "min-lr",
        "warmup",
        "weight-decay",
        "clip",
        "steps",
        "eval-every",
        "eval-batches",
        "checkpoint-every",
        "keep",
        "diagnostics",
        "seed",
        "precision",
        "method",
        "weights",
        "activations",
        "adapter",
        "max-tier",
        "out",
        "resume",
        "json",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
    }
}

#[test]
fn info_describes_every_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let output = walsh(dir.path(), &["info", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let adapters = info["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty());
    assert!(adapters.iter().all(|a| a["name"].is_string() && (a["tier"].is_string() || a["error"].is_string())));
    let text = String::from_utf8(walsh(dir.path(), &["info"]).output().unwrap().stdout).unwrap();
    assert!(text.contains(adapters[0]["name"].as_str().unwrap()));
}
