//! `walsh export` and what comes of it through the command, and `walsh train --diagnostics`.
#![cfg(feature = "cli")]

mod common;

use common::command::Place;
use walsh::train::{Checkpoint, checkpoint, metrics};

impl Place {
    fn train(&self, out: &str, more: &[&str]) {
        let mut args = vec!["train", "--text", "text.txt", "--preset", "nano", "--out", out];
        args.extend(["--layers", "1", "--embd", "32", "--block", "16", "--batch", "4", "--dropout", "0.1"]);
        args.extend(["--steps", "12", "--eval-every", "4", "--eval-batches", "1", "--checkpoint-every", "4"]);
        args.extend(more);
        self.runs(&args);
    }
}

#[test]
fn an_exported_model_says_what_the_run_says() {
    let place = Place::new();
    place.train("run", &["--weights", "int4:g32", "--activations", "int8:row"]);
    let sample = |from: &str| {
        let args = ["sample", from, "--prompt", "low bits", "--tokens", "40", "--temperature", "1.5"];
        place.runs(&args).0
    };
    let expected = sample("run");
    for (file, container) in [("model.safetensors", "walsh"), ("model.gguf", "gguf"), ("MODEL.GGUF", "gguf")] {
        let (_, message) = place.runs(&["export", "run", file]);
        assert!(
            message.contains(&format!("{file}: step 12 in {container}, 4 tensors of codes in int4:g32")),
            "{message}"
        );
        assert_eq!(message.contains("note: the model was trained with inputs in int8:row"), container == "gguf");
        assert_eq!(sample(file), expected, "{file}");
        let (listed, _) = place.runs(&["inspect", file]);
        assert!(listed.contains("walsh.model = "), "{listed}");
    }
    // Another checkpoint is another model, and a checkpoint by itself will do.
    place.runs(&["export", "run", "four", "--checkpoint", "4"]);
    assert_ne!(sample("four"), expected);
    place.runs(&["export", "run/step-000004.safetensors", "other", "--container", "walsh"]);
    assert_eq!(std::fs::read(place.path("four")).unwrap(), std::fs::read(place.path("other")).unwrap());
    let best = Checkpoint::load(&checkpoint::path_of(&place.path("run"), 12)).unwrap().state.best_val.unwrap().step;
    place.runs(&["export", "run", "best", "--checkpoint", "best"]);
    place.runs(&["export", "run", "same", "--checkpoint", &best.to_string()]);
    assert_eq!(std::fs::read(place.path("best")).unwrap(), std::fs::read(place.path("same")).unwrap());

    let kept = std::fs::read(place.path("four")).unwrap();
    place
        .refuses(&["export", "run", "four", "--container", "gptq"], &["--container: expected walsh or gguf", "`gptq`"]);
    place.refuses(
        &["export", "run", "four", "--checkpoint", "5"],
        &["expected a checkpoint of step 5", "those of 4, 8, 12"],
    );
    place.refuses(&["export", "run", "four", "--checkpoint", "first"], &["last, best or the number of a step"]);
    place.refuses(&["export", "missing", "four"], &["missing: cannot open"]);
    place.refuses(&["export", "text.txt", "four"], &["text.txt: expected a whole checkpoint"]);
    place.refuses(&["export", "model.gguf", "four"], &["model.gguf: expected a whole checkpoint"]);
    place.refuses(
        &["export", "run/step-000004.safetensors", "four", "--checkpoint", "best"],
        &["--checkpoint: expected"],
    );
    assert_eq!(std::fs::read(place.path("four")).unwrap(), kept, "a refused export leaves what was there");
    // A checkpoint is nothing to write over: the one that is read, by either name of it, another of the run, one elsewhere, a damaged one.
    let last = std::fs::read(place.path("run/step-000012.safetensors")).unwrap();
    std::fs::write(place.path("elsewhere"), &last).unwrap();
    std::fs::write(place.path("damaged"), &last[..last.len() - 1]).unwrap();
    for (run, output) in [
        ("run/step-000012.safetensors", "run/step-000012.safetensors"),
        ("run/step-000012.safetensors", "run/../run/step-000012.safetensors"),
        ("run", "run/step-000012.safetensors"),
        ("run", "run/step-000004.safetensors"),
        ("run", "elsewhere"),
        ("run", "damaged"),
    ] {
        let before = std::fs::read(place.path(output)).unwrap();
        for container in ["walsh", "gguf"] {
            let parts = ["OUTPUT: expected", "no checkpoint of walsh", output];
            place.refuses(&["export", run, output, "--container", container], &parts);
        }
        assert!(std::fs::read(place.path(output)).unwrap() == before, "{output} was written over");
    }
    // What was exported before is, and so is a file that only begins like one of safetensors.
    std::fs::write(place.path("foreign"), &last[..100]).unwrap();
    for output in ["four", "foreign"] {
        place.runs(&["export", "run", output]);
        assert_eq!(sample(output), expected);
    }
    for file in ["model.safetensors", "model.gguf"] {
        let bytes = std::fs::read(place.path(file)).unwrap();
        std::fs::write(place.path("cut"), &bytes[..bytes.len() - 40]).unwrap();
        place.refuses(&["sample", "cut"], &["cut: expected"]);
    }
    assert!(place.runs(&["export", "--help"]).0.contains("--checkpoint"));
}

#[test]
fn scales_that_saturate_are_told_in_training_and_refused_after_it() {
    let place = Place::new();
    // The first step moves each weight by the rate; scales of more than 448, of weights beyond 2688, saturate.
    let args = ["train", "--text", "text.txt", "--preset", "nano", "--out", "run", "--layers", "1", "--embd", "32"];
    let rate = ["--block", "16", "--batch", "4", "--lr", "1e4", "--warmup", "0", "--weights", "nvfp4:ue4m3"];
    let steps = ["--steps", "1", "--eval-batches", "1"];
    let (_, message) = place.runs(&[&args[..], &rate, &steps].concat());
    for layer in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
        let tensor = format!("transformer.h.0.{layer}.weight");
        let warning = format!("warning: scales of `{tensor}` are beyond what nvfp4:ue4m3 stores and saturate");
        assert_eq!(message.matches(&warning).count(), 1, "{message}");
    }
    let parts = ["export: expected scales of at most 448 (ue4m3) in tensor `transformer.h.0.attn.c_attn.weight`"];
    place.refuses(&["export", "run", "model"], &parts);
}

#[test]
fn rotated_weights_are_for_walshs_own_files() {
    let place = Place::new();
    place.train("run", &["--method", "quest", "--weights", "int4", "--activations", "int4", "--diagnostics", "5"]);
    place.refuses(
        &["export", "run", "model.gguf"],
        &["--container: expected walsh for rotated weights", "rotated by 32"],
    );
    assert!(!place.path("model.gguf").exists());
    place.runs(&["export", "run", "model.safetensors"]);
    let sample = |from: &str| place.runs(&["sample", from, "--tokens", "30"]).0;
    assert_eq!(sample("run"), sample("model.safetensors"));

    // Diagnostics come every 5 steps and at the end, and change nothing else; a run that goes on may do without.
    place.train("plain", &["--method", "quest", "--weights", "int4", "--activations", "int4"]);
    let records = |run: &str| metrics::read(&place.path(run)).unwrap();
    let diagnosed = records("run");
    let steps: Vec<u64> = diagnosed.iter().filter(|r| r.diagnostics.is_some()).map(|r| r.step).collect();
    assert_eq!(steps, [5, 10, 12]);
    assert!(diagnosed.is_sorted_by_key(|r| r.step) && records("plain").iter().all(|r| r.diagnostics.is_none()));
    for plain in records("plain") {
        let same = diagnosed.iter().find(|r| r.step == plain.step).unwrap();
        assert_eq!(
            (same.train_loss, same.val_loss, same.grad_norm),
            (plain.train_loss, plain.val_loss, plain.grad_norm)
        );
    }
    for record in diagnosed.iter().filter_map(|r| r.diagnostics.as_ref()) {
        let names: Vec<&str> = record.keys().map(String::as_str).collect();
        let layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map(|l| format!("transformer.h.0.{l}"));
        assert_eq!(names, layers);
        for layer in record.values() {
            let cosine = layer.cosine.unwrap();
            assert!((0.5..=1.0).contains(&cosine) && layer.masked_inputs.is_some(), "{layer:?}");
        }
    }
    assert!(diagnosed.last().unwrap().diagnostics.as_ref().unwrap().values().all(|l| l.still_masked.is_some()));
    assert!(place.path("run/diagnostics.svg").exists() && !place.path("plain/diagnostics.svg").exists());
    let saved = |run: &str| Checkpoint::load(&checkpoint::path_of(&place.path(run), 12)).unwrap().tensors;
    assert!(saved("run") == saved("plain"), "the last checkpoint differs");
    let resumed = ["train", "--out", "run", "--resume", "--diagnostics", "0"];
    place.runs(&resumed);
    assert_eq!(records("run"), diagnosed);
    place.train("dense", &["--diagnostics", "5"]);
    assert!(records("dense").iter().all(|r| r.diagnostics.is_none()));
}
