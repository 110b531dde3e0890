//! Formats on the host: numbers that their sources print, and what must hold for all of them.

mod common;

use common::Gen;
use walsh::format::tables::{FP4, GAUSSIAN_CLIP, GAUSSIAN_UNIT_E2M1, NF3, NF4, dynamic_map};
use walsh::format::{Format, Grid, Minifloat, PackedMatrix, Rounding, Span, Store, Uniform};

fn parse(text: &str) -> Format {
    text.parse().unwrap()
}

/// Values of a row after quantization.
fn round_trip(format: Format, x: &[f32], rounding: Rounding) -> Vec<f64> {
    PackedMatrix::quantize(format, x, 1, x.len(), rounding).unwrap().dequantize()
}

#[test]
fn ties_of_e2m1_go_to_the_even_code() {
    let format = parse("mxfp4");
    let table = [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0), (5.01, 6.0)];
    for (v, want) in table {
        for sign in [1.0, -1.0] {
            assert_eq!(format.grid().decode(format.nearest(v * sign, 0), 0), want * sign, "{v}");
        }
    }
}

#[test]
fn the_floor_rule_saturates_where_the_others_do_not() {
    // A largest magnitude of 7: its power of two is 4, E2M1's largest value has exponent 2.
    let mut x = [0.5f32; 32];
    x[3] = 7.0;
    for (rule, byte, value) in [("floor", 127, 6.0), ("roundup", 128, 8.0), ("ceil", 128, 8.0), ("even", 128, 8.0)] {
        let matrix = PackedMatrix::quantize(parse(&format!("mxfp4:{rule}")), &x, 1, 32, Rounding::Nearest).unwrap();
        assert_eq!((matrix.scale_bits(0, 0), matrix.value(0, 3)), (byte, value), "{rule}");
    }
    // A mantissa of at most 1.5 stays below the grid's largest value.
    x[3] = 6.0;
    let bytes = ["floor", "roundup", "ceil", "even"].map(|rule| {
        let format = parse(&format!("mxfp4:{rule}"));
        PackedMatrix::quantize(format, &x, 1, 32, Rounding::Nearest).unwrap().scale_bits(0, 0)
    });
    assert_eq!(bytes, [127, 127, 128, 127]);
}

#[test]
fn powers_of_two_reach_both_ends() {
    let format = parse("mxfp4");
    let mut matrix = PackedMatrix::zeros(format, 1, 32).unwrap();
    for (byte, scale) in [(0, 2f64.powi(-127)), (127, 1.0), (254, 2f64.powi(127))] {
        matrix.set_scale_bits(0, 0, byte);
        matrix.set_code(0, 1, 1);
        assert_eq!((matrix.scale(0, 0, false), matrix.value(0, 1)), (scale, scale / 2.0));
    }
    matrix.set_scale_bits(0, 0, 255);
    assert!(matrix.scale(0, 0, false).is_nan());
    let byte = |x: f32| PackedMatrix::quantize(format, &[x; 32], 1, 32, Rounding::Nearest).unwrap().scale_bits(0, 0);
    assert_eq!([byte(0.0), byte(1e-40), byte(f32::MIN_POSITIVE), byte(f32::MAX)], [0, 0, 0, 252]);
    assert_eq!([byte(f32::NAN), byte(f32::INFINITY)], [255, 255]);
}

#[test]
fn the_dynamic_map_has_its_anchors() {
    let map = dynamic_map();
    let anchors = [
        (0, -0.992_968_75),
        (126, -5.5e-7),
        (127, 0.0),
        (128, 5.5e-7),
        (129, 3.25e-6),
        (130, 7.75e-6),
        (254, 0.992_968_75),
        (255, 1.0),
    ];
    for (i, value) in anchors {
        assert!((f64::from(map[i]) - value).abs() <= value.abs() * 1e-7, "{i}: {} for {value}", map[i]);
    }
    assert!(map.windows(2).all(|w| w[0] < w[1]));
}

#[test]
fn thresholds_of_tables_are_the_published_ones() {
    let nf4 = [
        -0.848_096_4,
        -0.610_632_9,
        -0.459_995_27,
        -0.339_679_43,
        -0.234_607_41,
        -0.137_911_73,
        -0.045_525_018,
        0.039_790_15,
        0.120_255_25,
        0.203_521_25,
        0.292_013_77,
        0.389_312_54,
        0.501_663_42,
        0.642_786_92,
        0.861_478_42,
    ];
    let format = parse("nf4");
    for (i, t) in (0u32..).zip(nf4) {
        assert_eq!([format.nearest(t - 1e-7, 0), format.nearest(t + 1e-7, 0)], [i, i + 1], "NF4 {t}");
    }
    // Magnitudes of FP4 in ascending order have these codes.
    let codes = [0, 1, 6, 7, 4, 5, 2, 3];
    let fp4 = [0.002_604_17, 0.085_937_5, 0.208_333_33, 0.291_666_67, 0.416_666_7, 0.583_333, 0.833_333_3];
    for (i, t) in fp4.into_iter().enumerate() {
        let format = parse("fp4");
        assert_eq!([format.nearest(t - 1e-6, 0), format.nearest(t + 1e-6, 0)], [codes[i], codes[i + 1]], "FP4 {t}");
        assert_eq!(format.nearest(-t - 1e-6, 0), codes[i + 1] + 8, "FP4 -{t}");
    }
    let nf3 = [
        (-0.767_511_37, 0),
        (-0.390_977_07, 1),
        (-0.123_465_7, 2),
        (0.091_668_76, 3),
        (0.282_665_74, 4),
        (0.502_489_8, 5),
        (0.811_492_83, 6),
    ];
    for (t, below) in nf3 {
        let format = parse("nf3");
        assert_eq!([format.nearest(t - 1e-6, 0), format.nearest(t + 1e-6, 0)], [below, below + 1], "NF3 {t}");
    }
    assert_eq!((NF4.len(), FP4.len(), NF3.len()), (16, 16, 8));
}

/// Whether encoding ever gives a code.
fn produced(format: Format, code: u32) -> bool {
    match format.grid() {
        Grid::Int { full, .. } => full || code != 0,
        Grid::Float(float) => {
            let magnitude = code & ((1 << (float.bits() - 1)) - 1);
            // Not the infinities and NaNs; ties to zero have no negative zero.
            magnitude <= float.max_code()
        }
        _ => true,
    }
}

#[test]
fn levels_encode_to_their_codes() {
    for format in Format::all() {
        let random = Uniform { seed: 1, op: 2, step: 3 };
        for code in (0..1 << format.bits()).filter(|c| produced(format, *c)) {
            let zero = if matches!(format.grid(), Grid::ZeroPoint { .. }) { 1 } else { 0 };
            let level = format.grid().decode(code, zero);
            // FP4 has a negative zero that no value encodes to.
            let want = if format.grid() == Grid::Fp4 && code == 8 { 0 } else { code };
            assert_eq!(format.nearest(level, zero), want, "{format}: {level}");
            assert_eq!(format.stochastic(level, zero, random.at(code)), want, "{format}: {level}, stochastic");
        }
    }
}

#[test]
fn every_code_survives_packing() {
    for format in Format::all() {
        let mut matrix = PackedMatrix::zeros(format, 3, 77).unwrap();
        let code = |row: usize, col: usize| ((row * 77 + col) * 7919) as u32 % (1 << format.bits());
        (0..3).for_each(|row| (0..77).for_each(|col| matrix.set_code(row, col, code(row, col))));
        (0..3).for_each(|row| (0..77).for_each(|col| assert_eq!(matrix.code(row, col), code(row, col), "{format}")));
    }
}

#[test]
fn normal_data_has_the_published_error_and_mask() {
    // Mean squared error and share of masked elements of N(0, 1), 1 to 8 bits: QuEST's constants and reference code.
    let errors = [0.36338, 0.118_846, 0.037_439_7, 0.011_542_9, 0.003_495_2, 0.001_040_05, 3.04366e-4, 8.7821e-5];
    let masked = [0.1105, 0.04644, 0.01907, 0.007_329, 0.002_611, 8.728e-4, 2.841e-4, 9.612e-5];
    let n = 1_000_000;
    let mut g = Gen::new(2024);
    let x: Vec<f32> = (0..n).map(|_| g.normal() as f32).collect();
    for bits in 1..=8usize {
        let text = if bits == 1 { "binary:mse".to_owned() } else { format!("int{bits}:centred:row:f32:mse") };
        let matrix = PackedMatrix::quantize(parse(&text), &x, 1, n, Rounding::Nearest).unwrap();
        let error =
            matrix.dequantize().iter().zip(&x).map(|(q, x)| (q - f64::from(*x)).powi(2)).sum::<f64>() / n as f64;
        assert!((error / errors[bits - 1] - 1.0).abs() < 0.01, "{text}: error {error}, want {}", errors[bits - 1]);
        // The bound is half a step beyond the outermost level: 2^(b - 1) steps.
        let bound = f64::from(1u32 << (bits - 1)) * matrix.scale(0, 0, false);
        let share = x.iter().filter(|x| f64::from(x.abs()) > bound).count() as f64 / n as f64;
        // 1 %, and five standard deviations of a count.
        let slack = 0.01 * masked[bits - 1] + 5.0 * (masked[bits - 1] / n as f64).sqrt();
        assert!((share - masked[bits - 1]).abs() < slack, "{text}: masked {share}, want {}", masked[bits - 1]);
        let clip = (f64::from(1u32 << bits) - 1.0) / 2.0 * matrix.scale(0, 0, false);
        assert!((clip / GAUSSIAN_CLIP[bits - 1] - 1.0).abs() < 0.01, "{text}: clip {clip}");
    }
    let matrix = PackedMatrix::quantize(parse("e2m1:mse"), &x, 1, n, Rounding::Nearest).unwrap();
    let error = matrix.dequantize().iter().zip(&x).map(|(q, x)| (q - f64::from(*x)).powi(2)).sum::<f64>() / n as f64;
    assert!((error / 0.012_684_9 - 1.0).abs() < 0.01, "e2m1: error {error}");
    assert!((matrix.scale(0, 0, false) / GAUSSIAN_UNIT_E2M1 - 1.0).abs() < 0.01);
}

#[test]
fn stochastic_rounding_keeps_the_mean() {
    for format in Format::all().into_iter().filter(|f| f.span() != Span::Tensor && !matches!(f.store(), Store::Double))
    {
        let cols = 64;
        // Ends of the same size fix the scale; the rest stays within the grid.
        let mut x: Vec<f32> = (0..cols).map(|i| (i as f32 - 31.5) / 80.0).collect();
        (x[0], x[cols - 1]) = (-1.0, 1.0);
        (x[31], x[32]) = (1.0, -1.0);
        let draws = 200u32;
        let (mut sums, mut squares) = (vec![0.0; cols], vec![0.0; cols]);
        let nearest = PackedMatrix::quantize(format, &x, 1, cols, Rounding::Nearest).unwrap();
        for step in 0..draws {
            let random = Rounding::Stochastic(Uniform { seed: 9, op: 4, step });
            for (i, v) in round_trip(format, &x, random).into_iter().enumerate() {
                sums[i] += v;
                squares[i] += v * v;
            }
        }
        let n = f64::from(draws);
        let (mut error, mut variance) = (0.0, 0.0);
        for i in 0..cols {
            let (mean, x) = (sums[i] / n, f64::from(x[i]));
            // What lies beyond the outermost levels saturates.
            let scale = nearest.scale(0, i / nearest.layout().group, x < 0.0).abs();
            let highest = match format.grid() {
                Grid::Int { bits, .. } => f64::from((1u32 << (bits - 1)) - 1),
                Grid::ZeroPoint { .. } => continue,
                grid => grid.max(),
            };
            if x.abs() > highest * scale {
                continue;
            }
            error += mean - x;
            variance += (squares[i] / n - mean * mean).max(0.0) / n;
        }
        assert!(error.abs() <= 6.0 * variance.sqrt() + 1e-12, "{format}: {error} with {}", variance.sqrt());
    }
}

#[test]
fn groups_that_hold_no_numbers_have_no_scale() {
    for format in Format::all() {
        let mut x = vec![1.0f32; 64];
        x[5] = f32::NAN;
        let matrix = PackedMatrix::quantize(format, &x, 1, 64, Rounding::Nearest).unwrap();
        assert!(matrix.value(0, 0).is_nan(), "{format}");
        let zeros = PackedMatrix::quantize(format, &[0.0; 64], 1, 64, Rounding::Nearest).unwrap();
        let least = match (format.rule(), format.grid()) {
            // Rules with an additive constant, and grids without a zero.
            (walsh::format::Rule::Gaussian, _) => 1e-8,
            _ => 0.0,
        };
        assert!(zeros.dequantize().iter().all(|v| v.abs() <= least), "{format}");
    }
}

#[test]
fn small_floats_have_the_printed_ends() {
    let ends = [(6.0, 0.5), (7.5, 0.125), (28.0, 0.0625), (448.0, 2f64.powi(-9)), (57344.0, 2f64.powi(-16))];
    for (float, (max, least)) in Minifloat::ALL.into_iter().zip(ends) {
        assert_eq!((float.max(), float.decode(1)), (max, least), "{float:?}");
    }
}

#[test]
fn scales_that_saturate_are_found() {
    let mut random = Gen::new(5);
    let texts = [
        "int4",
        "int3:g32:asym",
        "int8:row:f16",
        "int4:g32:full:signed:exact:half-up",
        "nf3",
        "binary:g64:f16",
        "int4:tensor:f16",
        "int2:centred:row:f16:mse",
        "int8:row:f16:asym",
        "nvfp4:ue4m3",
    ];
    for format in texts.map(parse) {
        let (rows, cols) = (3, 160);
        let wide: Format = match format.store() {
            Store::F16 => parse(&format!("{format}:f32").replace(":f16", "").replace(":exact", "")),
            _ => parse("e2m1:g16"),
        };
        let end = if format.store() == Store::F16 { 65520.0 } else { 464.0 };
        let mut seen = [false; 2];
        for magnitude in [1.0, 300.0, 1e3, 2e4, 6e4, 2e5, 5e5, 9e6, 1e30] {
            let x: Vec<f32> = random.normals(rows * cols).into_iter().map(|v| v * magnitude).collect();
            let matrix = PackedMatrix::quantize(wide, &x, rows, cols, Rounding::Nearest).unwrap();
            let layout = *matrix.layout();
            let places = (0..rows).flat_map(|row| (0..layout.groups).map(move |group| (row, group)));
            let scale = |(row, group)| matrix.scale(row, group, false).abs().max(matrix.scale(row, group, true).abs());
            let want = places.map(|at| (at.0, at.1, scale(at))).find(|at| at.2 >= end);
            let got = format.saturated_scale(&x, rows, cols).unwrap();
            assert_eq!(got.map(|at| (at.0, at.1)), want.map(|at| (at.0, at.1)), "{format} at {magnitude}");
            if let (Some(got), Some(want)) = (got, want) {
                // Stored as f32.
                assert!((got.2 - want.2).abs() <= want.2 * common::U32, "{format}: {got:?} {want:?}");
            }
            seen[usize::from(got.is_some())] = true;
        }
        assert_eq!(seen, [true; 2], "{format}");
    }
    // Rounded to the largest value, and just beyond it; other scales have no end.
    for (largest, saturates) in [(65504.0, false), (65519.0, false), (65520.0, true)] {
        let found = parse("int4:row:f16").saturated_scale(&[0.0, -7.0 * largest], 1, 2).unwrap();
        assert_eq!(found, saturates.then_some((0, 0, 65520.0)));
    }
    for text in ["int4:row:f32", "mxfp4", "nvfp4", "nf4:dq"] {
        assert_eq!(parse(text).saturated_scale(&[f32::MAX; 4], 1, 4).unwrap(), None, "{text}");
    }
    assert!(parse("int4").saturated_scale(&[0.0; 3], 1, 4).is_err());
}
