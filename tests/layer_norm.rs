//! Layer norm and RMS norm, forward and backward, against their float64 definitions.

mod common;

use common::bounds::{RowError, row_error};
use common::{Gen, U32, assert_gradient, assert_within, dtypes, floats, stored};
use walsh::kernel::layer_norm::{ParameterGradients, layer_norm, layer_norm_backward};
use walsh::kernel::rms_norm::{rms_norm, rms_norm_backward};
use walsh::reference;
use walsh::{Context, DType, Tensor};

const EPS: f32 = 1e-5;

/// Widths of one, with and without vec4, below, at and above what an invocation keeps in registers (32, 128 on a software adapter, 1024,
/// 4096 elsewhere); more rows than there are chunks.
const SHAPES: [[usize; 2]; 9] =
    [[3, 1], [5, 31], [18, 33], [19, 128], [37, 132], [16, 384], [2, 1027], [2, 4100], [2203, 8]];

/// Rows with outliers, one of zeros, and one whose mean is large against its deviation.
fn input(rng: &mut Gen, [rows, cols]: [usize; 2]) -> Vec<f32> {
    let mut x = rng.hard(rows * cols);
    x[..cols].fill(0.0);
    for v in &mut x[cols..2 * cols] {
        *v += 1000.0;
    }
    x
}

fn check(
    context: &Context,
    shape: [usize; 2],
    centered: bool,
    bias: bool,
    [input_dtype, dtype]: [DType; 2],
    accumulate: bool,
    rng: &mut Gen,
) {
    let [rows, cols] = shape;
    let what = format!("{:?} {shape:?} centered {centered} bias {bias} {input_dtype} {dtype}", context.tier());
    let input = input(rng, shape);
    let (x, x64) = floats(context, &input, &shape, input_dtype);
    let (weight, w64) = floats(context, &rng.normals(cols), &[cols], DType::F32);
    let (bias_tensor, b64) = floats(context, &rng.normals(cols), &[cols], DType::F32);
    let b64 = if bias { b64 } else { vec![0.0; cols] };
    // What the outputs hold before shows where they were not written.
    let (out, _) = floats(context, &vec![3e4; rows * cols], &shape, dtype);
    let (mean, _) = floats(context, &vec![1e30; rows], &[rows], DType::F32);
    let (rstd, _) = floats(context, &vec![1e30; rows], &[rows], DType::F32);
    let bias_buffer = bias.then(|| bias_tensor.buffer());
    if centered {
        layer_norm(
            context,
            x.buffer(),
            weight.buffer(),
            bias_buffer,
            out.buffer(),
            mean.buffer(),
            rstd.buffer(),
            shape,
            EPS,
        )
        .unwrap();
    } else {
        rms_norm(context, x.buffer(), weight.buffer(), out.buffer(), rstd.buffer(), shape, EPS).unwrap();
    }
    let errors: Vec<RowError> = x64.chunks_exact(cols).map(|row| row_error(row, centered, f64::from(EPS))).collect();
    let want = if centered {
        let want = reference::layer_norm::forward(&x64, &w64, &b64, f64::from(EPS));
        assert_within(&format!("{what} mean"), &mean.to_vec().unwrap(), &want.mean, |r| {
            2.0 * U32 * want.mean[r].abs() + errors[r].delta
        });
        assert_within(&format!("{what} rstd"), &rstd.to_vec().unwrap(), &want.rstd, |r| errors[r].rho * want.rstd[r]);
        want.out
    } else {
        let (want, rstds) = reference::rms_norm::forward(&x64, &w64, f64::from(EPS));
        assert_within(&format!("{what} rstd"), &rstd.to_vec().unwrap(), &rstds, |r| errors[r].rho * rstds[r]);
        want
    };
    assert_within(&format!("{what} out"), &out.to_vec().unwrap(), &want, |i| {
        let error = errors[i / cols].of_normed(x64[i], w64[i % cols], b64[i % cols], want[i]);
        error + stored(dtype, want[i].abs() + error)
    });

    // A row of zeros multiplies gradients by 316, which f16 must hold.
    let size = if input_dtype == DType::F16 { 0.0625 } else { 1.0 };
    let dy: Vec<f32> = rng.hard(rows * cols).iter().map(|v| size * v).collect();
    let (dy, dy64) = floats(context, &dy, &shape, dtype);
    let old_dx = rng.normals(rows * cols);
    let old_dw = rng.normals(cols);
    let (dx, old_dx) = floats(context, &old_dx, &shape, input_dtype);
    let dweight = Tensor::from_f32(context, &old_dw, &[cols]).unwrap();
    let dbias = Tensor::from_f32(context, &old_dw, &[cols]).unwrap();
    let old_dw = common::wide(&old_dw);
    let want = if centered {
        let gradients = ParameterGradients { weight: dweight.buffer(), bias: bias.then(|| dbias.buffer()), accumulate };
        let inputs = [dy.buffer(), x.buffer(), weight.buffer(), mean.buffer(), rstd.buffer()];
        let [dy, x, weight, mean, rstd] = inputs;
        layer_norm_backward(context, dy, x, weight, mean, rstd, dx.buffer(), accumulate, gradients, shape).unwrap();
        reference::layer_norm::backward(&dy64, &x64, &w64, f64::from(EPS))
    } else {
        let (dy, x, w, rstd) = (dy.buffer(), x.buffer(), weight.buffer(), rstd.buffer());
        rms_norm_backward(context, dy, x, w, rstd, dx.buffer(), accumulate, dweight.buffer(), accumulate, shape)
            .unwrap();
        let (dx, dweight) = reference::rms_norm::backward(&dy64, &x64, &w64, f64::from(EPS));
        reference::layer_norm::Backward { dx, dweight, dbias: Vec::new() }
    };
    let old = |v: f64| if accumulate { v } else { 0.0 };
    let add =
        |want: &[f64], before: &[f64]| -> Vec<f64> { want.iter().zip(before).map(|(w, o)| w + old(*o)).collect() };
    // Errors of xhat, and per row those of the two means; sums of n products in any order.
    let n = cols as f64;
    let mut dx_bound = vec![0.0; rows * cols];
    let mut dw_bound = vec![0.0; cols];
    let mut db_bound = vec![0.0; cols];
    for (r, e) in errors.iter().enumerate() {
        let at = |c: usize| r * cols + c;
        let normed = |c: usize| ((x64[at(c)] - e.mean) * e.rstd).abs();
        let normed_error = |c: usize| {
            let d = (x64[at(c)] - e.mean).abs();
            e.rstd * (e.delta + 2.0 * U32 * e.mean.abs() + 2.0 * U32 * d) + normed(c) * (e.rho + 2.0 * U32)
        };
        let g = |c: usize| (dy64[at(c)] * w64[c]).abs();
        let mean_g = (0..cols).map(g).sum::<f64>() / n;
        let mean_gx = (0..cols).map(|c| g(c) * normed(c)).sum::<f64>() / n;
        let error_g = if centered { (n + 4.0) * U32 * mean_g } else { 0.0 };
        let error_gx = (n + 6.0) * U32 * mean_gx + (0..cols).map(|c| g(c) * normed_error(c)).sum::<f64>() / n;
        for c in 0..cols {
            let size = g(c) + if centered { mean_g } else { 0.0 } + normed(c) * mean_gx;
            let inner = error_g + normed(c) * error_gx + normed_error(c) * mean_gx + 6.0 * U32 * size;
            dx_bound[at(c)] = e.rstd * (inner + size * e.rho) + 2.0 * U32 * old(old_dx[at(c)]).abs();
            let dy = dy64[at(c)].abs();
            dw_bound[c] += dy * normed_error(c) + (rows as f64 + 6.0) * U32 * dy * normed(c);
            db_bound[c] += (rows as f64 + 4.0) * U32 * dy;
        }
    }
    let small = |c: usize| 2.0 * U32 * old(old_dw[c]).abs();
    assert_within(&format!("{what} dx"), &dx.to_vec().unwrap(), &add(&want.dx, &old_dx), |i| {
        let size = want.dx[i].abs() + old(old_dx[i]).abs() + dx_bound[i];
        dx_bound[i] + if input_dtype == DType::F16 { stored(input_dtype, size) } else { 0.0 }
    });
    assert_within(&format!("{what} dweight"), &dweight.to_vec().unwrap(), &add(&want.dweight, &old_dw), |c| {
        dw_bound[c] + small(c)
    });
    if bias {
        assert_within(&format!("{what} dbias"), &dbias.to_vec().unwrap(), &add(&want.dbias, &old_dw), |c| {
            db_bound[c] + small(c)
        });
    }
}

#[test]
fn norms_match_the_reference() {
    for context in common::every_tier() {
        let mut rng = Gen::new(1);
        for (i, shape) in SHAPES.into_iter().enumerate() {
            // Every option with either width of load; all combinations would only compile for longer.
            let types = dtypes(&context);
            let dtype = types[i / 2 % types.len()];
            check(&context, shape, true, i % 4 != 3, [DType::F32, dtype], i % 3 == 1, &mut rng);
            let input = types[i % types.len()];
            check(&context, shape, false, false, [input, dtype], i % 3 == 0, &mut rng);
        }
    }
}

#[test]
fn equal_inputs_give_equal_bits() {
    for context in common::every_tier() {
        let mut rng = Gen::new(2);
        let shape = [70, 132];
        let [x, dy] = [(); 2].map(|()| Tensor::from_f32(&context, &rng.hard(70 * 132), &shape).unwrap());
        let w = Tensor::from_f32(&context, &rng.normals(132), &[132]).unwrap();
        let run = || {
            let [out, dx] = [(); 2].map(|()| Tensor::zeros(&context, &shape, DType::F32).unwrap());
            let [mean, rstd] = [(); 2].map(|()| Tensor::zeros(&context, &[70], DType::F32).unwrap());
            let [dw, db] = [(); 2].map(|()| Tensor::zeros(&context, &[132], DType::F32).unwrap());
            let b = |t: &Tensor| t.buffer().clone();
            layer_norm(&context, &b(&x), &b(&w), Some(&b(&w)), &b(&out), &b(&mean), &b(&rstd), shape, EPS).unwrap();
            let gradients = ParameterGradients { weight: &b(&dw), bias: Some(&b(&db)), accumulate: false };
            layer_norm_backward(
                &context,
                &b(&dy),
                &b(&x),
                &b(&w),
                &b(&mean),
                &b(&rstd),
                &b(&dx),
                false,
                gradients,
                shape,
            )
            .unwrap();
            [out, dx, dw, db].map(|t| t.to_vec().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let context = common::every_tier().remove(0);
    let [a, b] = [[2, 4], [2, 5]].map(|shape| Tensor::zeros(&context, &shape, DType::F32).unwrap());
    let r = Tensor::zeros(&context, &[2], DType::F32).unwrap();
    let error = rms_norm(&context, a.buffer(), r.buffer(), b.buffer(), r.buffer(), [2, 4], EPS).unwrap_err();
    assert!(error.to_string().contains("weight"), "{error}");
}

#[test]
fn reference_gradients_match_differences() {
    let mut rng = Gen::new(3);
    let (rows, cols) = (3, 5);
    let mut data = |n: usize| rng.normals(n).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (x, dy, w, b) = (data(rows * cols), data(rows * cols), data(cols), data(cols));
    let dot = |out: Vec<f64>| out.iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>();
    let layer = reference::layer_norm::backward(&dy, &x, &w, 1e-5);
    let forward = |x: &[f64], w: &[f64], b: &[f64]| dot(reference::layer_norm::forward(x, w, b, 1e-5).out);
    assert_gradient("dx", &x, &layer.dx, |x| forward(x, &w, &b));
    assert_gradient("dweight", &w, &layer.dweight, |w| forward(&x, w, &b));
    assert_gradient("dbias", &b, &layer.dbias, |b| forward(&x, &w, b));
    let (dx, dw) = reference::rms_norm::backward(&dy, &x, &w, 1e-5);
    assert_gradient("rms dx", &x, &dx, |x| dot(reference::rms_norm::forward(x, &w, 1e-5).0));
    assert_gradient("rms dweight", &w, &dw, |w| dot(reference::rms_norm::forward(&x, w, 1e-5).0));
}
