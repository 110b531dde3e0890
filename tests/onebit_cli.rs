//! `walsh train --method onebit --teacher` and `walsh compare` with it: what is needed, what is refused, and that runs go on to the bit.
#![cfg(feature = "cli")]

mod common;

use common::command::{Place, code, wait_for};
use serde_json::Value;
use std::process::{Command, Output};
use walsh::train::{Checkpoint, checkpoint, metrics};

impl Place {
    fn command(&self, command: &str, more: &[&str]) -> Command {
        let shared = ["--preset", "nano", "--layers", "1", "--embd", "32", "--block", "16", "--batch", "4"];
        let schedule = ["--dropout", "0.1", "--eval-every", "10", "--eval-batches", "2", "--log-every", "1"];
        let text: &[&str] = if more.contains(&"--text") { &[] } else { &["--text", "text.txt"] };
        self.walsh(&[&[command], &shared[..], &schedule, text, more].concat())
    }

    fn train(&self, out: &str, steps: &str, more: &[&str]) -> Output {
        let own = ["--out", out, "--steps", steps, "--checkpoint-every", "10", "--keep", "9"];
        self.command("train", &[&own[..], more].concat()).output().unwrap()
    }

    #[track_caller]
    fn refused(&self, out: &str, more: &[&str], message: &str) {
        let got = code(&self.train(out, "20", more), 2);
        assert!(got.contains(message), "{more:?}: {got}");
    }
}

#[test]
fn a_run_learns_from_its_teacher_and_goes_on_with_it_to_the_bit() {
    let place = Place::new();
    code(&place.train("full", "30", &[]), 0);
    let onebit = ["--method", "onebit"];
    let with = |teacher: &'static str| [&onebit[..], &["--teacher", teacher]].concat();

    // What is missing or makes no sense, each by its flag.
    place.refused(
        "s",
        &onebit,
        "--teacher: expected beside --method onebit the directory of a finished run in full precision",
    );
    place.refused(
        "s",
        &with("nowhere"),
        "--teacher: expected the directory of a finished run in full precision, found no directory",
    );
    place.refused("s", &[&with("full")[..], &["--activations", "binary"]].concat(), "no 1-bit activations");
    place.refused(
        "s",
        &["--method", "ste", "--weights", "int4", "--teacher", "full"],
        "--teacher: expected none beside --method ste",
    );
    place.refused("s", &["--teacher", "full"], "--teacher: expected none beside --method none");
    place.refused(
        "s",
        &[&with("full")[..], &["--heads", "1"]].concat(),
        "--teacher: expected a model of the same shape",
    );
    code(&place.train("four", "20", &["--weights", "int4:row"]), 0);
    place.refused("s", &with("four"), "found one by --method ste in four");
    std::fs::write(place.path("other.txt"), "another text. ".repeat(200)).unwrap();
    place.refused(
        "s",
        &[&with("full")[..], &["--text", "other.txt"]].concat(),
        "--teacher: expected a model of the same characters",
    );
    assert!(!place.path("s").exists());

    // Longer than the teacher; the same bits after a stop.
    let message = code(&place.train("whole", "40", &with("full")), 0);
    assert!(
        message.contains("teacher: ") && message.contains("linear layers: onebit, weights binary:tensor"),
        "{message}"
    );
    let last = |out: &str| std::fs::read(checkpoint::path_of(&place.path(out), 40)).unwrap();
    std::fs::create_dir(place.path("again")).unwrap();
    for name in ["run.json", "metrics.jsonl", "step-000010.safetensors", "step-000020.safetensors"] {
        std::fs::copy(place.path("whole").join(name), place.path("again").join(name)).unwrap();
    }
    let resume = |out: &str, more: &[&str]| {
        place.walsh(&[&["train", "--resume", "--out", out], more].concat()).output().unwrap()
    };
    // It finds its teacher again by itself.
    code(&resume("again", &[]), 0);
    assert_eq!(last("again"), last("whole"));
    let losses =
        |out: &str| metrics::read(&place.path(out)).unwrap().iter().map(|m| (m.step, m.train_loss)).collect::<Vec<_>>();
    assert_eq!(losses("again"), losses("whole"));
    // A teacher elsewhere is the same teacher; one with other weights is not.
    std::fs::rename(place.path("full"), place.path("moved")).unwrap();
    std::fs::remove_file(checkpoint::path_of(&place.path("again"), 40)).unwrap();
    assert!(code(&resume("again", &[]), 2).contains("--teacher: expected the directory of a finished run"));
    code(&resume("again", &["--teacher", "moved"]), 0);
    assert_eq!(last("again"), last("whole"));
    code(&place.train("full", "30", &["--seed", "2"]), 0);
    std::fs::remove_file(checkpoint::path_of(&place.path("again"), 40)).unwrap();
    assert!(code(&resume("again", &[]), 2).contains("with other weights"));

    // A run that is not finished is no teacher; what a student gives can be sampled from.
    std::fs::create_dir(place.path("half")).unwrap();
    let path = checkpoint::path_of(&place.path("full"), 20);
    std::fs::copy(&path, checkpoint::path_of(&place.path("half"), 20)).unwrap();
    place.refused("s", &with("half"), "found step 20 of 30 in half");
    code(&place.walsh(&["sample", "whole", "--tokens", "20"]).output().unwrap(), 0);
}

fn full_loss(records: &walsh::train::compare::Records, lr: &str) -> f64 {
    records.get(&format!("none,lr={lr},steps=30,seed=1")).unwrap().best_val_loss.unwrap()
}

#[test]
fn a_comparison_takes_its_own_runs_in_full_precision_as_teachers() {
    let place = Place::new();
    let comparing = |more: &[&str]| {
        // An interval of checkpoints that misses evaluations: a teacher's best is there all the same.
        let shared = ["--steps", "30", "--seeds", "1,2", "--lr", "0.001,0.01", "--checkpoint-every", "15", "--json"];
        place.command("compare", &[&shared[..], more].concat())
    };
    let compare = |more: &[&str]| comparing(more).output().unwrap();
    let message = code(&compare(&["--methods", "onebit", "--no-full", "--out", "x"]), 2);
    assert!(message.contains("--no-full: expected --teacher beside it"), "{message}");
    let message = code(&compare(&["--methods", "bwn", "--teacher", "nowhere", "--out", "x"]), 2);
    assert!(message.contains("--teacher: expected none without a method that learns from one"), "{message}");

    let output = compare(&["--methods", "onebit,none,bwn", "--out", "sweep"]);
    code(&output, 0);
    let rows: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["none", "onebit", "bwn"]);
    assert!(rows.iter().all(|row| row["best_val_loss_mean"].is_number() && row["gap_to_full"].is_number()), "{rows:?}");
    // A bit, one scale of each matrix, and two vectors of 32-bit values: over 32 x 96, 32 x 32, 32 x 128 and 128 x 32 weights.
    let values = 32.0 * f64::from(128 + 64 + 160 + 160) + 4.0 * 32.0;
    assert_eq!(rows[1]["bits_per_weight"], Value::from(1.0 + values / f64::from(32 * (96 + 32 + 128 + 128))));

    let records = walsh::train::compare::Records::read(&place.path("sweep")).unwrap();
    for seed in [1, 2] {
        let full = |lr: &str| format!("none,lr={lr},steps=30,seed={seed}");
        let loss = |lr: &str| records.get(&full(lr)).unwrap().best_val_loss.unwrap();
        let best = if loss("0.001") < loss("0.01") { "0.001" } else { "0.01" };
        for lr in ["0.001", "0.01"] {
            let name = format!("onebit,weights=binary.tensor,lr={lr},steps=30,seed={seed}");
            let info = &records.get(&name).unwrap().info;
            assert_eq!(info.config.teacher, Some(std::path::absolute(place.path("sweep").join(full(best))).unwrap()));
            // Of its best step, which is kept.
            let dir = place.path("sweep").join(full(best));
            let (newest, _) = checkpoint::newest_whole(&dir).unwrap();
            let step = newest.unwrap().state.best_val.unwrap().step;
            assert!(Checkpoint::load(&checkpoint::path_of(&dir, step)).is_ok(), "step {step}");
            assert!(info.teacher_digest.is_some());
        }
    }
    // All is done: nothing is done again.
    let message = code(&compare(&["--methods", "onebit,none,bwn", "--out", "sweep"]), 0);
    assert!(message.contains("12 runs, 12 of them done"), "{message}");

    // With a teacher of its own a comparison stays with it, also where a run is done.
    let taught = |teacher: &str| {
        let flags =
            ["--methods", "onebit", "--no-full", "--steps", "30", "--seeds", "1", "--lr", "0.01", "--out", "taught"];
        let teacher = format!("sweep/none,lr={teacher},steps=30,seed=1");
        place.command("compare", &[&flags[..], &["--teacher", &teacher]].concat()).output().unwrap()
    };
    code(&taught("0.01"), 0);
    let message = code(&taught("0.001"), 2);
    assert!(message.contains("--teacher: expected") && message.contains("with other weights"), "{message}");

    // A run that has begun goes on with the teacher that it began with, also where a rate that is added makes a better one.
    let more = |rates: &str| {
        let flags =
            ["--methods", "onebit,none", "--steps", "30", "--seeds", "1", "--checkpoint-every", "15", "--out", "more"];
        place.command("compare", &[&flags[..], &["--lr", rates]].concat()).output().unwrap()
    };
    let worse = if full_loss(&records, "0.001") < full_loss(&records, "0.01") { "0.01" } else { "0.001" };
    code(&more(worse), 0);
    let path = place.path("more/compare.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.lines().filter(|l| !l.contains("\"name\":\"onebit")).map(|l| format!("{l}\n")).collect::<String>(),
    )
    .unwrap();
    code(&more("0.001,0.01"), 0);
    let again = walsh::train::compare::Records::read(&place.path("more")).unwrap();
    let info = &again.get(&format!("onebit,weights=binary.tensor,lr={worse},steps=30,seed=1")).unwrap().info;
    let own = format!("none,lr={worse},steps=30,seed=1");
    assert_eq!(info.config.teacher.as_deref().and_then(|dir| dir.file_name()).unwrap(), &*own);

    // Of records alone the comparison goes on, too: a teacher that a run still needs is trained again, to the same bits, also after a stop.
    let sweep = place.path("sweep");
    let text = std::fs::read_to_string(sweep.join("compare.jsonl")).unwrap();
    let name = "onebit,weights=binary.tensor,lr=0.01,steps=30,seed=2";
    let kept: String = text.lines().filter(|line| !line.contains(name)).map(|line| format!("{line}\n")).collect();
    let was = records.get(name).unwrap();
    let teacher = was.info.config.teacher.as_deref().unwrap();
    std::fs::remove_dir_all(&sweep).unwrap();
    std::fs::create_dir(&sweep).unwrap();
    std::fs::write(sweep.join("compare.jsonl"), &kept).unwrap();
    let goes_on = || {
        code(&compare(&["--methods", "onebit,none,bwn", "--out", "sweep"]), 0);
        let again = walsh::train::compare::Records::read(&sweep).unwrap();
        let is = again.get(name).unwrap();
        assert_eq!((was.best_val_loss, &was.info.teacher_digest), (is.best_val_loss, &is.info.teacher_digest));
        let names = std::fs::read_dir(&sweep).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut runs: Vec<String> = names.filter(|name| name.contains("seed=")).collect();
        runs.sort();
        assert_eq!(runs, [teacher.file_name().unwrap().to_str().unwrap(), name]);
    };
    let mut child = comparing(&["--methods", "onebit,none,bwn", "--out", "sweep"]).spawn().unwrap();
    wait_for(&mut child, "teacher", || metrics::read(teacher).unwrap().len() >= 16);
    child.kill().unwrap();
    child.wait().unwrap();
    goes_on();
    // Whenever that came: of the teacher there is a beginning, and nothing of the run that needs it.
    std::fs::remove_dir_all(sweep.join(name)).unwrap();
    for (_, path) in checkpoint::list(teacher).unwrap() {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::write(sweep.join("compare.jsonl"), &kept).unwrap();
    goes_on();
    assert!(checkpoint::path_of(teacher, 30).exists());
}
