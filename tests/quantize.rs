//! Every format against its definition in float64, on every tier.

mod common;

use common::bounds::{RowError, row_error};
use common::{Gen, U32, assert_within, dtypes, every_tier, floats, wide};
use walsh::format::tables::{GAUSSIAN_UNIT_E2M1, dynamic_map};
use walsh::format::{Format, Grid, Header, PackedMatrix, Rounding, Rule, Span, Store, Uniform};
use walsh::kernel::hadamard::{self as hadamard_kernel, Signs};
use walsh::kernel::packed::Packed;
use walsh::kernel::quantize::{self as kernel, Options, Step, quantize};
use walsh::reference::{hadamard::hadamard, layer_norm};
use walsh::{Context, DType, Error, Tensor};

/// All formats, and those that only files have.
fn formats() -> Vec<Format> {
    let files = ["nvfp4:ue4m3:half-zero", "nvint4:ue4m3"].map(|f| f.parse().unwrap());
    Format::all().into_iter().chain(files).collect()
}

/// The same format with scales that are not rounded to their storage.
fn unrounded(format: Format) -> Format {
    match format.store() {
        Store::F16 => {
            let text = format.to_string();
            let options: Vec<&str> = text.split(':').filter(|o| !["f16", "exact"].contains(o)).collect();
            format!("{}:f32", options.join(":")).parse().unwrap()
        }
        Store::Double => format.to_string().replace(":dq", "").parse().unwrap(),
        _ => format,
    }
}

/// Relative error of a scale before it is stored, in units of u: a division is good to 2.5 ulp (5 u); sums of n positive terms in any order lose
/// at most n u; then a division, a root of 1 / inverseSqrt (4.5 ulp), and the factor and the addition.
fn scale_error(format: Format, count: usize) -> f64 {
    U32 * match (format.rule(), format.grid()) {
        (_, Grid::Nf3) => 1.0,
        (Rule::AbsMax | Rule::SignedMax, _) => 6.0,
        (Rule::MinMax, _) => 12.0,
        (Rule::AbsMean, _) => count as f64 + 20.0,
        (Rule::Gaussian, _) => count as f64 + 40.0,
    }
}

/// How far v = x / scale may be off in f32: the reciprocal is good to 2.5 ulp, the products add one u each, the product of E4M3's scale and its
/// factor another; centred levels subtract 1/2. Powers of two are exact.
fn slack(format: Format, v: f64) -> f64 {
    match format.store() {
        Store::E8M0(_) => 0.0,
        _ => 12.0 * U32 * (v.abs() + if matches!(format.grid(), Grid::Centred { .. }) { 1.0 } else { 0.0 }),
    }
}

struct Case<'a> {
    what: String,
    format: Format,
    x: &'a [f32],
    rows: usize,
    cols: usize,
    rounding: Rounding,
    bound: f64,
}

impl Case<'_> {
    /// Values of a group.
    fn group(&self, got: &PackedMatrix, row: usize, g: usize) -> Vec<f32> {
        let group = got.layout().group;
        match self.format.span() {
            Span::Tensor => self.x.to_vec(),
            _ => self.x[row * self.cols + g * group..row * self.cols + ((g + 1) * group).min(self.cols)].to_vec(),
        }
    }

    fn scale_rows(&self) -> usize {
        if self.format.span() == Span::Tensor { 1 } else { self.rows }
    }

    fn check(&self, got: &PackedMatrix, mask: Option<&[u32]>) {
        let want = PackedMatrix::quantize(self.format, self.x, self.rows, self.cols, self.rounding).unwrap();
        let wide =
            PackedMatrix::quantize(unrounded(self.format), self.x, self.rows, self.cols, Rounding::Nearest).unwrap();
        self.check_scales(got, &want, &wide);
        self.check_header(got, &want);
        self.check_codes(got, &wide, mask);
        self.check_packing(got);
    }

    fn check_scales(&self, got: &PackedMatrix, want: &PackedMatrix, wide: &PackedMatrix) {
        let (layout, format, what) = (*got.layout(), self.format, &self.what);
        let e4m3: Format = "mxfp8_e4m3".parse().unwrap();
        for row in 0..self.scale_rows() {
            for s in 0..layout.groups * layout.scales {
                let (bits, want_bits) = (got.scale_bits(row, s), want.scale_bits(row, s));
                let group = self.group(got, row, s / layout.scales);
                let count = group.len();
                let at = format!("{what}: scale {s} of row {row}");
                let (g, negative) = (s / layout.scales, s % layout.scales == 1);
                let ideal = wide.scale(row, g, negative);
                let error = scale_error(format, count);
                match format.store() {
                    Store::E8M0(_) if format.rule() == Rule::Gaussian && want_bits != 255 => {
                        // The power of two at or below a number that is off a little.
                        let squares =
                            group.iter().filter(|v| v.abs() >= f32::MIN_POSITIVE).map(|v| f64::from(*v).powi(2));
                        let ideal = GAUSSIAN_UNIT_E2M1 * (squares.sum::<f64>() / count as f64).sqrt() + 1e-8;
                        let byte = |v: f64| (v.log2().floor() + 127.0).min(254.0) as u32;
                        assert!(byte(ideal * (1.0 - error)) <= bits && bits <= byte(ideal * (1.0 + error)), "{at}");
                    }
                    Store::E8M0(_) => assert_eq!(bits, want_bits, "{at}"),
                    Store::F32 => {
                        let value = f64::from(f32::from_bits(bits));
                        let near = (value - ideal).abs() <= error * ideal.abs();
                        // Around the smallest normal number either side may count as zero.
                        let vanished = value == 0.0 && ideal.abs() < 1.2e-38 || ideal == 0.0 && value.abs() < 1.2e-38;
                        assert!(
                            near || vanished || value.is_nan() && ideal.is_nan(),
                            "{at}: {value:e}, want {ideal:e}"
                        );
                    }
                    Store::F16 if ideal.is_nan() => assert_eq!(bits, 0x7E00, "{at}"),
                    Store::F16 => {
                        let round = |v: f64| half::f16::from_f64(v.clamp(-65504.0, 65504.0)).to_f64();
                        let (a, b) = (round(ideal * (1.0 - error)), round(ideal * (1.0 + error)));
                        let value = half::f16::from_bits(bits as u16).to_f64();
                        assert!(a.min(b) <= value && value <= a.max(b), "{at}: {value:e}, want {ideal:e}");
                    }
                    Store::E4M3 | Store::Ue4m3 if want_bits == 0x7F => assert_eq!(bits, 0x7F, "{at}"),
                    Store::Ue4m3 => {
                        let largest = group.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
                        // By the format itself, of a group of one element a few ulps off.
                        let around = [-6.0, 0.0, 6.0].map(|ulps| {
                            let one = [(largest * (1.0 + ulps * U32)) as f32];
                            PackedMatrix::quantize(format, &one, 1, 1, Rounding::Nearest).unwrap().scale_bits(0, 0)
                        });
                        assert!(around.contains(&bits), "{at}: {bits:#x}, want one of {around:x?}");
                    }
                    Store::E4M3 => {
                        let largest = group.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
                        let largest = if largest < f64::from(f32::MIN_POSITIVE) { 0.0 } else { largest };
                        let v = largest / format.grid().max() / f64::from(got.header(Header::Factor));
                        let (a, b) = (e4m3.nearest(v * (1.0 - 12.0 * U32), 0), e4m3.nearest(v * (1.0 + 12.0 * U32), 0));
                        assert!(a <= bits && bits <= b, "{at}: {bits:#x} for {v}");
                    }
                    Store::Double => {
                        let nested = f64::from(got.nested(row, g));
                        let start = (row * layout.groups + g) / 256 * 256;
                        let end = (start + 256).min(self.rows * layout.groups);
                        let offset = f64::from(got.header(Header::Offset));
                        let scale = |n: usize| wide.scale(n / layout.groups, n % layout.groups, false);
                        let differences: Vec<f64> = (start..end).map(|n| scale(n) - offset).collect();
                        if differences.iter().any(|d| d.is_nan()) {
                            assert!(nested.is_nan() && bits == 127, "{at}: {nested}, {bits}");
                            continue;
                        }
                        let largest = differences.iter().fold(0.0f64, |m, d| m.max(d.abs()));
                        assert!(
                            (nested - largest).abs() <= 2.0 * U32 * largest,
                            "{at}: nested {nested}, want {largest}"
                        );
                        let v = if nested == 0.0 { 0.0 } else { (ideal - offset) / nested };
                        let distance = |m: f32| (f64::from(m) - v).abs();
                        let least = dynamic_map().into_iter().map(distance).fold(f64::INFINITY, f64::min);
                        let code = got.side()[layout.map_at + bits as usize];
                        // The difference, the quotient and the two distances.
                        assert!(
                            distance(f32::from_bits(code)) <= least + 20.0 * U32 * v.abs(),
                            "{at}: code {bits} for {v}"
                        );
                    }
                }
                if matches!(format.grid(), Grid::ZeroPoint { .. }) {
                    self.check_zero(got, row, g, &group);
                }
            }
        }
    }

    fn check_zero(&self, got: &PackedMatrix, row: usize, g: usize, group: &[f32]) {
        let zero = f64::from(got.zero(row, g));
        let scale = got.scale(row, g, false);
        if !scale.is_finite() || scale == 0.0 {
            assert_eq!(zero, 0.0, "{}: zero point of a group without a scale", self.what);
            return;
        }
        let low = group.iter().fold(0.0f64, |m, v| m.min(f64::from(*v)));
        let v = (-low / scale).clamp(0.0, self.format.grid().max());
        assert!((zero - v).abs() <= 0.5 + 12.0 * U32 * v, "{}: zero point {zero} for {v}", self.what);
    }

    fn check_header(&self, got: &PackedMatrix, want: &PackedMatrix) {
        let (layout, what) = (got.layout(), &self.what);
        let error = |word: Header, bound: f64| {
            let (got, want) = (f64::from(got.header(word)), f64::from(want.header(word)));
            assert!((got - want).abs() <= bound * want.abs(), "{what}: {word:?} {got:e}, want {want:e}");
        };
        error(Header::Factor, if self.format.store() == Store::E4M3 { 6.0 * U32 } else { 0.0 });
        let scales = self.scale_rows() * layout.groups;
        error(Header::Offset, if self.format.store() == Store::Double { (scales as f64 + 8.0) * U32 } else { 0.0 });
        assert_eq!(got.side()[4..32], want.side()[4..32], "{what}: the rest of the header");
        assert_eq!(got.side()[layout.map_at..], want.side()[layout.map_at..], "{what}: the map");
        let mut normed = got.clone();
        normed.set_norm();
        for word in [Header::Norm, Header::InverseNorm] {
            assert_eq!(got.header(word), normed.header(word), "{what}: {word:?}");
        }
    }

    fn check_codes(&self, got: &PackedMatrix, wide: &PackedMatrix, mask: Option<&[u32]>) {
        let (layout, format) = (*got.layout(), self.format);
        for row in 0..self.rows {
            for col in 0..self.cols {
                let element = row * self.cols + col;
                let x = if self.x[element].abs() < f32::MIN_POSITIVE { 0.0 } else { f64::from(self.x[element]) };
                let g = col / layout.group;
                let (scale, zero) = (got.scale(row, g, x < 0.0), got.zero(row, g));
                let by = if format.exact() { wide.scale(row, g, x < 0.0) } else { scale };
                let good = by.is_finite() && x.is_finite();
                let v = if good && by != 0.0 { x / by } else { 0.0 };
                let d = if v == 0.0 { 0.0 } else { slack(format, v) };
                let code = got.code(row, col);
                let expected = [v - d, v, v + d].map(|v| match self.rounding {
                    Rounding::Nearest => format.nearest(v, zero),
                    Rounding::Stochastic(random) => format.stochastic(v, zero, random.at(element as u32)),
                });
                assert!(
                    expected.contains(&code),
                    "{}: row {row}, column {col}: code {code} for {v} ({x:e} / {by:e}), want one of {expected:?}",
                    self.what
                );
                let Some(mask) = mask else { continue };
                let bit = mask[row * layout.units + col / 32] >> (col % 32) & 1 == 1;
                let limit = self.bound * scale.abs();
                if !good || (x.abs() - limit).abs() > 3.0 * U32 * limit {
                    assert_eq!(
                        bit,
                        good && x.abs() <= limit,
                        "{}: mask at {row}, {col}: {x:e} within {limit:e}",
                        self.what
                    );
                }
            }
            if let (Some(mask), true) = (mask, !self.cols.is_multiple_of(32)) {
                let last = mask[row * layout.units + layout.units - 1];
                assert_eq!(last >> (self.cols % 32), 0, "{}: mask beyond the last column", self.what);
            }
        }
    }

    /// Every word is what its fields say, so that nothing is left of what the memory held before.
    fn check_packing(&self, got: &PackedMatrix) {
        let layout = *got.layout();
        let mut again = PackedMatrix::zeros(self.format, self.rows, self.cols).unwrap();
        for row in 0..self.rows {
            (0..self.cols).for_each(|col| again.set_code(row, col, got.code(row, col)));
        }
        for row in 0..self.scale_rows() {
            (0..layout.groups * layout.scales).for_each(|s| again.set_scale_bits(row, s, got.scale_bits(row, s)));
            for g in 0..layout.groups {
                if matches!(self.format.grid(), Grid::ZeroPoint { .. }) {
                    again.set_zero(row, g, got.zero(row, g));
                }
                if self.format.store() == Store::Double {
                    again.set_nested(row, g, got.nested(row, g));
                }
            }
        }
        assert_eq!(again.codes(), got.codes(), "{}: words of codes", self.what);
        assert_eq!(again.side()[32..], got.side()[32..], "{}: words of side data", self.what);
    }
}

/// Quantizes on the device into memory full of ones, and checks all of it; divided in each way that the device and the shape have.
#[track_caller]
fn run(
    context: &Context,
    format: Format,
    x: &[f32],
    [rows, cols]: [usize; 2],
    dtype: DType,
    random: Option<Uniform>,
    bound: f64,
) {
    let (tensor, values) = floats(context, x, &[rows, cols], dtype);
    let x: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    let sizes = PackedMatrix::zeros(format, rows, cols).unwrap();
    let ones = |words: &[u32]| vec![u32::MAX; words.len()];
    let garbage = PackedMatrix::from_words(format, rows, cols, ones(sizes.codes()), ones(sizes.side())).unwrap();
    let masked = format.store() != Store::Double;
    let units = cols.div_ceil(32);
    let both = kernel::tiles(context) && cols.is_multiple_of(4) && format.span() != Span::Tensor;
    for division in kernel::Division::ALL.into_iter().take(if both { 3 } else { 1 }) {
        let packed = Packed::from_host(context, &garbage).unwrap();
        let mask = Tensor::from_u32(context, &vec![u32::MAX; rows * units], &[rows, units]).unwrap();
        let options = Options {
            rounding: random.map_or(kernel::Rounding::Nearest, |r| kernel::Rounding::Stochastic {
                seed: r.seed,
                op: r.op,
                step: Step::Number(r.step),
            }),
            mask: masked.then_some((mask.buffer(), bound as f32)),
            division: Some(division),
            ..Options::default()
        };
        quantize(context, tensor.buffer(), &packed, options).unwrap();
        let adapter = &context.capabilities().adapter.name;
        let what =
            format!("{format} of {rows} x {cols} {dtype}, division {division:?}, on {adapter}, {}", context.tier());
        let rounding = random.map_or(Rounding::Nearest, Rounding::Stochastic);
        let case = Case { what, format, x: &x, rows, cols, rounding, bound: f64::from(bound as f32) };
        let mask = masked.then(|| mask.to_vec_u32().unwrap());
        case.check(&packed.to_host(context).unwrap(), mask.as_deref());
    }
}

/// Rows of every kind: normal, with outliers, zeros, huge, tiny, with a NaN, with an infinity, subnormal, near the smallest normal number.
fn kinds(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut g = Gen::new(seed);
    let mut x = Vec::new();
    for row in 0..rows {
        let mut values = g.hard(cols);
        let factor = match row % 9 {
            2 => 0.0,
            3 => 1e30,
            4 => 1e-30,
            7 => 1e-40,
            8 => 1e-36,
            _ => 1.0,
        };
        values.iter_mut().for_each(|v| *v *= factor);
        match row % 9 {
            5 => values[cols / 3] = f32::NAN,
            6 => values[cols / 2] = f32::NEG_INFINITY,
            _ => {}
        }
        x.extend(values);
    }
    x
}

#[test]
fn every_format_matches_its_definition() {
    for context in every_tier() {
        for format in formats() {
            let mut g = Gen::new(7);
            for dtype in dtypes(&context) {
                run(&context, format, &g.hard(3 * 384), [3, 384], dtype, None, 2.0);
                run(&context, format, &kinds(9, 292, 3), [9, 292], dtype, None, 3.0);
            }
            run(&context, format, &[0.0; 2 * 40], [2, 40], DType::F32, None, 1.0);
        }
    }
}

#[test]
fn rows_of_any_length_match() {
    for context in every_tier() {
        for format in formats() {
            let mut g = Gen::new(8);
            for [rows, cols] in [[1, 1], [3, 31], [5, 33], [2, 149]] {
                run(&context, format, &g.hard(rows * cols), [rows, cols], DType::F32, None, 0.7);
            }
        }
        for dtype in dtypes(&context) {
            for text in ["int4:row:f32", "mxfp4", "nvfp4"] {
                run(&context, text.parse().unwrap(), &Gen::new(8).hard(21), [3, 7], dtype, None, 0.7);
            }
        }
    }
}

#[test]
fn every_scale_is_right_where_nothing_is_infinite() {
    // A tensor's scale, factor or offset is not of use where one element is infinite; so each magnitude by itself.
    for context in every_tier() {
        for format in formats() {
            for factor in [1e30, 1e-30, 1e-36, 1e-40] {
                let x: Vec<f32> = Gen::new(5).hard(4 * 80).iter().map(|v| v * factor).collect();
                run(&context, format, &x, [4, 80], DType::F32, None, 1.0);
            }
        }
    }
}

#[test]
fn long_groups_and_tensors_of_many_parts_match() {
    for context in every_tier() {
        for text in [
            "int4:g2048",
            "nf3:g4096:f32",
            "int8:g1024:asym",
            "int4:g4096:full:signed",
            "nf4:g1048576",
            "int4:g512:centred:mse",
        ] {
            run(&context, text.parse().unwrap(), &Gen::new(1).hard(3 * 5001), [3, 5001], DType::F32, None, 1.0);
        }
        for text in
            ["nvfp4", "int8:tensor:f32", "int4:tensor:full:signed:exact", "nf3:tensor", "ternary", "int4:tensor:asym"]
        {
            run(&context, text.parse().unwrap(), &Gen::new(2).hard(4200 * 36), [4200, 36], DType::F32, None, 1.0);
        }
        for cols in [1056, 1100, 4100, 5000, 16_400] {
            let format = "int4:centred:row:f32:mse".parse().unwrap();
            run(&context, format, &Gen::new(4).hard(3 * cols), [3, cols], DType::F32, None, 2.0);
        }
        run(&context, "int8:row:f32".parse().unwrap(), &Gen::new(3).hard(70_000), [70_000, 1], DType::F32, None, 1.0);
    }
}

#[test]
fn stochastic_rounding_is_the_hosts() {
    for context in every_tier() {
        let random = Uniform { seed: 0x1234_5678_9ABC_DEF0, op: 5, step: 77 };
        for format in formats() {
            run(&context, format, &Gen::new(9).hard(2 * 100), [2, 100], DType::F32, Some(random), 1.0);
        }
        for text in ["int4", "int3:asym", "int4:centred:row:f32:mse", "mxfp8_e4m3", "nf4:row", "fp4", "nf3"] {
            for (dtype, cols) in dtypes(&context).into_iter().zip([131, 128]) {
                let x = Gen::new(9).normals(3 * cols);
                run(&context, text.parse().unwrap(), &x, [3, cols], dtype, Some(random), 1.0);
            }
        }
    }
}

#[test]
fn ties_go_where_the_format_says() {
    // The grid's largest value makes the scale 1, and each value half-way between two levels is a tie.
    for context in every_tier() {
        let mut tested = 0;
        for text in [
            "int4:row:f32",
            "int4:centred:row:f32",
            "int3:asym:row:f32",
            "e2m1",
            "nf4:row",
            "fp4:row",
            "nf3:row",
            "mxfp4",
            "mxfp8_e5m2",
            "mxint8",
        ] {
            for ties in ["even", "up", "down", "zero", "away"] {
                let Ok(format) = format!("{text}:half-{ties}").parse::<Format>() else { continue };
                let grid = format.grid();
                let mut levels: Vec<f64> =
                    (0..1 << format.bits()).map(|c| grid.decode(c, 2)).filter(|v| v.is_finite()).collect();
                levels.sort_by(f64::total_cmp);
                levels.retain(|v| v.abs() <= grid.max());
                let unit = f64::from(format.unit());
                let middles = levels.windows(2).map(|w| (w[0] + w[1]) / 2.0 * unit);
                // Of tables, few are numbers of f32.
                let mut x: Vec<f32> = middles
                    .map(|m| m as f32)
                    .filter(|m| {
                        f64::from(*m) == 0.0 || levels.windows(2).any(|w| (w[0] + w[1]) / 2.0 * unit == f64::from(*m))
                    })
                    .collect();
                // Ends that make the scale 1; negative zero point data reach from -2 to 5.
                x.insert(0, (grid.decode((1 << format.bits()) - 1, 2).abs().max(0.0) * unit) as f32);
                x[0] = if matches!(grid, Grid::ZeroPoint { .. }) { 5.0 } else { (grid.max() * unit) as f32 };
                x.insert(1, if matches!(grid, Grid::ZeroPoint { .. }) { -2.0 } else { -x[0] });
                let groups = x.len().div_ceil(30);
                let cols = match format.span() {
                    Span::Group(_) => {
                        // Each group begins with the largest value.
                        let rest: Vec<f32> = std::mem::take(&mut x);
                        for part in rest.chunks(30) {
                            x.push(rest[0]);
                            x.extend(part);
                            x.resize(x.len().next_multiple_of(32), 0.0);
                        }
                        32 * groups
                    }
                    _ => x.len(),
                };
                let tensor = Tensor::from_f32(&context, &x, &[1, cols]).unwrap();
                let packed = Packed::empty(&context, format, 1, cols).unwrap();
                quantize(&context, tensor.buffer(), &packed, Options::default()).unwrap();
                let got = packed.to_host(&context).unwrap();
                for (col, v) in x.iter().enumerate() {
                    let scale = got.scale(0, col / got.layout().group, false);
                    // A device may be off by an ulp in 7 / 7, but none has been seen to.
                    assert_eq!(scale, unit, "{format}: the scale");
                    let want = format.nearest(f64::from(*v) / scale, got.zero(0, col / got.layout().group));
                    assert_eq!(got.code(0, col), want, "{format}: {v} at {col}");
                    tested += 1;
                }
            }
        }
        assert!(tested > 1000);
    }
}

#[test]
fn stochastic_rounding_has_the_mean_of_the_values() {
    for context in every_tier() {
        for text in
            ["int4:row:f32", "int4:centred:row:f32", "e2m1", "nf4:row", "nf3:row", "fp4:row", "int4:asym:row:f32"]
        {
            let format: Format = text.parse().unwrap();
            let cols = 64;
            // The last column fixes the scale.
            let mut x: Vec<f32> = (0..cols).map(|i| (i as f32 - 31.5) / 32.0).collect();
            x[cols - 1] = 1.0;
            x[0] = -1.0;
            let tensor = Tensor::from_f32(&context, &x, &[1, cols]).unwrap();
            let mut sums = vec![(0.0, 0.0); cols];
            let draws = 64;
            for step in 0..draws {
                let packed = Packed::empty(&context, format, 1, cols).unwrap();
                let rounding = kernel::Rounding::Stochastic { seed: 3, op: 1, step: Step::Number(step) };
                quantize(&context, tensor.buffer(), &packed, Options { rounding, ..Options::default() }).unwrap();
                for (sum, v) in sums.iter_mut().zip(packed.to_host(&context).unwrap().dequantize()) {
                    *sum = (sum.0 + v, sum.1 + v * v);
                }
            }
            // All columns' errors together: independent, with the variances that were seen.
            let n = f64::from(draws);
            let (mut error, mut variance) = (0.0, 0.0);
            for (x, (sum, squares)) in x.iter().zip(&sums) {
                error += sum / n - f64::from(*x);
                variance += (squares / n - (sum / n).powi(2)).max(0.0) / n;
            }
            let rounding = 64.0 * 20.0 * U32;
            assert!(error.abs() <= 6.0 * variance.sqrt() + rounding, "{format}: {error} with {}", variance.sqrt());
        }
    }
}

#[test]
fn the_steps_number_may_be_the_devices() {
    for context in every_tier() {
        let format: Format = "mxfp4".parse().unwrap();
        let x = Gen::new(2).normals(256);
        let tensor = Tensor::from_f32(&context, &x, &[2, 128]).unwrap();
        let mut words = [0u32; 16];
        words[0] = 41;
        let state = Tensor::from_u32(&context, &words, &[16]).unwrap();
        let results = [Step::Number(41), Step::State(state.buffer()), Step::Number(42)].map(|step| {
            let packed = Packed::empty(&context, format, 2, 128).unwrap();
            let rounding = kernel::Rounding::Stochastic { seed: 1, op: 2, step };
            quantize(&context, tensor.buffer(), &packed, Options { rounding, ..Options::default() }).unwrap();
            packed.to_host(&context).unwrap()
        });
        assert_eq!(results[0], results[1]);
        assert_ne!(results[0], results[2]);
    }
}

/// Orthonormal transform of each block, in float64.
fn rotated(x: &[f32], block: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for part in x.chunks(block) {
        for i in 0..block {
            let sign = |j: usize| if (i & j).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
            let sum: f64 = part.iter().enumerate().map(|(j, v)| sign(j) * f64::from(*v)).sum();
            out.push(sum / (block as f64).sqrt());
        }
    }
    out
}

/// Codes, the mask and scales of a hard matrix, by kernels that rotate it on the way.
fn check_rotation(
    context: &Context,
    format: Format,
    dtype: DType,
    [rows, cols]: [usize; 2],
    block: usize,
    division: Option<kernel::Division>,
) {
    let (tensor, values) = floats(context, &Gen::new(4).hard(rows * cols), &[rows, cols], dtype);
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    let x = rotated(&values, block);
    let packed = Packed::empty(context, format, rows, cols).unwrap();
    let mask = Tensor::zeros(context, &[rows, cols / 32 + cols % 32 / 16], DType::U32).unwrap();
    let bound = 1.25f32;
    let mask_of = Some((mask.buffer(), bound));
    let options = Options { hadamard: Some(block), mask: mask_of, division, ..Options::default() };
    quantize(context, tensor.buffer(), &packed, options).unwrap();
    let got = packed.to_host(context).unwrap();
    let mask = mask.to_vec_u32().unwrap();
    let units = cols.div_ceil(32);
    for (i, v) in x.iter().enumerate() {
        let (row, col) = (i / cols, i % cols);
        // log2(block) additions of numbers that are together at most sqrt(block) times the block's norm, and the factor.
        let norm: f64 = values[i / block * block..][..block].iter().map(|v| f64::from(*v).powi(2)).sum();
        let error = U32 * (block.ilog2() as f64 + 4.0) * norm.sqrt();
        let scale = got.scale(row, col / got.layout().group, false);
        let d = slack(format, v / scale) + error / scale;
        let code = got.code(row, col);
        let what = format!("{format} block {block}, {cols} columns, {dtype}, {division:?}: {row}, {col}");
        let expected = [v / scale - d, v / scale, v / scale + d].map(|v| format.nearest(v, 0));
        assert!(expected.contains(&code), "{what}: {code} for {}, want {expected:?}", v / scale);
        let bit = mask[row * units + col / 32] >> (col % 32) & 1 == 1;
        let limit = f64::from(bound) * scale;
        if (v.abs() - limit).abs() > error + 3.0 * U32 * limit {
            assert_eq!(bit, v.abs() <= limit, "{what}: mask of {v} within {limit}");
        }
    }
    // Scales are those of the rotated values.
    let wide: Vec<f32> = x.iter().map(|v| *v as f32).collect();
    let want = PackedMatrix::quantize(format, &wide, rows, cols, Rounding::Nearest).unwrap();
    for row in 0..rows {
        for g in 0..got.layout().groups {
            let (a, b) = (got.scale(row, g, false), want.scale(row, g, false));
            // A block's norm is at most sqrt(block) times its largest element; sums over a row round once a column.
            let slack = (f64::from(block.ilog2()) + 4.0) * (block as f64).sqrt() + cols as f64 + 8.0;
            let near = match format.store() {
                Store::F32 => (a - b).abs() <= slack * U32 * b,
                // What is stored in fewer bits may fall to the neighbour.
                _ => got.scale_bits(row, g).abs_diff(want.scale_bits(row, g)) <= 1,
            };
            assert!(near, "{format} block {block}, {cols} columns, {division:?}: scale {a}, want {b}");
        }
    }
}

#[test]
fn rotation_comes_before_everything_else() {
    for context in every_tier() {
        for text in ["int4:centred:row:f32:mse", "mxfp4", "nvfp4", "nf4", "int8:g128:f32", "e2m1:mse"] {
            for (block, cols) in [(16, 48), (32, 96), (64, 192), (128, 384), (256, 512), (128, 1152), (256, 1280)] {
                for dtype in dtypes(&context) {
                    check_rotation(&context, text.parse().unwrap(), dtype, [3, cols], block, None);
                }
            }
        }
    }
}

/// Teams of eight lanes have from 4 to 16 units of a row at a time, by its length: around each length where that changes, the largest blocks that
/// divide it.
#[test]
fn rows_of_every_length_are_rotated_by_whole_blocks() {
    for context in every_tier() {
        if !kernel::tiles(&context) {
            common::skip(&format!("teams of a subgroup on the {} tier", context.tier()));
            continue;
        }
        let blocks = [(128, 128), (256, 256), (128, 384), (256, 512), (256, 768), (256, 1024), (128, 1152)];
        let long = [(256, 1280), (128, 4096), (256, 4096), (128, 4224), (256, 4352), (256, 8192), (256, 8448)];
        for (block, cols) in blocks.into_iter().chain(long) {
            let tiles = Some(kernel::Division::Tiles);
            check_rotation(&context, "e2m1:mse".parse().unwrap(), DType::F32, [2, cols], block, tiles);
        }
        // The other divisions where teams of four units, with all of a row that they hold, would not do.
        for (text, division) in [("e2m1:mse", kernel::Division::Units), ("int4:row:f32", kernel::Division::Rows)] {
            for cols in [256, 1280, 4096] {
                check_rotation(&context, text.parse().unwrap(), DType::F32, [2, cols], 256, Some(division));
            }
        }
        for text in ["mxfp4", "int8:g128:f32"] {
            let tiles = Some(kernel::Division::Tiles);
            check_rotation(&context, text.parse().unwrap(), DType::F32, [2, 1280], 256, tiles);
        }
    }
}

/// Rows with a mean, some hard: with outliers, constant (their norm is the bias), tiny, huge.
fn rows_with_means(rows: usize, cols: usize) -> Vec<f32> {
    let mut random = Gen::new(8);
    let row = |row: usize| -> Vec<f32> {
        let (mean, factor) = [(0.5, 1.0), (-3.0, 1.0), (2.0, 0.0), (0.0, 1e-6), (1e4, 1e4)][row % 5];
        random.hard(cols).into_iter().map(|v| mean + factor * v).collect()
    };
    (0..rows).flat_map(row).collect()
}

#[test]
fn a_layer_norm_comes_before_the_rotation() {
    const EPS: f32 = 1e-5;
    let mut ran = 0;
    for context in every_tier() {
        for text in ["int4:centred:row:f32:mse", "binary:mse", "int8:row", "ternary:row"] {
            for (rows, cols, block, biased) in
                [(5, 48, Some(16), false), (33, 100, None, true), (7, 384, Some(128), true), (9, 1000, None, false)]
            {
                let format: Format = text.parse().unwrap();
                if !kernel::normalizes(&context, &format, cols, block) {
                    continue;
                }
                ran += 1;
                let what = format!("{format}, {rows} x {cols}, block {block:?}, bias {biased}, {}", context.tier());
                let x = rows_with_means(rows, cols);
                let mut random = Gen::new(9);
                let (w, b) = (random.normals(cols), if biased { random.normals(cols) } else { vec![0.0; cols] });
                let [tensor, weight, bias] = [(&x, rows), (&w, 1), (&b, 1)]
                    .map(|(v, rows)| Tensor::from_f32(&context, v, &[rows, cols]).unwrap());
                let half = kernel::FusedLayerNorm::second(rows);
                let statistics = Tensor::zeros(&context, &[2 * half], DType::F32).unwrap();
                let packed = Packed::empty(&context, format, rows, cols).unwrap();
                let mask = Tensor::zeros(&context, &[rows, cols.div_ceil(32)], DType::U32).unwrap();
                let bound = 1.25f32;
                let norm = kernel::FusedLayerNorm {
                    weight: weight.buffer(),
                    bias: biased.then(|| bias.buffer()),
                    eps: EPS,
                    statistics: statistics.buffer(),
                };
                let options = Options {
                    layer_norm: Some(norm),
                    hadamard: block,
                    mask: Some((mask.buffer(), bound)),
                    ..Options::default()
                };
                quantize(&context, tensor.buffer(), &packed, options).unwrap();

                let [x, w, b] = [&x, &w, &b].map(|v| wide(v));
                let eps = f64::from(EPS);
                let want = layer_norm::forward(&x, &w, &b, eps);
                let rows_errors: Vec<RowError> = x.chunks(cols).map(|row| row_error(row, true, eps)).collect();
                let got = statistics.to_vec().unwrap();
                assert_within(&format!("{what}: mean"), &got[..rows], &want.mean, |r| {
                    2.0 * U32 * want.mean[r].abs() + rows_errors[r].delta
                });
                let second = &got[half..half + rows];
                assert_within(&format!("{what}: rstd"), second, &want.rstd, |r| rows_errors[r].rho * want.rstd[r]);

                // The norm's errors spread over a block, and so do those of the transform's additions.
                let n = block.unwrap_or(1);
                let error_of = |i: usize| rows_errors[i / cols].of_normed(x[i], w[i % cols], b[i % cols], want.out[i]);
                let norm_of = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
                let errors: Vec<f64> = (0..rows * cols)
                    .map(|i| {
                        let block = i / n * n..i / n * n + n;
                        let own = norm_of(&mut block.clone().map(|i| want.out[i]));
                        norm_of(&mut block.map(error_of)) + U32 * (f64::from(n.ilog2()) + 4.0) * own
                    })
                    .collect();
                let values = hadamard(&want.out, n, false);
                let narrow: Vec<f32> = values.iter().map(|v| *v as f32).collect();
                let wanted = PackedMatrix::quantize(format, &narrow, rows, cols, Rounding::Nearest).unwrap();
                let got = packed.to_host(&context).unwrap();
                let mask = mask.to_vec_u32().unwrap();
                for (i, v) in values.iter().enumerate() {
                    let (row, col) = (i / cols, i % cols);
                    let at = format!("{what}: row {row}, column {col}");
                    let scale = got.scale(row, 0, false);
                    let range = row * cols..(row + 1) * cols;
                    // A scale is a norm of its row, or half a step of the largest magnitude, and rounded to its storage.
                    let spread = norm_of(&mut errors[range].iter().copied());
                    let ideal = wanted.scale(row, 0, false);
                    let storage = if format.store() == Store::F16 { common::U16 } else { U32 };
                    let near = 2.0 * spread + (scale_error(format, cols) + 4.0 * storage) * ideal;
                    assert!((scale - ideal).abs() <= near, "{at}: scale {scale}, want {ideal}");
                    // Where there is no scale, codes are those of zero.
                    let [at_scale, error] = [*v, errors[i]].map(|v| if scale == 0.0 { 0.0 } else { v / scale });
                    let d = slack(format, at_scale) + error;
                    let code = got.code(row, col);
                    let codes = [at_scale - d, at_scale + d].map(|v| format.nearest(v, 0));
                    let (low, high) = (codes[0].min(codes[1]), codes[0].max(codes[1]));
                    assert!(low <= code && code <= high, "{at}: {code} for {at_scale}, want {low} to {high}");
                    let bit = mask[row * cols.div_ceil(32) + col / 32] >> (col % 32) & 1 == 1;
                    let limit = f64::from(bound) * scale;
                    if (v.abs() - limit).abs() > errors[i] + 3.0 * U32 * limit {
                        assert_eq!(bit, v.abs() <= limit, "{at}: mask of {v} within {limit}");
                    }
                }
            }
        }
        let format: Format = "int4".parse().unwrap();
        assert!(!kernel::normalizes(&context, &format, 64, None), "groups have no norm");
    }
    if ran == 0 {
        common::skip("a layer norm fused into quantization: no subgroups of a fixed size");
    }
}

#[test]
fn a_layer_norm_that_does_not_go_with_the_rest_is_refused() {
    for context in every_tier() {
        let [rows, cols] = [2, 48];
        let x = Tensor::zeros(&context, &[rows, cols], DType::F32).unwrap();
        let weight = Tensor::from_f32(&context, &[1.0; 48], &[cols]).unwrap();
        let statistics = Tensor::zeros(&context, &[2 * kernel::FusedLayerNorm::second(rows)], DType::F32).unwrap();
        let packed = |text: &str| Packed::empty(&context, text.parse().unwrap(), rows, cols).unwrap();
        let layer_norm =
            kernel::FusedLayerNorm { weight: weight.buffer(), bias: None, eps: 1e-5, statistics: statistics.buffer() };
        let plain = Options { layer_norm: Some(layer_norm), ..Options::default() };
        let run = |text: &str, options: Options<'_>| quantize(&context, x.buffer(), &packed(text), options);
        if !kernel::tiles(&context) {
            assert!(matches!(run("int8:row", plain), Err(Error::Unsupported { .. })), "{}", context.tier());
            continue;
        }
        run("int8:row", plain).unwrap();
        let signs = Signs { seed: 1, op: 0, step: hadamard_kernel::Step::Number(0) };
        let rounding = kernel::Rounding::Stochastic { seed: 0, op: 0, step: Step::Number(0) };
        for (what, options) in [
            ("factor", Options { factor: Some(0.5), ..plain }),
            ("squares", Options { square: true, ..plain }),
            ("signs", Options { signs: Some(&signs), hadamard: Some(16), ..plain }),
            ("nearest", Options { rounding, ..plain }),
            ("rows", Options { division: Some(kernel::Division::Tiles), ..plain }),
        ] {
            let error = run(if what == "squares" { "nvfp4" } else { "int8:row" }, options).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(what), "{what}: {error}");
        }
        for text in ["mxfp4", "int4", "int8:asym", "int4:tensor"] {
            let error = run(text, plain).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{text}: {error}");
        }
        let [short, half] =
            [Tensor::zeros(&context, &[cols - 1], DType::F32), Tensor::zeros(&context, &[64], DType::F32)]
                .map(Result::unwrap);
        for wrong in [
            kernel::FusedLayerNorm { weight: short.buffer(), ..layer_norm },
            kernel::FusedLayerNorm { bias: Some(short.buffer()), ..layer_norm },
            kernel::FusedLayerNorm { statistics: half.buffer(), ..layer_norm },
        ] {
            let error = run("int8:row", Options { layer_norm: Some(wrong), ..Options::default() }).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}

/// What a given scale is stored as.
fn stored(format: Format, scale: f32) -> f64 {
    match format.store() {
        _ if !scale.is_finite() => f64::NAN,
        Store::F16 => half::f16::from_f64(f64::from(scale.abs()).clamp(2f64.powi(-24), 65504.0)).to_f64(),
        _ => f64::from(scale.abs()).max(2f64.powi(-100)),
    }
}

#[test]
fn scales_and_offsets_may_be_given() {
    let random = Uniform { seed: 3, op: 1, step: 2 };
    for context in every_tier() {
        let scalar = |v: f32| Tensor::from_f32(&context, &[v], &[1]).unwrap();
        for (n, text) in [
            "int4:tensor:f32:full",
            "int8:tensor:f32",
            "int3:tensor:centred:f32",
            "binary:tensor",
            "int4:tensor:f16",
            "e2m1:tensor",
            "nf4:tensor",
        ]
        .into_iter()
        .enumerate()
        {
            let format: Format = text.parse().unwrap();
            for (m, [rows, cols]) in [[3, 33], [1, 1], [67, 64]].into_iter().enumerate() {
                for scale in [0.25f32, 0.3, -0.7, 0.0, 1e-38, f32::NAN, f32::NEG_INFINITY] {
                    let dtypes = dtypes(&context);
                    let dtype = dtypes[(n + m) % dtypes.len()];
                    let offset = [None, Some(0.2f32), Some(-1.0)][(n + m) % 3];
                    let stochastic = (n + m) % 4 == 3;
                    let (tensor, x) = floats(&context, &Gen::new(n as u64).hard(rows * cols), &[rows, cols], dtype);
                    let sizes = PackedMatrix::zeros(format, rows, cols).unwrap();
                    let ones = |words: &[u32]| vec![u32::MAX; words.len()];
                    let garbage =
                        PackedMatrix::from_words(format, rows, cols, ones(sizes.codes()), ones(sizes.side())).unwrap();
                    let packed = Packed::from_host(&context, &garbage).unwrap();
                    let (s, o) = (scalar(scale), offset.map(scalar));
                    let rounding = if stochastic {
                        kernel::Rounding::Stochastic { seed: 3, op: 1, step: Step::Number(2) }
                    } else {
                        kernel::Rounding::Nearest
                    };
                    let given = Options {
                        rounding,
                        scale: Some(s.buffer()),
                        offset: o.as_ref().map(Tensor::buffer),
                        ..Options::default()
                    };
                    quantize(&context, tensor.buffer(), &packed, given).unwrap();
                    let got = packed.to_host(&context).unwrap();
                    let what = format!("{format} {rows} x {cols} {dtype} by {scale}, {offset:?}, {}", context.tier());
                    let by = stored(format, scale);
                    let is = got.scale(0, 0, false);
                    assert!(is == by || is.is_nan() && by.is_nan(), "{what}: scale {is:e}, want {by:e}");
                    let mut normed = got.clone();
                    normed.set_norm();
                    assert_eq!(got.side()[..32], normed.side()[..32], "{what}: header");
                    assert_eq!(got.header(Header::Factor), 1.0);
                    assert_eq!(got.side()[4..32], sizes.side()[4..32], "{what}: the rest of the header");
                    for (i, x) in x.iter().enumerate() {
                        let x = x - f64::from(offset.unwrap_or(0.0));
                        let v = if by.is_nan() { 0.0 } else { (x / by).clamp(-1e6, 1e6) };
                        // The difference rounds once.
                        let d = slack(format, v) + if v == 0.0 { 0.0 } else { 12.0 * U32 * v.abs() };
                        let expected = [v - d, v, v + d].map(|v| match stochastic {
                            false => format.nearest(v, 0),
                            true => format.stochastic(v, 0, random.at(i as u32)),
                        });
                        let code = got.code(i / cols, i % cols);
                        assert!(expected.contains(&code), "{what}: {i}: {code} for {v}, want one of {expected:?}");
                    }
                    let mut again = PackedMatrix::zeros(format, rows, cols).unwrap();
                    (0..rows * cols).for_each(|i| again.set_code(i / cols, i % cols, got.code(i / cols, i % cols)));
                    assert_eq!(again.codes(), got.codes(), "{what}: words of codes");
                }
            }
        }
    }
}

#[test]
fn a_given_scale_is_as_one_that_was_computed() {
    for context in every_tier() {
        for text in ["int8:tensor:f32", "ternary", "int4:tensor:centred:f32:mse"] {
            let x = Tensor::from_f32(&context, &Gen::new(3).hard(65 * 36), &[65, 36]).unwrap();
            let [computed, given] = [0; 2].map(|_| Packed::empty(&context, text.parse().unwrap(), 65, 36).unwrap());
            quantize(&context, x.buffer(), &computed, Options::default()).unwrap();
            let computed = computed.to_host(&context).unwrap();
            let scale = Tensor::from_f32(&context, &[f32::from_bits(computed.scale_bits(0, 0))], &[1]).unwrap();
            let options = Options { scale: Some(scale.buffer()), ..Options::default() };
            quantize(&context, x.buffer(), &given, options).unwrap();
            assert_eq!(given.to_host(&context).unwrap(), computed, "{text}");
        }
    }
}

#[test]
fn elements_that_are_no_numbers_beside_a_given_scale() {
    for context in every_tier() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, -f32::NAN, 1.0, 0.0];
        let tensor = Tensor::from_f32(&context, &x, &[1, 8]).unwrap();
        for scale in [0.5f32, 1e-40] {
            for (text, want) in [
                ("int4:tensor:f32", [8, 15, 1, 15, 1, 8]),
                ("int4:tensor:f32:full", [8, 15, 0, 15, 0, 8]),
                ("binary:tensor", [1, 1, 0, 1, 0, 1]),
            ] {
                let packed = Packed::empty(&context, text.parse().unwrap(), 1, 8).unwrap();
                let scale = Tensor::from_f32(&context, &[scale], &[1]).unwrap();
                let options = Options { scale: Some(scale.buffer()), ..Options::default() };
                quantize(&context, tensor.buffer(), &packed, options).unwrap();
                let got = packed.to_host(&context).unwrap();
                assert_eq!([0, 1, 2, 3, 4, 5].map(|col| got.code(0, col)), want, "{text}");
            }
        }
    }
}

#[test]
fn scales_of_tensors_match_their_definitions() {
    use kernel::{Statistic, tensor_scale};
    for context in every_tier() {
        for len in [1, 3, 37, 5000, 140_000] {
            for (dtype, factor) in dtypes(&context).into_iter().flat_map(|d| [(d, 1.0f32), (d, 1e-3)]) {
                let data: Vec<f32> = Gen::new(len as u64).normals(len).iter().map(|v| v * factor).collect();
                let (x, values) = floats(&context, &data, &[len], dtype);
                let mean = values.iter().map(|v| v.abs()).sum::<f64>() / len as f64;
                let rms = (values.iter().map(|v| v * v).sum::<f64>() / len as f64).sqrt();
                for (statistic, want) in [
                    (Statistic::Mean { gain: 0.75, least: 1e-8 }, 0.75 * mean),
                    (Statistic::RootMeanSquare { gain: 1.25, epsilon: 0.5 }, 1.25 * rms + 0.5),
                ] {
                    let out = common::blank(&context, 1, false);
                    tensor_scale(&context, x.buffer(), statistic, out.buffer()).unwrap();
                    let got = f64::from(out.to_vec().unwrap()[0]);
                    // As `scale_error` has it.
                    let bound = (len as f64 + 40.0) * U32 * want;
                    assert!((got - want).abs() <= bound, "{statistic:?} of {len} {dtype}: {got}, want {want}");
                }
            }
        }
        let x = Tensor::zeros(&context, &[7], DType::F32).unwrap();
        let out = common::blank(&context, 1, false);
        tensor_scale(&context, x.buffer(), Statistic::Mean { gain: 2.0, least: 1e-8 }, out.buffer()).unwrap();
        assert_eq!(out.to_vec().unwrap(), [1e-8]);
        assert!(tensor_scale(&context, x.buffer(), Statistic::Mean { gain: 2.0, least: 1e-8 }, x.buffer()).is_err());
    }
}

#[test]
fn scales_are_given_to_formats_that_have_one() {
    let context = &every_tier()[0];
    let x = Tensor::from_f32(context, &[0.0; 64], &[2, 32]).unwrap();
    let [one, two] = [1, 2].map(|n| Tensor::zeros(context, &[n], DType::F32).unwrap());
    let run = |text: &str, scale: Option<&Tensor>, offset: Option<&Tensor>| {
        let packed = Packed::empty(context, text.parse().unwrap(), 2, 32).unwrap();
        let (scale, offset) = (scale.map(Tensor::buffer), offset.map(Tensor::buffer));
        quantize(context, x.buffer(), &packed, Options { scale, offset, ..Options::default() })
    };
    assert!(run("int4:tensor:f32", Some(&one), Some(&one)).is_ok());
    for text in ["int4", "int4:row:f32", "mxfp4", "nvfp4", "nf3:tensor", "int4:tensor:asym"] {
        let error = run(text, Some(&one), None).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(text), "{error}");
    }
    assert!(matches!(run("int4:tensor:f32", Some(&two), None), Err(Error::Shape { .. })));
    assert!(matches!(run("int4:tensor:f32", None, Some(&one)), Err(Error::Invalid { .. })));
}

#[test]
fn mean_squares_of_short_groups_make_scales_in_tiles_too() {
    for context in every_tier() {
        for text in ["mxfp4:mse", "int4:g16:f32:mse:centred", "int8:g32:mse:centred", "e2m1:g16:f16:mse"] {
            let x: Vec<f32> =
                Gen::new(8).hard(9 * 292).iter().zip(0..).map(|(v, i)| v * 2f32.powi(i / 97 - 14)).collect();
            run(&context, text.parse().unwrap(), &x, [9, 292], DType::F32, None, 2.0);
            run(&context, text.parse().unwrap(), &x[..6 * 384], [6, 384], DType::F32, None, 2.0);
        }
    }
}

#[test]
fn a_bound_just_below_the_largest_level_excludes_it() {
    // Quartet's trust is |x / scale| < 6.
    for context in every_tier() {
        let mut x = vec![0.0f32; 32];
        (x[0], x[1], x[2], x[3]) = (6.0, -6.0, 6.0f32.next_down(), 7.5);
        // A root mean square between 1 / 0.487 and 2 / 0.487: the scale is 1.
        let tensor = Tensor::from_f32(&context, &x, &[1, 32]).unwrap();
        let packed = Packed::empty(&context, "mxfp4:mse".parse().unwrap(), 1, 32).unwrap();
        let mask = Tensor::zeros(&context, &[1], DType::U32).unwrap();
        let options = Options { mask: Some((mask.buffer(), 6.0f32.next_down())), ..Options::default() };
        quantize(&context, tensor.buffer(), &packed, options).unwrap();
        assert_eq!(packed.to_host(&context).unwrap().scale(0, 0, false), 1.0);
        assert_eq!(mask.to_vec_u32().unwrap(), [!0b1011]);
    }
}

#[test]
fn empty_matrices_have_a_header() {
    let context = &every_tier()[0];
    for format in formats() {
        for (rows, cols) in [(0, 5), (3, 0)] {
            let x = Tensor::from_f32(context, &[], &[rows, cols]).unwrap();
            let packed = Packed::empty(context, format, rows, cols).unwrap();
            quantize(context, x.buffer(), &packed, Options::default()).unwrap();
            assert_eq!(packed.to_host(context).unwrap(), PackedMatrix::zeros(format, rows, cols).unwrap());
        }
    }
}

#[test]
fn the_norm_may_be_left_out() {
    let context = &every_tier()[0];
    let format: Format = "int4".parse().unwrap();
    let x = Tensor::from_f32(context, &[3.0; 128], &[1, 128]).unwrap();
    let packed = Packed::empty(context, format, 1, 128).unwrap();
    quantize(context, x.buffer(), &packed, Options { skip_norm: true, ..Options::default() }).unwrap();
    assert_eq!(packed.to_host(context).unwrap().side()[..32], format.header());
}

#[test]
fn a_matrix_of_another_context_is_refused_and_is_none_the_worse() {
    let contexts: Vec<_> = every_tier().into_iter().filter(kernel::tiles).collect();
    for context in &contexts {
        let other = &every_tier()[0];
        let x = |context| Tensor::from_f32(context, &[3.0; 128], &[1, 128]).unwrap();
        let packed = Packed::empty(context, "int4:row:f32".parse().unwrap(), 1, 128).unwrap();
        let rows = Options { division: Some(kernel::Division::Rows), ..Options::default() };
        let refused = quantize(other, x(other).buffer(), &packed, rows);
        assert!(matches!(refused, Err(Error::ContextMismatch { .. })), "{refused:?}");
        quantize(context, x(context).buffer(), &packed, rows).unwrap();
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let context = &every_tier()[0];
    let x = Tensor::from_f32(context, &[0.0; 96], &[2, 48]).unwrap();
    let packed = |text: &str, cols| Packed::empty(context, text.parse().unwrap(), 2, cols).unwrap();
    let with = |hadamard| Options { hadamard, ..Options::default() };
    let q = |packed: &Packed, options: Options<'_>| quantize(context, x.buffer(), packed, options);
    assert!(matches!(q(&packed("int4", 47), Options::default()), Err(Error::Shape { .. })));
    assert!(matches!(q(&packed("int4", 48), with(Some(32))), Err(Error::Shape { .. })));
    for block in [0, 8, 24, 512] {
        assert!(matches!(q(&packed("int4", 48), with(Some(block))), Err(Error::Invalid { .. })), "{block}");
    }
    let mask = Tensor::from_u32(context, &[0; 4], &[4]).unwrap();
    let masked = Options { mask: Some((mask.buffer(), 1.0)), ..Options::default() };
    assert!(q(&packed("int4", 48), masked).is_ok());
    assert!(matches!(q(&packed("nf4:dq", 48), masked), Err(Error::Invalid { .. })));
    let short = Tensor::from_u32(context, &[0; 3], &[3]).unwrap();
    let masked = Options { mask: Some((short.buffer(), 1.0)), ..Options::default() };
    assert!(matches!(q(&packed("int4", 48), masked), Err(Error::Shape { .. })));
    let rounding = kernel::Rounding::Stochastic { seed: 0, op: 0, step: Step::State(short.buffer()) };
    assert!(matches!(q(&packed("int4", 48), Options { rounding, ..Options::default() }), Err(Error::Shape { .. })));
}
