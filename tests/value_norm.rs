//! OneBit's output values with the norm after them, against float64.

mod common;

use common::{Gen, U32, assert_gradient, assert_within, dtypes, every_tier, floats, stored};
use walsh::kernel::value_norm::{Statistics, value_norm, value_norm_backward};
use walsh::reference::value_norm as reference;
use walsh::{Context, DType, Error, Gradients, Tensor};

const EPS: f32 = 1e-5;

fn check(context: &Context, [rows, cols]: [usize; 2], [input, output]: [DType; 2], bias: bool, accumulate: bool) {
    let shape = [rows, cols];
    let what = format!("{shape:?} {input} {output} bias {bias} on {}", context.tier());
    let mut random = Gen::new(cols as u64);
    // A row of zeros would multiply gradients by 316; one of a mean far from 0 instead.
    let mut data = random.normals(rows * cols);
    data[..cols].iter_mut().for_each(|v| *v += 8.0);
    let (u, u64s) = floats(context, &data, &shape, input);
    let (h, h64) = floats(context, &random.normals(cols), &[cols], DType::F32);
    let (b, b64) = floats(context, &random.normals(cols), &[cols], DType::F32);
    let b64 = if bias { b64 } else { vec![0.0; cols] };
    let out = common::blank(context, rows * cols, output == DType::F16);
    let [mean, rstd] = [(); 2].map(|()| common::blank(context, rows, false));
    let statistics = Statistics { mean: mean.buffer(), rstd: rstd.buffer() };
    let offset = bias.then(|| b.buffer());
    value_norm(context, u.buffer(), h.buffer(), offset, out.buffer(), statistics, shape, EPS).unwrap();

    // As for the layer norm, but that each v = u h rounds once (or not, where it is fused) and shifts mean and deviation by as much.
    let n = cols as f64;
    struct Row {
        mean: f64,
        rstd: f64,
        rho: f64,
        delta: f64,
    }
    let v: Vec<f64> = (0..rows * cols).map(|i| u64s[i] * h64[i % cols]).collect();
    let errors: Vec<Row> = v
        .chunks_exact(cols)
        .map(|row| {
            let mean = row.iter().sum::<f64>() / n;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let size = row.iter().map(|x| x.abs()).sum::<f64>() / n;
            let rms = (row.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
            let e1 = (n + 4.0) * U32 * size;
            let delta = (n + 5.0) * U32 * (var.sqrt() + e1) + 2.0 * U32 * size;
            let squares = (n + 8.0) * U32 * (var + 2.0 * e1 * e1) + 2.0 * e1 * delta + 4.0 * U32 * var.sqrt() * rms;
            let (eps, rstd) = (f64::from(EPS), 1.0 / (var + f64::from(EPS)).sqrt());
            Row { mean, rstd, rho: 0.5 * squares / (var + eps) + 6.0 * U32, delta }
        })
        .collect();
    let normed = |i: usize| ((v[i] - errors[i / cols].mean) * errors[i / cols].rstd).abs();
    let normed_error = |i: usize| {
        let e = &errors[i / cols];
        let size = e.mean.abs() + v[i].abs();
        e.rstd * (e.delta + 4.0 * U32 * size) + normed(i) * (e.rho + 3.0 * U32)
    };
    let want = reference::forward(&u64s, &h64, &b64, f64::from(EPS));
    assert_within(&format!("{what} out"), &out.to_vec().unwrap(), &want, |i| {
        let error = normed_error(i) + 2.0 * U32 * (want[i].abs() + b64[i % cols].abs());
        error + stored(output, want[i].abs() + error)
    });

    let (dz, dz64) = floats(context, &random.normals(rows * cols), &shape, output);
    let (du, old_du) = floats(context, &random.normals(rows * cols), &shape, input);
    let (dh, old_dh) = floats(context, &random.normals(cols), &[cols], DType::F32);
    let (d, x, h) = (dz.buffer(), u.buffer(), h.buffer());
    value_norm_backward(context, d, x, h, statistics, du.buffer(), accumulate, dh.buffer(), accumulate, shape).unwrap();
    let (want_du, want_dh) = reference::backward(&dz64, &u64s, &h64, f64::from(EPS));
    let old = |v: f64| if accumulate { v } else { 0.0 };
    let mut dh_bound = vec![0.0; cols];
    let mut du_bound = vec![0.0; rows * cols];
    for (r, e) in errors.iter().enumerate() {
        let row = r * cols..(r + 1) * cols;
        let mean_g = row.clone().map(|i| dz64[i].abs()).sum::<f64>() / n;
        let mean_gz = row.clone().map(|i| dz64[i].abs() * normed(i)).sum::<f64>() / n;
        let error_gz =
            (n + 6.0) * U32 * mean_gz + row.clone().map(|i| dz64[i].abs() * normed_error(i)).sum::<f64>() / n;
        for i in row {
            let size = dz64[i].abs() + mean_g + normed(i) * mean_gz;
            let inner = (n + 4.0) * U32 * mean_g + normed(i) * error_gz + normed_error(i) * mean_gz + 6.0 * U32 * size;
            let dv = e.rstd * (inner + size * e.rho);
            let c = i % cols;
            du_bound[i] = h64[c].abs() * (dv + 3.0 * U32 * e.rstd * size);
            dh_bound[c] += u64s[i].abs() * (dv + (rows as f64 + 6.0) * U32 * e.rstd * size);
        }
    }
    let want: Vec<f64> = want_du.iter().zip(&old_du).map(|(w, o)| w + old(*o)).collect();
    assert_within(&format!("{what} du"), &du.to_vec().unwrap(), &want, |i| {
        let bound = du_bound[i] + 2.0 * U32 * old(old_du[i]).abs();
        bound + stored(input, want[i].abs() + bound)
    });
    let want: Vec<f64> = want_dh.iter().zip(&old_dh).map(|(w, o)| w + old(*o)).collect();
    assert_within(&format!("{what} dh"), &dh.to_vec().unwrap(), &want, |c| {
        dh_bound[c] + 2.0 * U32 * old(old_dh[c]).abs()
    });
}

#[test]
fn matches_the_reference() {
    for context in every_tier() {
        let types = dtypes(&context);
        let shapes = [[3, 2], [5, 31], [18, 33], [19, 128], [37, 132], [16, 384], [2, 1027], [2, 4100], [1100, 8]];
        for (i, shape) in shapes.into_iter().enumerate() {
            let input = types[i % types.len()];
            let output = types[i / 2 % types.len()];
            check(&context, shape, [input, output], i % 3 != 1, i % 2 == 1);
        }
    }
}

#[test]
fn the_operation_hands_all_gradients_on() {
    for context in every_tier() {
        let mut random = Gen::new(3);
        let (u, u64s) = floats(&context, &random.normals(6 * 12), &[2, 3, 12], DType::F32);
        let (h, h64) = floats(&context, &random.normals(12), &[12], DType::F32);
        let (b, _) = floats(&context, &random.normals(12), &[12], DType::F32);
        let (d, d64) = floats(&context, &random.normals(6 * 12), &[2, 3, 12], DType::F32);
        let (u, h, b) = (u.with_grad(), h.with_grad(), b.with_grad());
        let mut gradients = Gradients::default();
        let z = u.value_norm(&h, Some(&b), EPS, DType::F32).unwrap();
        z.backward_from(d, &mut gradients).unwrap();
        let (du, dh) = reference::backward(&d64, &u64s, &h64, f64::from(EPS));
        let db: Vec<f64> = (0..12).map(|c| (0..6).map(|r| d64[r * 12 + c]).sum()).collect();
        // Sums of twelve terms and of six, all of the order of 1 to 10.
        for (what, tensor, want) in [("du", &u, du), ("dh", &h, dh), ("db", &b, db)] {
            assert_within(what, &gradients.get(tensor).unwrap().to_vec().unwrap(), &want, |_| 1e-4);
        }
    }
}

#[test]
fn reference_gradients_match_differences() {
    let mut random = Gen::new(5);
    let mut data = |n: usize| random.normals(n).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (u, h, dz) = (data(15), data(5), data(15));
    let dot = |z: Vec<f64>| z.iter().zip(&dz).map(|(a, b)| a * b).sum::<f64>();
    let (du, dh) = reference::backward(&dz, &u, &h, 1e-5);
    assert_gradient("du", &u, &du, |u| dot(reference::forward(u, &h, &[0.0; 5], 1e-5)));
    assert_gradient("dh", &h, &dh, |h| dot(reference::forward(&u, h, &[0.0; 5], 1e-5)));
}

#[test]
fn other_shapes_are_refused() {
    let context = &every_tier()[0];
    let [x, v, r] = [6, 3, 2].map(|n| Tensor::zeros(context, &[n], DType::F32).unwrap());
    let statistics = Statistics { mean: r.buffer(), rstd: r.buffer() };
    let wrong = value_norm(context, x.buffer(), r.buffer(), None, x.buffer(), statistics, [2, 3], EPS);
    assert!(matches!(wrong, Err(Error::Shape { .. })));
    assert!(matches!(x.value_norm(&v, None, EPS, DType::F32), Err(Error::Shape { .. })));
}
