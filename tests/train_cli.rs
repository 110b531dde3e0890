//! The main job through the command: its summary, its files, and the same bits after SIGKILL and after Ctrl-C at any moment.
#![cfg(feature = "cli")]

mod common;

#[cfg(unix)]
use common::command::interrupt;
use common::command::{Place, code, wait_for};
use common::mean;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output};
use walsh::train::{checkpoint, metrics};

const STEPS: u64 = 60;

impl Place {
    fn train(&self, out: &str, more: &[&str]) -> Command {
        let mut command = self.walsh(&["train", "--text", "text.txt", "--preset", "nano", "--out", out, "--json"]);
        command.args(["--layers", "1", "--embd", "32", "--block", "16", "--batch", "4", "--accumulate", "2"]);
        command.args(["--dropout", "0.1", "--steps", "60", "--eval-every", "20", "--eval-batches", "2"]);
        command.args(["--checkpoint-every", "5", "--log-every", "1"]).args(more);
        command
    }

    /// Starts a run and returns when `lines` steps are logged or it has ended.
    fn train_until(&self, out: &str, lines: usize) -> Child {
        let mut child = self.train(out, &[]).spawn().unwrap();
        wait_for(&mut child, "lines of metrics", || metrics::read(&self.path(out)).unwrap().len() >= lines);
        child
    }

    /// The last checkpoint's bytes and all losses.
    fn result(&self, out: &str) -> (Vec<u8>, Vec<(u64, Option<f64>)>) {
        let dir = self.path(out);
        let losses = metrics::read(&dir)
            .unwrap()
            .iter()
            .filter(|r| r.train_loss.is_some())
            .map(|r| (r.step, r.train_loss))
            .collect();
        (std::fs::read(checkpoint::path_of(&dir, STEPS)).unwrap(), losses)
    }
}

/// What the summary says of quantization, in the order and spelling of a row of `walsh compare`.
fn settings(output: &Output) -> Value {
    let summary: Value = serde_json::from_slice(&output.stdout).expect("standard output is one JSON object");
    ["method", "optimizer", "weights", "activations", "hadamard"]
        .map(|key| summary.get(key).expect(key).clone())
        .to_vec()
        .into()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_killed_or_stopped_at_any_moment_gives_the_same_bits() {
    let place = Place::new();
    let whole = place.train("whole", &[]).output().unwrap();
    code(&whole, 0);
    let summary: Value = serde_json::from_slice(&whole.stdout).expect("standard output is one JSON object");
    for field in [
        "steps",
        "train_loss",
        "val_loss",
        "best_val_loss",
        "tokens_per_s",
        "ms_per_step",
        "first_step_s",
        "peak_gpu_bytes",
        "seed",
    ] {
        assert!(summary[field].is_number(), "{field} of {summary}");
    }
    for field in ["adapter", "backend", "tier", "precision"] {
        assert!(summary[field].is_string(), "{field} of {summary}");
    }
    assert_eq!(settings(&whole), serde_json::json!(["none", "adamw", null, null, null]));
    assert_eq!((summary["steps"].as_u64(), &summary["entropy_floor"]), (Some(STEPS), &Value::Null));
    let names = files(&place.path("whole"));
    for name in [
        "loss.svg",
        "metrics.jsonl",
        "run.json",
        "step-000050.safetensors",
        "step-000055.safetensors",
        "step-000060.safetensors",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    let expected = place.result("whole");

    code(&place.train("again", &[]).output().unwrap(), 0);
    assert_eq!(place.result("again"), expected, "two runs with one seed");

    for lines in [0, 1, 8, 31] {
        let out = format!("killed-{lines}");
        let mut child = place.train_until(&out, lines);
        child.kill().unwrap();
        child.wait().unwrap();
        code(&place.train(&out, &["--resume"]).output().unwrap(), 0);
        assert_eq!(place.result(&out), expected, "killed after {lines} lines");
    }

    #[cfg(unix)]
    {
        if let Some(output) = interrupt(place.train_until("stopped", 12)) {
            let message = code(&output, 1);
            assert!(message.contains("interrupted: stopped after step") && message.contains("--resume"), "{message}");
            assert!(output.stdout.is_empty());
        }
        code(&place.train("stopped", &["--resume"]).output().unwrap(), 0);
        assert_eq!(place.result("stopped"), expected, "stopped by Ctrl-C");
    }

    // What the finished run refuses, and what it gives.
    let message = code(&place.train("mistyped", &["--resume"]).output().unwrap(), 0);
    assert!(message.contains("no run in ") && message.contains("mistyped: starting afresh"), "{message}");
    let message = code(&place.train("whole", &["--resume", "--lr", "0.5"]).output().unwrap(), 2);
    assert!(message.contains("--lr: expected 0.004"), "{message}");
    assert!(code(&place.train("whole", &[]).output().unwrap(), 2).contains("--resume"));
    let sample =
        |more: &[&str]| place.walsh(&[&["sample", "whole", "--tokens", "60"], more].concat()).output().unwrap();
    let text = |more: &[&str]| {
        let output = sample(more);
        code(&output, 0);
        String::from_utf8(output.stdout).unwrap()
    };
    let prompted = text(&["--prompt", "low bits", "--seed", "3"]);
    assert!(prompted.starts_with("low bits") && prompted.chars().count() == 8 + 60 + 1, "{prompted}");
    assert_eq!(text(&["--prompt", "low bits", "--seed", "3"]), prompted);
    assert_ne!(text(&["--prompt", "low bits", "--seed", "4", "--temperature", "2"]), prompted);
    text(&["--temperature", "0", "--top-k", "3"]);
    let message = code(&sample(&["--prompt", "Low"]), 2);
    assert!(
        message.contains("--prompt: expected characters that the model knows") && message.contains("'L'"),
        "{message}"
    );
}

#[test]
fn learned_scales_are_trained_saved_and_sampled_from() {
    let place = Place::new();
    let lsq = ["--method", "lsq", "--weights", "int4", "--activations", "int4", "--accumulate", "1", "--lr", "0.004"];
    let mut command = place.walsh(&["train", "--text", "text.txt", "--preset", "nano", "--out", "lsq", "--json"]);
    command.args([
        "--layers",
        "1",
        "--embd",
        "32",
        "--block",
        "16",
        "--batch",
        "4",
        "--steps",
        "60",
        "--log-every",
        "1",
    ]);
    code(&command.args(["--eval-every", "60", "--eval-batches", "2"]).args(lsq).output().unwrap(), 0);
    let losses: Vec<f64> = metrics::read(&place.path("lsq")).unwrap().iter().filter_map(|r| r.train_loss).collect();
    let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
    assert!(losses.len() == 60 && last < first - 0.5, "{first} to {last}");
    let saved = checkpoint::Checkpoint::load(&checkpoint::path_of(&place.path("lsq"), 60)).unwrap();
    let full = Some("int4:tensor:f32:full".parse().unwrap());
    assert_eq!((saved.info.config.weights, saved.info.config.activations), (full, full));
    for part in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
        for (what, moment) in [("weight_scale", true), ("input_scale", true), ("input_offset", false)] {
            let tensor = saved.tensor(&format!("model.transformer.h.0.{part}.{what}"));
            assert_eq!(tensor.map(|t| t.shape.as_slice()), moment.then_some(&[1][..]), "{part}.{what}");
        }
    }
    let sampled = place.walsh(&["sample", "lsq", "--tokens", "5"]).output().unwrap();
    code(&sampled, 0);
    for (flags, message) in [
        (
            ["--method", "lsq", "--weights", "mxfp4"],
            "--weights: expected int2 to int8, binary or ternary beside --method lsq",
        ),
        (["--method", "learned", "--activations", "int4:g32"], "--activations: expected int2 to int8"),
    ] {
        let refused = place.walsh(&["train", "--out", "refused"]).args(flags).output().unwrap();
        assert!(code(&refused, 2).contains(message), "{flags:?}");
        assert!(!place.path("refused").exists());
    }
}

#[test]
fn methods_that_quantize_gradients_bring_their_formats() {
    let place = Place::new();
    let train = |out: &str, [batch, block]: [&str; 2], more: &[&str]| {
        let mut command = place.walsh(&["train", "--text", "text.txt", "--preset", "nano", "--out", out, "--json"]);
        command.args(["--layers", "1", "--embd", "32", "--batch", batch, "--block", block, "--log-every", "1"]);
        command.args(["--eval-batches", "2", "--lr", "0.01", "--steps", "20"]).args(more).output().unwrap()
    };
    let quartet = train("quartet", ["4", "16"], &["--method", "quartet:sr", "--optimizer", "feedback"]);
    let said = code(&quartet, 0);
    assert_eq!(settings(&quartet), serde_json::json!(["quartet:sr", "feedback", "mxfp4:mse", "mxfp4:mse", 32]));
    assert!(said.contains("quartet:sr, weights mxfp4:mse, activations mxfp4:mse, rotated by 32"), "{said}");
    let losses: Vec<f64> = metrics::read(&place.path("quartet")).unwrap().iter().filter_map(|r| r.train_loss).collect();
    assert!(losses.len() == 20 && losses[19] < 0.9 * losses[0], "{losses:?}");
    // The run's settings are enough to go on with it.
    code(&place.walsh(&["train", "--out", "quartet", "--resume", "--json"]).output().unwrap(), 0);
    code(&train("nvfp4", ["3", "16"], &["--method", "nvfp4:dense=0", "--precision", "f32"]), 0);
    for (shape, flags, message) in [
        (["4", "16"], ["--method", "quartet", "--weights", "int4"], "--weights: expected mxfp4"),
        (
            ["4", "12"],
            ["--method", "quartet", "--weights", "mxfp4"],
            "a multiple of 32 tokens beside --method quartet, found 48",
        ),
        (["4", "16"], ["--method", "nvfp4", "--hadamard", "32"], "--hadamard: expected off beside --method nvfp4"),
        // Of one layer.
        (
            ["4", "16"],
            ["--method", "nvfp4", "--optimizer", "cage"],
            "--method nvfp4: expected nvfp4:dense=N with N below",
        ),
    ] {
        let said = code(&train("refused", shape, &flags), 2);
        assert!(said.contains(message), "{flags:?}: {said}");
    }
}
