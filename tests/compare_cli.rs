//! `walsh compare` with the tiniest models: rows and their statistics, resumption to the bit, what is refused.
#![cfg(feature = "cli")]

mod common;

#[cfg(unix)]
use common::command::interrupt;
use common::command::{Place, code, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command};
use walsh::train::compare::{Record, Records};
use walsh::train::{Sweep, metrics};

const KEYS: [&str; 15] = [
    "method",
    "optimizer",
    "weights",
    "activations",
    "hadamard",
    "lr",
    "steps",
    "seeds",
    "best_val_loss_mean",
    "best_val_loss_spread",
    "gap_to_full",
    "gap_to_floor",
    "bits_per_weight",
    "ms_per_step",
    "peak_gpu_bytes",
];

/// What all comparisons here share: two rates, two seeds.
const TOML: &str = "\
preset = 'nano'
text = 'text.txt'
layers = 1
embd = 32
block = 16
batch = 4
dropout = 0.1
steps = 30
eval_every = 10
eval_batches = 2
checkpoint_every = 5
log_every = 1
lr = [1e-3, 1e-2]
seeds = [1, 2]
";

impl Place {
    /// With the settings that all comparisons here share.
    fn with_settings() -> Self {
        let place = Self::new();
        std::fs::write(place.path("sweep.toml"), TOML).unwrap();
        place
    }

    fn compare(&self, args: &[&str]) -> Command {
        self.walsh(&[&["compare", "--config", "sweep.toml"], args].concat())
    }

    #[track_caller]
    fn rows(&self, args: &[&str]) -> Vec<Value> {
        let output = self.compare(args).arg("--json").output().unwrap();
        code(&output, 0);
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    fn refused(&self, args: &[&str], parts: &[&str]) {
        self.refuses(&[&["compare", "--config", "sweep.toml"], args].concat(), parts);
    }

    fn records(&self, out: &str) -> Records {
        Records::read(&self.path(out)).unwrap()
    }

    /// The record of the run in full precision with that rate and seed.
    fn record(&self, out: &str, lr: &str, seed: u64) -> Record {
        self.records(out).get(&format!("none,lr={lr},steps=30,seed={seed}")).unwrap().clone()
    }

    /// Starts a comparison and returns when the run with the rate 0.001 and seed 2, the second, has logged some steps.
    fn compare_until_the_second_run(&self, out: &str) -> Child {
        let mut child = self.compare(&["--out", out]).spawn().unwrap();
        let dir = self.path(out).join("none,lr=0.001,steps=30,seed=2");
        wait_for(&mut child, "second run", || metrics::read(&dir).unwrap().len() >= 8);
        child
    }
}

/// Without what is measured by a clock.
fn exact(rows: &[Value]) -> Vec<Value> {
    let mut rows = rows.to_vec();
    for row in &mut rows {
        for key in ["ms_per_step", "peak_gpu_bytes"] {
            row.as_object_mut().unwrap().remove(key);
        }
    }
    rows
}

fn is_svg(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap();
    text.starts_with("<svg") && text.trim_end().ends_with("</svg>")
}

#[test]
fn rows_are_statistics_of_runs_and_the_same_to_the_bit_after_a_stop() {
    let place = Place::with_settings();
    let rows = place.rows(&["--out", "whole"]);
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
    let mut expected = KEYS.to_vec();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let settings = ["method", "optimizer", "weights", "activations", "hadamard", "steps", "seeds", "bits_per_weight"];
    let expected = serde_json::json!(["none", "adamw", null, null, null, 30, [1, 2], 32.0]);
    assert_eq!(Value::from(settings.map(|key| row[key].clone()).to_vec()), expected);
    assert_eq!((&row["gap_to_full"], &row["gap_to_floor"]), (&Value::from(0.0), &Value::Null));
    assert!(row["ms_per_step"].as_f64().unwrap() > 0.0 && row["peak_gpu_bytes"].as_u64().unwrap() > 0);

    // The higher rate learns more in thirty steps; mean and spread of two losses by hand.
    let losses = |lr: &str| [1, 2].map(|seed| place.record("whole", lr, seed).best_val_loss.unwrap());
    let ([a, b], slow) = (losses("0.01"), losses("0.001"));
    let mean = (a + b) / 2.0;
    assert!(mean < (slow[0] + slow[1]) / 2.0);
    let spread = ((a - mean) * (a - mean) + (b - mean) * (b - mean)).sqrt();
    assert_eq!(
        [&row["lr"], &row["best_val_loss_mean"], &row["best_val_loss_spread"]],
        [&Value::from(0.01), &Value::from(mean), &Value::from(spread)]
    );
    assert!(is_svg(&place.path("whole/compare.svg")));
    let steps: Vec<u64> = place.record("whole", "0.01", 2).curve.iter().map(|e| e.step).collect();
    assert_eq!(steps, [10, 20, 30]);

    // The same run by `walsh train` comes to the same loss.
    let mut train = place.walsh(&["train", "--json", "--out", "train", "--lr", "0.01", "--seed", "2"]);
    for line in TOML.lines().filter(|line| !line.starts_with("lr") && !line.starts_with("seeds")) {
        let (flag, value) = line.split_once(" = ").unwrap();
        train.arg(format!("--{}", flag.replace('_', "-"))).arg(value.trim_matches('\''));
    }
    let output = train.output().unwrap();
    code(&output, 0);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["best_val_loss"], Value::from(b));

    // Killed, or stopped by Ctrl-C, in the middle of the second run, a comparison goes on to the same numbers.
    let mut killed = place.compare_until_the_second_run("killed");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(place.records("killed").get("none,lr=0.01,steps=30,seed=2").is_none(), "nothing left to go on with");
    assert_eq!(exact(&place.rows(&["--out", "killed"])), exact(&rows));
    #[cfg(unix)]
    {
        if let Some(output) = interrupt(place.compare_until_the_second_run("stopped")) {
            let message = code(&output, 1);
            assert!(message.contains("interrupted: stopped") && message.contains("`--out stopped`"), "{message}");
            assert!(output.stdout.is_empty());
        }
        assert_eq!(exact(&place.rows(&["--out", "stopped"])), exact(&rows));
    }
    for out in ["killed", "stopped"] {
        for (lr, seed) in [("0.001", 1), ("0.001", 2), ("0.01", 1), ("0.01", 2)] {
            let (own, whole) = (place.record(out, lr, seed), place.record("whole", lr, seed));
            assert_eq!((own.best_val_loss, own.curve), (whole.best_val_loss, whole.curve), "{out}: {lr}, {seed}");
        }
    }

    let train = ["train", "--preset", "nano", "--out", "killed", "--resume"];
    place.refuses(&train, &["killed: expected a directory of a run of its own (--out), found that of a comparison"]);

    // A finished comparison is read back, times included, and as a table too.
    let start = std::fs::read(place.path("whole/compare.jsonl")).unwrap();
    assert_eq!(place.rows(&["--out", "whole"]), rows);
    let output = place.compare(&["--out", "whole"]).output().unwrap();
    code(&output, 0);
    let table = String::from_utf8(output.stdout).unwrap();
    let cells: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((cells.len(), cells[1][0], cells[1][1], cells[1][5]), (2, "none", "adamw", "0.01"), "{table}");
    assert!(cells[1].contains(&format!("{mean:.4}").as_str()) && cells[1].contains(&format!("{spread:.4}").as_str()));
    assert_eq!(std::fs::read(place.path("whole/compare.jsonl")).unwrap(), start);

    // Other settings are refused by name, whether the first run is done or has only begun.
    let changed = [
        (vec!["--batch", "5"], "--batch: expected 4, as none,lr=0.001,steps=30,seed=1 in --out has it"),
        (vec!["--eval-every", "15"], "--eval-every: expected 10"),
        (vec!["--eval-batches", "3"], "--eval-batches: expected 2"),
        (vec!["--warmup", "1"], "--warmup: expected 3"),
    ];
    for (flags, message) in changed {
        place.refused(&[&["--out", "whole"], &flags[..]].concat(), &[message]);
    }
    std::fs::remove_file(place.path("killed/compare.jsonl")).unwrap();
    place.refused(&["--out", "killed", "--clip", "0.5"], &["--clip: expected 1.0"]);
    std::fs::write(place.path("other.txt"), "another text\n".repeat(100)).unwrap();
    let own = format!("--text: expected {}, as ", place.path("text.txt").display());
    place.refused(&["--out", "whole", "--text", "other.txt"], &[&own, "found other.txt\n"]);
    let text = std::fs::read(place.path("text.txt")).unwrap();
    std::fs::copy(place.path("other.txt"), place.path("text.txt")).unwrap();
    place.refused(&["--out", "whole"], &[&own, "found text.txt with other content\n"]);
    std::fs::write(place.path("text.txt"), text).unwrap();

    // Nor with new seeds, rates, budgets or rows: they would be no comparison.
    let new: [&[&str]; 4] = [
        &["--seeds", "3"],
        &["--seeds", "2,3"],
        &["--lr", "0.02", "--steps", "20"],
        &["--weights", "int4", "--no-full"],
    ];
    for run in new {
        for (flag, value, own) in [
            ("--batch", "5", "4"),
            ("--embd", "64", "32"),
            ("--dropout", "0", "0.1"),
            ("--eval-batches", "3", "2"),
            ("--text", "other.txt", &place.path("text.txt").display().to_string()),
        ] {
            let message = format!("{flag}: expected {own}, as none,lr=0.001,steps=30,seed=");
            place.refused(&[&["--out", "whole", flag, value], run].concat(), &[&message, " in --out has it"]);
        }
    }
    assert_eq!(std::fs::read(place.path("whole/compare.jsonl")).unwrap(), start);
    assert!(!place.path("whole/none,lr=0.001,steps=30,seed=3").exists());

    // More seeds and budgets join what is there; one seed has no spread.
    let more = place.rows(&["--out", "whole", "--seeds", "2", "--lr", "0.01", "--steps", "30,20"]);
    assert_eq!(more.len(), 2);
    assert_eq!((&more[0]["best_val_loss_mean"], &more[0]["best_val_loss_spread"]), (&Value::from(b), &Value::Null));
    assert_eq!((&more[1]["steps"], &more[1]["gap_to_full"]), (&Value::from(20), &Value::from(0.0)));
}

#[test]
fn a_run_that_diverges_is_told_and_does_not_end_the_comparison() {
    let place = Place::with_settings();
    let flags = ["--out", "wild", "--seeds", "1", "--clip", "0", "--lr", "1e30,0.01"];
    let rows = place.rows(&flags);
    assert_eq!((rows.len(), &rows[0]["lr"]), (1, &Value::from(0.01)));
    let wild = place.records("wild").get(&format!("none,lr={},steps=30,seed=1", 1e30)).unwrap().clone();
    assert!(wild.diverged.unwrap().contains("is not finite") && wild.best_val_loss.is_none());
    let alone = place.rows(&["--out", "wild", "--seeds", "1", "--clip", "0", "--lr", "1e30"]);
    assert_eq!((alone[0]["lr"].as_f64(), &alone[0]["best_val_loss_mean"]), (Some(1e30), &Value::Null));
}

#[test]
fn the_gap_to_the_floor_is_that_of_the_built_in_corpus() {
    let place = Place::with_settings();
    std::fs::write(
        place.path("sweep.toml"),
        TOML.replace("text = 'text.txt'\n", "").replace("block = 16", "block = 64"),
    )
    .unwrap();
    let rows = place.rows(&["--out", "floor", "--seeds", "3", "--steps", "5", "--lr", "0.01"]);
    let record = place.records("floor").get("none,lr=0.01,steps=5,seed=3").unwrap().clone();
    let path = place.path("text.txt").display().to_string();
    for text in ["text.txt", "./text.txt", &path] {
        let flags = ["--out", "floor", "--seeds", "3", "--steps", "5", "--lr", "0.01", "--text", text];
        let found = format!("found {text}\n");
        place.refused(&flags, &["--text: expected the built-in corpus, as ", &found]);
    }
    let gap = record.best_val_loss.unwrap() - record.entropy_floor.unwrap();
    assert!(gap > 0.0);
    assert_eq!(rows[0]["gap_to_floor"], Value::from(gap));
}

#[test]
fn what_makes_no_sense_is_refused_by_name_before_anything_is_made() {
    let place = Place::with_settings();
    let refused = |args: &[&str], parts: &[&str]| place.refused(&[&["--out", "none"], args].concat(), parts);
    refused(&["--methods", "none", "--weights", "int4"], &["--weights: expected no format beside --method none"]);
    refused(&["--methods", "ste"], &["--method: expected none where there are no --weights"]);
    refused(&["--activations", "int4"], &["--activations: expected --weights beside it"]);
    refused(&["--methods", "magic"], &["none, ptq, ste", "magic"]);
    refused(&["--optimizers", "adamw,cage"], &["--optimizers: expected adamw where no --methods", "found cage"]);
    refused(&["--weights", "int4", "--optimizer", "cage:lambda=-1"], &["adamw, cage[:lambda=L]", "cage:lambda=-1"]);
    refused(&["--weights", "int4,int99"], &["int99"]);
    refused(&["--lr", "0.1,0"], &["--lr: expected a number above 0, found 0"]);
    refused(&["--seeds", "1,x"], &["--seeds", "x"]);
    refused(&["--no-full"], &["--no-full: expected --weights"]);
    refused(&["--text", "missing.txt"], &["missing.txt: cannot read"]);
    refused(&["--config", "missing.toml"], &["--config"]);
    for (text, parts) in [
        (
            "stesp = 30\n",
            &["sweep.toml: expected the settings of a comparison", "line 15", "unknown field `stesp`"][..],
        ),
        ("[[run]]\nwieghts = 'int4'\n", &["line 16", "unknown field `wieghts`"]),
        ("[[run]]\nmethod = 'none'\nweights = 'int4'\n", &["--weights: expected no format beside --method none"]),
        ("[[run]]\nweights = 'int4'\n[run.more]\n", &["line 17"]),
        ("batch = 'many'\n", &["line 15", "many"]),
    ] {
        std::fs::write(place.path("sweep.toml"), format!("{}{text}", TOML.replace("batch = 4\n", "\n"))).unwrap();
        refused(&[], parts);
    }
    std::fs::write(place.path("sweep.toml"), b"lr = 1e-3 # \xff\n").unwrap();
    refused(&[], &["sweep.toml: expected UTF-8 text, found the byte 0xff at offset 12, which is not"]);
    std::fs::write(place.path("sweep.toml"), TOML).unwrap();
    std::fs::create_dir(place.path("damaged")).unwrap();
    std::fs::write(place.path("damaged/compare.jsonl"), "{}\n").unwrap();
    place.refused(&["--out", "damaged"], &["compare.jsonl: expected records of finished runs", "line 1"]);
    place.refused(&["--out", "text.txt"], &["text.txt"]);
    std::fs::create_dir(place.path("run")).unwrap();
    std::fs::write(place.path("run/run.json"), "{}").unwrap();
    place.refused(&["--out", "run"], &["run: expected a directory of a comparison (--out), found that of a run"]);
}

#[test]
fn settings_in_toml_make_a_plan() {
    // A library user reads the same settings without the command.
    let file: Sweep = toml::from_str("weights = 'int4'\nactivations = ['dense', 'int8:row']\nseed = 7").unwrap();
    let plan = file.plan(walsh::train::Preset::Nano).unwrap();
    let names: Vec<&str> = plan.iter().map(|planned| planned.name.as_str()).collect();
    let rest = "lr=0.004,steps=1500,seed=7";
    assert_eq!(
        names,
        [
            format!("none,{rest}"),
            format!("ste,weights=int4,{rest}"),
            format!("ste,weights=int4,activations=int8.row,{rest}")
        ]
    );
}
