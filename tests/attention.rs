//! Attention forward and backward against the float64 reference, by both paths.

mod common;

use common::{Gen, U16, U32, assert_within, blank, every_tier, tensor, wide};
use walsh::kernel::Dropout;
use walsh::kernel::attention::{AttentionDims, AttentionPath, attention, attention_on};
use walsh::kernel::attention_backward::{AttentionGrads, attention_backward, attention_backward_on};
use walsh::reference::attention::{self as reference, Dims};
use walsh::reference::dropout::factors;
use walsh::{Context, ContextOptions, DType, Error, Tensor, Tier};

const SEED: u64 = 0x1234_5678_9abc_def0;
const OP: u32 = 7;
const STEP: u32 = 3;
const MICRO: u32 = 1;

struct Case {
    dims: Dims,
    f16: bool,
    dropout: f64,
}

struct Bounds {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
}

/// Forward error bounds, first order, u = 2^-24. A score carries (D + 8) u of its magnitudes; exp2 is good to 3 + 2 |x| ulp of 2 u each, its
/// argument's rounding adds 2 u |x|; an online softmax multiplies by at most one fading factor per key block, whose exponents add up to the
/// range of the scores. Sums over n terms add n u. An output of type f16 adds half an ulp, 2^-11 relative and 2^-25 absolute.
///
/// On cooperative matrices the weights p f and dS are rounded to f16 (half an ulp, of 2^-24 at least), relative to a row sum of at least 1; a
/// matrix unit may align the 16 products of a step and the sum to the largest of them and truncate, 4 times the error of rounded additions.
fn bounds(case: &Case, path: AttentionPath, qkv: &[f64], dout: &[f64], f: Option<&[f64]>) -> Bounds {
    let Dims { batch, seq, heads, head_dim: d, .. } = case.dims;
    let dims = case.dims;
    let n = seq as f64;
    let scale = 1.0 / (d as f64).sqrt();
    let at = |b: usize, t: usize, part: usize, h: usize| (((b * seq + t) * 3 + part) * heads + h) * d;
    let out_at = |b: usize, t: usize, h: usize| ((b * seq + t) * heads + h) * d;
    let abs_dot = |x: &[f64], i: usize, y: &[f64], j: usize| (0..d).map(|c| (x[i + c] * y[j + c]).abs()).sum::<f64>();
    let dot = |x: &[f64], i: usize, y: &[f64], j: usize| (0..d).map(|c| x[i + c] * y[j + c]).sum::<f64>();
    let elem = if case.f16 { U16 } else { U32 };
    let (narrow, floor, rough) =
        if path == AttentionPath::Coop { (U16, 1.0 / (1u64 << 25) as f64, 4.0) } else { (0.0, 0.0, 1.0) };
    let tiny = if case.f16 { 1.0 / (1u64 << 25) as f64 } else { 1e-30 };
    let (out, _) = reference::attention(qkv, dims, f);
    let mut bounds = Bounds { out: vec![0.0; out.len()], lse: Vec::new(), dqkv: vec![0.0; qkv.len()] };
    let mut grads = vec![0.0; qkv.len()]; // magnitudes of the terms of the gradient
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..seq {
                let (p, lse) = dims.probabilities(qkv, b, t, h);
                let q = at(b, t, 0, h);
                let magnitude: Vec<f64> = (0..p.len()).map(|k| scale * abs_dot(qkv, q, qkv, at(b, k, 1, h))).collect();
                let top = magnitude.iter().copied().fold(0.0, f64::max);
                let score = rough * (d as f64 + 8.0) * U32 * top;
                let weight = score + U32 * (8.0 + 8.0 * 2.0 * top * 1.5 + 10.0 * n);
                let lse_error = weight + U32 * (4.0 * lse.abs() + 4.0 * top + 16.0);
                bounds.lse.push(lse_error);
                let factor = |k: usize| f.map_or(1.0, |f| f[((b * heads + h) * seq + t) * seq.next_multiple_of(4) + k]);
                let o = out_at(b, t, h);
                for i in 0..d {
                    let sum: f64 = (0..p.len()).map(|k| p[k] * factor(k) * qkv[at(b, k, 2, h) + i].abs()).sum();
                    let all: f64 = (0..p.len()).map(|k| qkv[at(b, k, 2, h) + i].abs()).sum();
                    let sums = rough * (2.0 * n + 16.0) * U32;
                    bounds.out[o + i] =
                        (2.0 * weight + sums + narrow) * sum + floor * all + elem * out[o + i].abs() + tiny;
                }
                let delta = dot(dout, o, &out, o);
                let delta_error = (d as f64 + 4.0) * U32 * abs_dot(dout, o, &out, o) + abs_dot(dout, o, &bounds.out, o);
                // The kernel starts from its own out and lse.
                for (k, &weight) in p.iter().enumerate() {
                    let (key, value) = (at(b, k, 1, h), at(b, k, 2, h));
                    let dp = factor(k) * dot(dout, o, qkv, value);
                    let dp_error = rough * (d as f64 + 4.0) * U32 * factor(k) * abs_dot(dout, o, qkv, value);
                    let p_error = score + lse_error + U32 * (10.0 + 4.0 * 1.5 * (top + lse.abs()));
                    let inner = (dp - delta).abs();
                    let ds = weight * inner * scale;
                    let ds_error = weight
                        * scale
                        * ((p_error + 4.0 * U32) * (dp.abs() + delta.abs()).max(inner) + dp_error + delta_error)
                        + narrow * ds
                        + floor;
                    for i in 0..d {
                        bounds.dqkv[q + i] += ds_error * qkv[key + i].abs();
                        bounds.dqkv[key + i] += ds_error * qkv[q + i].abs();
                        bounds.dqkv[value + i] += (weight * factor(k) * (p_error + narrow) + floor) * dout[o + i].abs();
                        grads[q + i] += ds * qkv[key + i].abs();
                        grads[key + i] += ds * qkv[q + i].abs();
                        grads[value + i] += weight * factor(k) * dout[o + i].abs();
                    }
                }
            }
        }
    }
    for (bound, sum) in bounds.dqkv.iter_mut().zip(&grads) {
        *bound += (rough * (n + 8.0) * U32 + elem) * sum + tiny;
    }
    bounds
}

/// A step state.
fn state(context: &Context) -> Tensor {
    let mut state = vec![0u32; 16];
    state[0] = STEP;
    Tensor::from_u32(context, &state, &[16]).unwrap()
}

fn dropout_of(p: f64, state: &Tensor) -> Option<Dropout<'_>> {
    let dropout = Dropout { p: p as f32, seed: SEED, op: OP, micro: MICRO, state: state.buffer() };
    (p > 0.0).then_some(dropout)
}

fn check(context: &Context, path: AttentionPath, case: &Case, seed: u64) {
    let Dims { batch, seq, heads, head_dim, .. } = case.dims;
    let mut gen_ = Gen::new(seed);
    let width = heads * head_dim;
    // Queries and keys with outliers, the first token all zero.
    let mut qkv: Vec<f32> = gen_.hard(batch * seq * 3 * width).iter().map(|v| v * 0.5).collect();
    qkv[..3 * width].fill(0.0);
    let dout = gen_.hard(batch * seq * width);
    check_values(context, Some(path), case, qkv, dout);
}

/// By the path that is chosen where none is given.
fn check_values(context: &Context, path: Option<AttentionPath>, case: &Case, mut qkv: Vec<f32>, mut dout: Vec<f32>) {
    let Case { dims, f16, dropout } = *case;
    let Dims { batch, seq, heads, head_dim, causal } = dims;
    let what = format!("{} {path:?} {dims:?} f16 {f16} dropout {dropout}", context.tier());
    let qkv_t = tensor(context, &mut qkv, f16);
    let dout_t = tensor(context, &mut dout, f16);
    let (out_t, dqkv_t) = (blank(context, dout.len(), f16), blank(context, qkv.len(), f16));
    let lse_t = blank(context, batch * heads * seq, false);
    let state = state(context);
    let drop = dropout_of(dropout, &state);
    let sizes = AttentionDims { batch, seq, heads, head_dim, causal };
    let [qkv_b, out_b, lse_b] = [&qkv_t, &out_t, &lse_t].map(Tensor::buffer);
    match path {
        Some(path) => attention_on(context, qkv_b, out_b, lse_b, sizes, drop, path).unwrap(),
        None => attention(context, qkv_b, out_b, lse_b, sizes, drop).unwrap(),
    }
    let grads = AttentionGrads {
        qkv: qkv_t.buffer(),
        out: out_t.buffer(),
        dout: dout_t.buffer(),
        lse: lse_t.buffer(),
        dqkv: dqkv_t.buffer(),
    };
    match path {
        Some(path) => attention_backward_on(context, grads, sizes, drop, path).unwrap(),
        None => attention_backward(context, grads, sizes, drop).unwrap(),
    }

    let (qkv, dout) = (wide(&qkv), wide(&dout));
    let f = drop.map(|d| factors(batch * heads * seq * seq.next_multiple_of(4), f64::from(d.p), SEED, OP, STEP, MICRO));
    let (out, lse) = reference::attention(&qkv, dims, f.as_deref());
    let grad = reference::attention_backward(&qkv, &dout, dims, f.as_deref());
    let path = path.unwrap_or_else(|| AttentionPath::of(context, qkv_t.dtype(), head_dim, drop));
    let bounds = bounds(case, path, &qkv, &dout, f.as_deref());
    assert_within(&format!("lse {what}"), &lse_t.to_vec().unwrap(), &lse, |i| bounds.lse[i]);
    assert_within(&format!("out {what}"), &out_t.to_vec().unwrap(), &out, |i| bounds.out[i]);
    assert_within(&format!("dqkv {what}"), &dqkv_t.to_vec().unwrap(), &grad, |i| bounds.dqkv[i]);
}

fn dims(batch: usize, seq: usize, heads: usize, head_dim: usize, causal: bool) -> Dims {
    Dims { batch, seq, heads, head_dim, causal }
}

fn cases(path: AttentionPath, tier: Tier) -> Vec<Case> {
    let case = |dims, f16, dropout| Case { dims, f16, dropout };
    let mut cases = Vec::new();
    if path == AttentionPath::Coop {
        for seq in [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 131, 256] {
            for (width, causal, dropout) in
                [(32, seq % 2 == 0, 0.0), (64, true, 0.2), (64, false, 0.0), (128, seq % 2 == 1, 0.25)]
            {
                cases.push(case(dims(1 + seq % 2, seq, 1 + seq % 3, width, causal), true, dropout));
            }
        }
        return cases;
    }
    for seq in [1, 2, 7, 8, 9, 31, 63, 64, 65, 131] {
        cases.push(case(dims(1 + seq % 2, seq, 1 + seq % 3, 32, seq % 5 != 1), false, 0.0));
    }
    // Wide heads by rows with subgroup operations take a second each to compile on a software adapter, and are the same code as narrow ones.
    let slow = path == AttentionPath::Rows && tier > Tier::Baseline;
    let widths: &[usize] = if slow { &[16, 48, 64] } else { &[16, 48, 64, 96, 128] };
    for &width in widths {
        cases.push(case(dims(1, 67, 2, width, true), false, 0.0));
    }
    cases.push(case(dims(1, 70, 2, 32, false), false, 0.25));
    cases.push(case(dims(2, 66, 1, 32, true), true, 0.0));
    cases
}

fn run(path: AttentionPath) {
    for context in every_tier() {
        if path == AttentionPath::Coop && context.tier() < walsh::Tier::Coop {
            common::skip(&format!("cooperative matrices on {}", context.capabilities().adapter.name));
            continue;
        }
        for (seed, case) in cases(path, context.tier()).iter().enumerate() {
            if case.f16 && !context.capabilities().f16 {
                common::skip(&format!("f16 on {}", context.capabilities().adapter.name));
                continue;
            }
            check(&context, path, case, seed as u64);
        }
    }
}

#[test]
fn rows_match_the_reference() {
    run(AttentionPath::Rows);
}

#[test]
fn tiles_match_the_reference() {
    run(AttentionPath::Tiles);
}

#[test]
fn coop_matches_the_reference() {
    run(AttentionPath::Coop);
}

/// Contexts with cooperative matrices, be they emulated.
fn coop() -> Vec<Context> {
    let options = ContextOptions::default().emulate_matrices().self_test(false);
    let all = (0..Context::adapters().len()).map(|n| options.clone().adapter(format!("#{n}")));
    all.map(|options| Context::with_options(&options).unwrap()).filter(|c| c.tier() == Tier::Coop).collect()
}

#[test]
fn a_dropout_that_f16_cannot_hold_is_for_other_kernels() {
    let contexts = coop();
    if contexts.is_empty() {
        common::skip("attention with much dropout: no cooperative matrices, not even emulated ones");
    }
    for context in contexts {
        let (seq, width) = (128, 32);
        // Scores of 16 keys that are 0 and then of some near 8, base 2: weights of 2^7.7 relative to the first, times 128 or 500.
        let mut gen_ = Gen::new(3);
        let (mut qkv, dout) = (gen_.normals(seq * 3 * width), gen_.normals(seq * width));
        for (t, token) in qkv.chunks_mut(3 * width).enumerate() {
            token[..width].fill(1.0);
            token[width..2 * width].fill(if t < 16 { 0.0 } else { 0.9 + 0.04 * (t % 2) as f32 });
        }
        for dropout in [127.0 / 128.0, 0.998] {
            let case = Case { dims: dims(1, seq, 1, width, false), f16: true, dropout };
            check_values(&context, None, &case, qkv.clone(), dout.clone());
        }
        let state = state(&context);
        let of = |p: f64| AttentionPath::of(&context, DType::F16, width, dropout_of(p, &state));
        assert_eq!([0.0, 0.2, 127.0 / 128.0].map(of), [AttentionPath::Coop; 3]);
        assert_ne!(of(0.993), AttentionPath::Coop);
        let [qkv, out, lse] = [(3 * width, true), (width, true), (1, false)].map(|(n, f16)| blank(&context, n, f16));
        let sizes = AttentionDims { batch: 1, seq: 1, heads: 1, head_dim: width, causal: true };
        let [qkv, out, lse] = [&qkv, &out, &lse].map(Tensor::buffer);
        let refused = attention_on(&context, qkv, out, lse, sizes, dropout_of(0.998, &state), AttentionPath::Coop);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
}

#[test]
fn a_token_depends_on_no_later_one() {
    for context in every_tier() {
        for path in [AttentionPath::Rows, AttentionPath::Tiles, AttentionPath::Coop] {
            let coop = path == AttentionPath::Coop;
            if coop && context.tier() < walsh::Tier::Coop {
                continue;
            }
            let sizes = AttentionDims { batch: 1, seq: 70, heads: 2, head_dim: 32, causal: true };
            let mut qkv = Gen::new(5).normals(70 * 3 * 64);
            let run = |qkv: &[f32]| {
                let qkv = tensor(&context, &mut qkv.to_vec(), coop);
                let (out, lse) = (blank(&context, 70 * 64, coop), blank(&context, 140, false));
                attention_on(&context, qkv.buffer(), out.buffer(), lse.buffer(), sizes, None, path).unwrap();
                out.to_vec().unwrap()
            };
            let before = run(&qkv);
            assert_eq!(before, run(&qkv), "the same input gives the same bits");
            qkv[65 * 192..].iter_mut().for_each(|v| *v = -*v * 100.0);
            let after = run(&qkv);
            assert_eq!(before[..65 * 64], after[..65 * 64], "{path:?}");
            assert_ne!(before[65 * 64..], after[65 * 64..], "{path:?}");
        }
    }
}

#[test]
fn reference_backward_matches_central_differences() {
    for (causal, dropout) in [(true, 0.0), (false, 0.3)] {
        let dims = dims(1, 5, 2, 4, causal);
        let mut gen_ = Gen::new(11);
        let (qkv, dout) = (wide(&gen_.normals(5 * 24)), wide(&gen_.normals(5 * 8)));
        let f = factors(2 * 5 * 8, dropout, SEED, OP, STEP, MICRO);
        let loss = |qkv: &[f64]| {
            let (out, _) = reference::attention(qkv, dims, Some(&f));
            out.iter().zip(&dout).map(|(o, d)| o * d).sum::<f64>()
        };
        let grad = reference::attention_backward(&qkv, &dout, dims, Some(&f));
        let h = 1e-5;
        for i in 0..qkv.len() {
            let mut x = qkv.clone();
            x[i] += h;
            let up = loss(&x);
            x[i] -= 2.0 * h;
            let difference = (up - loss(&x)) / (2.0 * h);
            // Third derivatives of order 10 times h^2 / 6, and rounding of order 1e-15 / h.
            assert!((difference - grad[i]).abs() < 1e-8, "{i}: {difference} and {}", grad[i]);
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let context = &every_tier()[0];
    let qkv = blank(context, 4 * 3 * 20, false);
    let (out, lse) = (blank(context, 4 * 20, false), blank(context, 4, false));
    let call = |sizes, lse: &Tensor| {
        let path = AttentionPath::of(context, DType::F32, 16, None);
        attention_on(context, qkv.buffer(), out.buffer(), lse.buffer(), sizes, None, path)
    };
    let sizes = AttentionDims { batch: 1, seq: 4, heads: 1, head_dim: 20, causal: true };
    assert!(matches!(call(sizes, &lse), Err(Error::Shape { .. })), "head_dim 20");
    let sizes = AttentionDims { heads: 2, head_dim: 16, ..sizes };
    assert!(matches!(call(sizes, &lse), Err(Error::Shape { .. })), "qkv too short");
    assert_eq!(lse.dtype(), DType::F32);
}
