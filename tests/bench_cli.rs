//! `walsh bench`: its lines and its table, and what it says to flags that select nothing.
#![cfg(feature = "cli")]

mod common;

use common::command::walsh;
use serde_json::Value;
use std::path::Path;
use std::process::Output;

fn bench(flags: &[&str]) -> Output {
    walsh(Path::new("."), &[&["bench"], flags].concat()).output().unwrap()
}

#[track_caller]
fn text(output: &Output, code: i32) -> (String, String) {
    let [out, message] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    (out, message)
}

/// The lines as objects, each with exactly the documented keys in their order, and no number that is not finite and above 0.
#[track_caller]
fn rows(out: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    for line in out.lines() {
        let row: Value = serde_json::from_str(line).expect("a line is an object");
        let keys = [
            "kernel",
            "format",
            "activations",
            "tier",
            "m",
            "n",
            "k",
            "us",
            "gb_per_s",
            "tflop_per_s",
            "share_of_copy",
            "share_of_multiply",
            "adapter",
        ];
        let places: Vec<usize> = keys.iter().map(|key| line.find(&format!("\"{key}\":")).expect(key)).collect();
        assert!(places.is_sorted(), "{line}");
        assert_eq!(row.as_object().unwrap().len(), keys.len(), "{line}");
        for key in ["kernel", "format", "activations", "tier", "adapter"] {
            assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {line}");
        }
        for key in ["m", "n", "us"] {
            assert!(row[key].as_f64().is_some_and(|number| number > 0.0 && number.is_finite()), "{key} of {line}");
        }
        assert!(row["k"].is_u64(), "{line}");
        for [rate, share] in [["gb_per_s", "share_of_copy"], ["tflop_per_s", "share_of_multiply"]] {
            assert_eq!(row[rate].is_null(), row[share].is_null(), "{line}");
            for key in [rate, share] {
                assert!(row[key].is_null() || row[key].as_f64().is_some_and(|v| v > 0.0 && v.is_finite()), "{line}");
            }
        }
        rows.push(row);
    }
    rows
}

#[test]
fn json_has_a_line_per_case_and_nothing_else() {
    let (out, message) = text(&bench(&["--kernel", "row_sum", "--kernel", "cop?", "--seconds", "30", "--json"]), 0);
    let rows = rows(&out);
    for kernel in ["row_sum", "copy"] {
        let row = rows.iter().find(|row| row["kernel"] == kernel).expect(kernel);
        assert!(row["gb_per_s"].is_number() && row["tflop_per_s"].is_null(), "{row}");
    }
    for part in ["adapter", "driver", "date", "wgpu", "ceilings"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn products_take_any_shape_and_have_both_rates() {
    let flags = ["--kernel", "matmul_nt", "--format", "f32", "--shape", "33x20x28", "--seconds", "1"];
    let (out, _) = text(&bench(&[&flags[..], &["--json"]].concat()), 0);
    let rows = rows(&out);
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["m"], &rows[0]["n"], &rows[0]["k"]), (&33.into(), &20.into(), &28.into()));
    let per_us = |work: f64| work / rows[0]["us"].as_f64().unwrap();
    let close = |key: &str, expected: f64| (rows[0][key].as_f64().unwrap() / expected - 1.0).abs() < 1e-9;
    assert!(close("gb_per_s", per_us(4.0 * (33.0 * 28.0 + 28.0 * 20.0 + 33.0 * 20.0) * 1e-3)), "{out}");
    assert!(close("tflop_per_s", per_us(2.0 * 33.0 * 20.0 * 28.0 * 1e-6)), "{out}");

    let (out, _) = text(&bench(&flags), 0);
    for part in ["adapter", "driver", "date", "wgpu", "ceilings", "GB/s", "TFLOP/s", "matmul_nt"] {
        assert!(out.contains(part), "`{part}` is not in: {out}");
    }
}

#[test]
fn transforms_and_quantization_take_a_shape_and_any_format_with_options() {
    let found = |flags: &[&str]| {
        let (out, _) = text(&bench(&[flags, &["--json", "--seconds", "60"]].concat()), 0);
        let found = rows(&out).into_iter().map(|row| {
            format!("{} {} {} {} {}", row["kernel"], row["format"], row["m"], row["n"], row["k"]).replace('"', "")
        });
        found.collect::<Vec<_>>()
    };
    let transforms = found(&["--kernel", "hadamard", "--format", "f32", "--shape", "3x96x32", "--shape", "2x40x20"]);
    assert_eq!(transforms, ["hadamard f32 3 96 32", "hadamard_mixed f32 2 40 20"]);
    let both = found(&["--format", "nf4:dq", "--format", "int3:asym:g32", "--shape", "5x70"]);
    let (nf4, int3) = ("nf4:dq", "int3:g32:asym");
    assert_eq!(both, [nf4, int3].map(|f| [format!("quantize {f} 5 70 0"), format!("dequantize {f} 5 70 0")]).concat());
    // What is spelled with options is that format alone, whatever others its spelling is a part of or stands for.
    let alone = found(&["--format", "int4:row", "--format", "int4:g128:f16", "--shape", "5x70"]);
    let of = |f: &str| [format!("quantize {f} 5 70 0"), format!("dequantize {f} 5 70 0")];
    assert_eq!(alone, [of("int4"), of("int4:row")].concat());
    let quest = "int4:row:f32:centred:mse";
    let back = found(&["--kernel", "packed_nn", "--format", quest, "--shape", "2x9x64"]);
    assert!(!back.is_empty() && back.iter().all(|p| *p == format!("packed_nn {quest} 2 9 64")), "{back:?}");
    let products = found(&["--kernel", "packed_nt", "--format", "int4:asym", "--shape", "2x9x64"]);
    assert!(!products.is_empty() && products.iter().all(|p| p == "packed_nt int4:asym 2 9 64"), "{products:?}");
    // A model's shapes, too.
    assert!(
        found(&["--kernel", "dequantize", "--format", "nf4:dq"]).iter().all(|p| p.starts_with("dequantize nf4:dq"))
    );
}

#[test]
fn what_does_not_fit_the_time_is_named() {
    let (out, message) = text(&bench(&["--kernel", "sum", "--seconds", "1e-9", "--json"]), 0);
    assert_eq!(rows(&out).len(), 1);
    assert!(message.contains("not measured: row_sum f32/f32") && message.contains("--seconds"), "{message}");
    let left_out = message.lines().filter(|line| line.starts_with("not measured: ")).count();
    let counted = format!("{left_out} of {} cases left out because of --seconds 0.000000001", left_out + 1);
    assert_eq!(message.lines().last(), Some(counted.as_str()), "{message}");
}

#[test]
fn bad_flags_say_what_there_is() {
    let refused = |flags: &[&str], parts: &[&str]| {
        let (out, message) = text(&bench(flags), 2);
        assert!(out.is_empty(), "{out}");
        for part in parts {
            assert!(message.contains(part), "{flags:?}: `{part}` is not in: {message}");
        }
    };
    refused(&["--kernel", "juggle"], &["--kernel: expected", "accumulate", "matmul_nt", "rope", "found `juggle`"]);
    refused(&["--kernel", "rope", "--kernel", "juggle"], &["found `juggle`"]);
    refused(&["--kernel", "mat?"], &["found `mat?`"]);
    refused(&["--format", "int99"], &["--format: expected", "f16, f32", "found `int99`"]);
    refused(&["--kernel", "rope", "--format", "f16"], &["--format: expected", "one of f32", "found `f16`"]);
    refused(&["--kernel", "juggle", "--shape", "1x2x3"], &["--kernel: expected", "matmul_tn", "found `juggle`"]);
    refused(&["--kernel", ""], &["--kernel: expected", "found ``"]);
    refused(&["--format", ""], &["--format: expected", "found ``"]);
    // The option is at fault, not the name.
    for flags in [&["--format", "nf4:gymnastics"][..], &["--format", "nf4:gymnastics", "--shape", "64x64"]] {
        refused(flags, &["--format: ", "`nf4:gymnastics`", "found `gymnastics`"]);
    }
    refused(&["--format", "nf9:*"], &["--format: expected", "nf4, ", "found `nf9:*`"]);
    // The kernel is there; what it does not take is the shape, also where another kernel takes it.
    let shape_of = |kernel: &str, shape: &str, taken: &str| {
        let expected = format!("--shape: expected a shape for --kernel {kernel} ({taken}");
        let flags = ["--kernel", kernel, "--kernel", "matmul_nt", "--shape", shape];
        refused(&flags, &[&expected, &format!("found `{shape}`")]);
    };
    for shape in ["12x34x56", "7x100x64", "64x64"] {
        shape_of("hadamard", shape, "hadamard, hadamard_mixed): ROWSxCOLSxBLOCK, where BLOCK divides COLS");
    }
    shape_of("matmul", "64x64", "matmul_nn, matmul_nt, matmul_tn): MxNxK");
    shape_of("packed_nt", "12x34", "packed_nt): MxNxK");
    shape_of("quantize", "1x2x3", "dequantize, quantize): ROWSxCOLS");
    refused(
        &["--kernel", "rope", "--shape", "1x2x3", "--shape", "4x5"],
        &["--shape: expected none with --kernel rope (rope)", "a model's shapes only", "found `1x2x3`, `4x5`"],
    );
    refused(&["--shape", "12"], &["--shape: expected MxNxK", "ROWSxCOLSxBLOCK or ROWSxCOLS", "found `12`"]);
    refused(&["--shape", "12x34x"], &["--shape: expected MxNxK", "found `12x34x`"]);
    refused(&["--shape", "12x0x34"], &["--shape: expected MxNxK"]);
    refused(&["--shape", "1000000x1000000x1"], &["2^30 elements", "found `1000000x1000000x1`"]);
    refused(&["--shape", "32768x32768x1", "--format", "f32", "--json"], &["needs", "limit"]);
    for seconds in ["0", "-1", "nan", "inf"] {
        refused(&["--seconds", seconds], &["--seconds: expected a number above 0"]);
    }
    refused(&["--max-tier", "magic"], &["--max-tier: expected one of"]);
    refused(&["--max-tier", "baseline", "--kernel", "attention_coop"], &["attention_coop", "needs the tier coop"]);
}
