//! Gradients of learned scales and offsets against float64, and the definition against differences.

mod common;

use common::{Gen, U32, every_tier, floats};
use walsh::format::{Format, Grid};
use walsh::kernel::learned_scale_backward::{Clip, LearnedScale, Outputs, learned_scale_backward};
use walsh::reference::learned_scale_backward::{Learned, learned_scale_backward as reference};
use walsh::{Context, DType, Error, Tensor};

const GRIDS: [&str; 7] = [
    "int8:tensor:f32:full",
    "int4:tensor:f32",
    "int3:tensor:f32:centred",
    "int2:tensor:f32:full",
    "binary:tensor",
    "int8:tensor:f32:centred",
    "int5:tensor:f32:full",
];

fn grid(text: &str) -> Grid {
    text.parse::<Format>().unwrap().grid()
}

fn learned(grid: Grid, clip: Clip, scale: f64, offset: f64) -> Learned {
    let half = 2f64.powi(grid.bits() as i32 - 1);
    let (low, centre) = match grid {
        Grid::Int { full: false, .. } => (1.0 - half, 0.0),
        Grid::Int { .. } => (-half, 0.0),
        _ => (-half, 0.5),
    };
    // The scale is a magnitude that is no less than 2^-100.
    let scale = scale.abs().max(2f64.powi(-100));
    Learned { scale, offset, low, high: half - 1.0, centre, rounded_first: clip == Clip::AfterRounding }
}

struct Case {
    grid: Grid,
    clip: Clip,
    scale: f32,
    offset: Option<f32>,
    factor: f32,
    types: [DType; 2],
}

/// Runs on blanks, then once more on top of that, and compares with float64.
#[track_caller]
fn compare(ctx: &Context, case: &Case, x: &[f32], dy: &[f32]) {
    let len = x.len();
    let what = format!(
        "{:?} {:?} scale {} offset {:?} of {len} {:?} on {}, {}",
        case.grid,
        case.clip,
        case.scale,
        case.offset,
        case.types,
        ctx.capabilities().adapter.name,
        ctx.tier()
    );
    let (tx, x) = floats(ctx, x, &[len], case.types[0]);
    let (tdy, dy) = floats(ctx, dy, &[len], case.types[1]);
    let scalar = |v: f32| Tensor::from_f32(ctx, &[v], &[1]).unwrap();
    let (scale, offset) = (scalar(case.scale), case.offset.map(scalar));
    let (dx, ds) = (common::blank(ctx, len, case.types[1] == DType::F16), common::blank(ctx, 1, false));
    let doffset = case.offset.map(|_| common::blank(ctx, 1, false));
    let spec = LearnedScale {
        grid: case.grid,
        clip: case.clip,
        scale: scale.buffer(),
        offset: offset.as_ref().map(Tensor::buffer),
        factor: case.factor,
    };
    let definition = learned(case.grid, case.clip, case.scale.into(), case.offset.unwrap_or(0.0).into());
    let sign = if case.scale.is_sign_negative() { -1.0 } else { 1.0 };
    let (want_dx, want_s, want_offset) = reference(&x, &dy, definition, case.factor.into());

    // Where rounding may take either side, and what the sums may be off by: x - offset, a reciprocal of 2.5 ulp and two products, and the
    // centre.
    let (mut either, mut slack, mut slack_offset) = (vec![false; len], 0.0, 0.0);
    let (mut size, mut size_offset) = (0.0, 0.0);
    for i in 0..len {
        let place = definition.place(x[i]);
        let error = 12.0 * U32 * (place.abs() + 1.0);
        let margin = if definition.rounded_first { 0.5 } else { 0.0 };
        let near = |at: f64| (place - at).abs() <= error;
        either[i] = near(definition.low - margin) || near(definition.high + margin);
        let [_, by_scale, by_offset] = definition.derivatives(x[i]);
        let tie = near(place.floor() + 0.5);
        let span = definition.high - definition.low + 1.0;
        let inside = definition.inside(place);
        slack += dy[i].abs()
            * if either[i] {
                span
            } else if tie && inside {
                1.0 + error
            } else if inside {
                error
            } else {
                0.0
            };
        slack_offset += if either[i] { dy[i].abs() } else { 0.0 };
        size += (dy[i] * by_scale).abs();
        size_offset += (dy[i] * by_offset).abs();
    }
    // Sums of 64, sums of those by an invocation, of a workgroup, of up to 256 workgroups one after another; each term rounds twice, then
    // the factor.
    let steps = (64 + 8 + (len >> 19) + 16 + 256 + 3) as f64;
    let factor = f64::from(case.factor);
    for (times, accumulate) in [(1.0, false), (2.0, true)] {
        let out = Outputs {
            dx: dx.buffer(),
            accumulate,
            scale: ds.buffer(),
            offset: doffset.as_ref().map(Tensor::buffer),
            accumulate_scalars: accumulate,
        };
        learned_scale_backward(ctx, tx.buffer(), tdy.buffer(), spec, out).unwrap();
        let got = dx.to_vec().unwrap();
        for i in 0..len {
            let (got, want) = (f64::from(got[i]), times * want_dx[i]);
            // Twice a number is exact.
            let fits = got == want || either[i] && (got == 0.0 || got == times * dy[i]);
            assert!(fits, "{what}: dx[{i}] {got}, want {want} for x {} dy {}", x[i], dy[i]);
        }
        let scalars = [
            Some((&ds, want_s * sign, slack + steps * U32 * size)),
            doffset.as_ref().map(|d| (d, want_offset, slack_offset + steps * U32 * size_offset)),
        ];
        for (name, (tensor, want, bound)) in ["ds", "d_offset"].into_iter().zip(scalars.into_iter().flatten()) {
            let got = f64::from(tensor.to_vec().unwrap()[0]);
            let bound = times * factor * (bound + 1e-37) + 2.0 * U32 * times * want.abs();
            assert!((got - times * want).abs() <= bound, "{what}: {name} {got}, want {} +- {bound:e}", times * want);
        }
    }
}

#[test]
fn gradients_match_the_definition() {
    for ctx in every_tier() {
        for (n, text) in GRIDS.into_iter().enumerate() {
            let grid = grid(text);
            for (m, clip) in [Clip::BeforeRounding, Clip::AfterRounding].into_iter().enumerate() {
                let len = [1, 3, 31, 257, 1000, 2048, 5003][(n + 3 * m) % 7];
                let mut g = Gen::new((10 * n + m) as u64);
                // A third of the elements or so is outside.
                let scale = (2.0 / f64::from(1u32 << (grid.bits() - 1))) as f32;
                let types = common::dtypes(&ctx);
                for (k, x_type) in types.iter().enumerate() {
                    for dy_type in &types {
                        let offset = [None, Some(0.4f32)][(k + m) % 2];
                        let case = Case { grid, clip, scale, offset, factor: 0.125, types: [*x_type, *dy_type] };
                        compare(&ctx, &case, &g.hard(len), &g.hard(len));
                    }
                }
            }
        }
    }
}

#[test]
fn ends_and_middles_are_where_the_rules_say() {
    // A power of two as scale: every number here is exact.
    for ctx in every_tier() {
        for text in ["int3:tensor:f32:full", "int3:tensor:f32:centred", "binary:tensor"] {
            let grid = grid(text);
            for clip in [Clip::BeforeRounding, Clip::AfterRounding] {
                let x: Vec<f32> = (-48..=48).map(|i| i as f32 / 32.0).collect();
                let definition = learned(grid, clip, 0.25, 0.0);
                for (i, v) in x.iter().enumerate() {
                    let mut dy = vec![0.0; x.len()];
                    dy[i] = 3.0;
                    let [tx, tdy] = [&x, &dy].map(|v| Tensor::from_f32(&ctx, v, &[v.len()]).unwrap());
                    let scale = Tensor::from_f32(&ctx, &[0.25], &[1]).unwrap();
                    let (dx, ds) = (common::blank(&ctx, x.len(), false), common::blank(&ctx, 1, false));
                    let spec = LearnedScale { grid, clip, scale: scale.buffer(), offset: None, factor: 1.0 };
                    let out = Outputs {
                        dx: dx.buffer(),
                        accumulate: false,
                        scale: ds.buffer(),
                        offset: None,
                        accumulate_scalars: false,
                    };
                    learned_scale_backward(&ctx, tx.buffer(), tdy.buffer(), spec, out).unwrap();
                    let [by_x, by_scale, _] = definition.derivatives(f64::from(*v));
                    assert_eq!(f64::from(dx.to_vec().unwrap()[i]), 3.0 * by_x, "{text} {clip:?} {v}");
                    assert_eq!(f64::from(ds.to_vec().unwrap()[0]), 3.0 * by_scale, "{text} {clip:?} {v}");
                }
            }
        }
    }
}

#[test]
fn long_sums_stay_accurate() {
    for ctx in every_tier() {
        let len = (1 << 21) + 13;
        let mut g = Gen::new(4);
        // All terms of one sign: errors add up.
        let x: Vec<f32> = (0..len).map(|_| 3.0 + g.unit() as f32).collect();
        let dy: Vec<f32> = (0..len).map(|_| 0.5 + g.unit() as f32).collect();
        let case = Case {
            grid: grid("int4:tensor:f32"),
            clip: Clip::BeforeRounding,
            scale: 0.25,
            offset: Some(0.1),
            factor: 1e-3,
            types: [DType::F32; 2],
        };
        compare(&ctx, &case, &x, &dy);
    }
}

#[test]
fn scales_that_are_no_positive_numbers() {
    for ctx in every_tier() {
        let mut g = Gen::new(6);
        let (x, dy) = (g.normals(300), g.normals(300));
        for scale in [-0.25f32, 0.0, 1e-40, -1e-35, 1e30] {
            for offset in [None, Some(-0.5)] {
                let types = [DType::F32; 2];
                let case = Case {
                    grid: grid("int4:tensor:f32:full"),
                    clip: Clip::BeforeRounding,
                    scale,
                    offset,
                    factor: 1.0,
                    types,
                };
                compare(&ctx, &case, &x, &dy);
            }
        }
        for scale in [f32::NAN, f32::INFINITY] {
            let [tx, tdy] = [&x, &dy].map(|v| Tensor::from_f32(&ctx, v, &[300]).unwrap());
            let (dx, ds) = (common::blank(&ctx, 300, false), common::blank(&ctx, 1, false));
            let scale = Tensor::from_f32(&ctx, &[scale], &[1]).unwrap();
            let (clip, factor, offset) = (Clip::BeforeRounding, 1.0, None);
            let spec = LearnedScale { grid: grid("int4:tensor:f32"), clip, scale: scale.buffer(), offset, factor };
            let (accumulate, accumulate_scalars) = (false, false);
            let out = Outputs { dx: dx.buffer(), accumulate, scale: ds.buffer(), offset, accumulate_scalars };
            learned_scale_backward(&ctx, tx.buffer(), tdy.buffer(), spec, out).unwrap();
            assert_eq!(dx.to_vec().unwrap(), dy);
            assert!(ds.to_vec().unwrap()[0].abs() < 1e-30);
        }
    }
}

#[test]
fn elements_that_are_no_numbers_count_as_encoding_has_them() {
    for ctx in every_tier() {
        let x = Tensor::from_f32(&ctx, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.3], &[5]).unwrap();
        let dy = Tensor::from_f32(&ctx, &[1.0, 10.0, 100.0, 1000.0, 0.0], &[5]).unwrap();
        let [scale, offset] = [0.5, 0.25].map(|v| Tensor::from_f32(&ctx, &[v], &[1]).unwrap());
        let dx = common::blank(&ctx, 5, false);
        let [ds, doffset] = [0; 2].map(|_| common::blank(&ctx, 1, false));
        let spec = LearnedScale {
            grid: grid("int4:tensor:f32:full"),
            clip: Clip::BeforeRounding,
            scale: scale.buffer(),
            offset: Some(offset.buffer()),
            factor: 1.0,
        };
        let out = Outputs {
            dx: dx.buffer(),
            accumulate: false,
            scale: ds.buffer(),
            offset: Some(doffset.buffer()),
            accumulate_scalars: false,
        };
        learned_scale_backward(&ctx, x.buffer(), dy.buffer(), spec, out).unwrap();
        assert_eq!(dx.to_vec().unwrap(), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(ds.to_vec().unwrap(), [7.0 * 1010.0 - 8.0 * 100.0]);
        assert_eq!(doffset.to_vec().unwrap(), [1110.0]);
    }
}

#[test]
fn the_definition_is_the_derivative_with_frozen_rounding() {
    for text in GRIDS {
        for clip in [Clip::BeforeRounding, Clip::AfterRounding] {
            let grid = grid(text);
            let (scale, offset) = (3.0 / 2f64.powi(grid.bits() as i32), 0.3);
            let at = learned(grid, clip, scale, offset);
            let mut g = Gen::new(9);
            // Not so near to an end that a difference would cross it.
            let x: Vec<f64> = g
                .normals(40)
                .iter()
                .map(|v| f64::from(*v))
                .filter(|v| {
                    let place = at.place(*v);
                    (place - at.low).abs() > 1e-3 && (place - at.high).abs() > 1e-3
                })
                .collect();
            let dy: Vec<f64> = g.normals(x.len()).iter().map(|v| f64::from(*v)).collect();
            // What rounding adds, and which elements are beyond which end, stay as they are.
            let frozen: Vec<(bool, f64)> = x
                .iter()
                .map(|v| {
                    let place = at.place(*v);
                    let level = place.round_ties_even();
                    (at.inside(place), if at.inside(place) { level - place } else { level.clamp(at.low, at.high) })
                })
                .collect();
            let loss = |v: &[f64]| -> f64 {
                let moved = Learned { scale: v[0], offset: v[1], ..at };
                let value = |x: f64, (inside, fixed): (bool, f64)| {
                    let level = if inside { moved.place(x) + fixed } else { fixed };
                    moved.scale * (level + moved.centre) + moved.offset
                };
                v[2..].iter().zip(&frozen).zip(&dy).map(|((x, f), dy)| dy * value(*x, *f)).sum()
            };
            let values: f64 = x.iter().zip(&dy).map(|(x, dy)| dy * at.value(*x)).sum();
            let point = [&[scale, offset], x.as_slice()].concat();
            assert!((loss(&point) - values).abs() < 1e-12 * (1.0 + values.abs()), "{text}: {}", loss(&point));
            let (dx, ds, doffset) = reference(&x, &dy, at, 1.0);
            common::assert_gradient(text, &point, &[&[ds, doffset], dx.as_slice()].concat(), loss);
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let ctx = &every_tier()[0];
    let tensor = |len: usize| Tensor::zeros(ctx, &[len], DType::F32).unwrap();
    let (x, dy, dx, one, ds) = (tensor(8), tensor(8), tensor(8), tensor(1), tensor(1));
    let run = |grid: Grid, dy: &Tensor, scale: &Tensor, offset: Option<&Tensor>| {
        let spec = LearnedScale {
            grid,
            clip: Clip::BeforeRounding,
            scale: scale.buffer(),
            offset: offset.map(Tensor::buffer),
            factor: 1.0,
        };
        let (accumulate, accumulate_scalars) = (false, false);
        let out = Outputs { dx: dx.buffer(), accumulate, scale: ds.buffer(), offset: None, accumulate_scalars };
        learned_scale_backward(ctx, x.buffer(), dy.buffer(), spec, out)
    };
    let int4 = grid("int4");
    assert!(run(int4, &dy, &one, None).is_ok());
    assert!(matches!(run(int4, &tensor(7), &one, None), Err(Error::Shape { .. })));
    assert!(matches!(run(int4, &dy, &tensor(2), None), Err(Error::Shape { .. })));
    assert!(matches!(run(int4, &dy, &one, Some(&one)), Err(Error::Shape { .. })));
    for text in ["mxfp4", "nf4", "int4:asym"] {
        assert!(matches!(run(grid(text), &dy, &one, None), Err(Error::Invalid { .. })), "{text}");
    }
}
