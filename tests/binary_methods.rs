//! Methods of binary and ternary weights: layers and their gradients against float64 written from the papers, without a look at codes.

mod common;

use common::{Gen, U16, U32, assert_within, dtypes, every_tier, floats, stored, wide};
use walsh::nn::GptConfig;
use walsh::op::{LinearOptions, linear};
use walsh::qat::{Asked, Method, Quantizer, Settings};
use walsh::{Context, DType, Gradients, Tensor};

fn quantizer(method: &str) -> Quantizer {
    let method: Method = method.parse().unwrap();
    method.quantizer(&Settings::default()).unwrap().unwrap()
}

fn sign(w: f64) -> f64 {
    if w >= 0.0 { 1.0 } else { -1.0 }
}

/// `a[m, k] b[k, n]` by functions of row and column, and the sums of magnitudes.
fn product(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> (Vec<f64>, Vec<f64>) {
    let dot = |i: usize, j: usize| {
        (0..k).map(|t| a(i, t) * b(t, j)).fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()))
    };
    (0..m * n).map(|e| dot(e / n, e % n)).unzip()
}

/// What a method makes of the operands, and of the gradient of the quantized weight.
struct Definition {
    w_hat: Vec<f64>,
    x_hat: Vec<f64>,
    factor: Vec<f64>,
}

fn definition(method: &str, w: &[f64], x: &[f64], k: usize) -> Definition {
    let alphas: Vec<f64> = w.chunks_exact(k).map(|row| row.iter().map(|v| v.abs()).sum::<f64>() / k as f64).collect();
    let within = |w: f64| if w.abs() <= 1.0 { 1.0 } else { 0.0 };
    let rows = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> { (0..w.len()).map(|i| f(w[i], alphas[i / k])).collect() };
    match method {
        "bwn" => {
            Definition { w_hat: rows(&|w, alpha| alpha * sign(w)), x_hat: x.to_vec(), factor: rows(&|w, _| within(w)) }
        }
        "bwn:exact" => Definition {
            w_hat: rows(&|w, alpha| alpha * sign(w)),
            x_hat: x.to_vec(),
            factor: rows(&|w, alpha| 1.0 / k as f64 + alpha * within(w)),
        },
        "binaryconnect" | "binaryconnect:unit" => {
            let size = if method == "binaryconnect" { 1.0 / (k as f64).sqrt() } else { 1.0 };
            Definition { w_hat: rows(&|w, _| size * sign(w)), x_hat: x.to_vec(), factor: rows(&|w, _| within(w)) }
        }
        "bitnet" => {
            let s = (alphas.iter().sum::<f64>() / alphas.len() as f64).max(1e-5);
            let token = |row: &[f64]| -> Vec<f64> {
                let s = 127.0 / row.iter().fold(0.0, |most: f64, v| most.max(v.abs())).max(1e-5);
                row.iter().map(|v| (v * s).round_ties_even().clamp(-128.0, 127.0) / s).collect()
            };
            Definition {
                w_hat: w.iter().map(|w| (w / s).round_ties_even().clamp(-1.0, 1.0) * s).collect(),
                x_hat: x.chunks_exact(k).flat_map(token).collect(),
                factor: vec![1.0; w.len()],
            }
        }
        other => panic!("no definition of {other}"),
    }
}

fn check(context: &Context, method: &str, dtype: DType) {
    let [m, n, k] = [9, 34, 96];
    let what = format!("{method} in {dtype} on {}", context.tier());
    let quantizer = quantizer(method);
    let mut random = Gen::new(6);
    let (x, x64) = floats(context, &random.normals(m * k), &[m, k], dtype);
    let mut weights = random.normals(n * k);
    // Signs of zeros, and the bound itself.
    weights[..5].copy_from_slice(&[0.0, -0.0, 1.0, -1.0, 1.0001]);
    let weight = Tensor::from_f32(context, &weights, &[n, k]).unwrap();
    let (dy, g) = floats(context, &random.normals(m * n), &[m, n], dtype);
    let Definition { w_hat, x_hat, factor } = definition(method, &wide(&weights), &x64, k);

    let (x, weight) = (x.with_grad(), weight.with_grad());
    let y = linear(&x, &weight, LinearOptions { quantizer: Some(quantizer), ..Default::default() }).unwrap();
    let got = y.to_vec().unwrap();
    let mut gradients = Gradients::default();
    y.backward_from(dy, &mut gradients).unwrap();

    // Scales are means of up to 3264 magnitudes, which round once per term at most; sums of products likewise; f16 operands are rounded.
    let unit = if dtype == DType::F16 { 2.0 * U16 } else { 0.0 };
    let bound = |size: f64, terms: usize| (2.0 * (terms as f64 + 16.0) * U32 + 3300.0 * U32 + unit) * size + 1e-30;
    let (want, size) = product([m, n, k], |i, t| x_hat[i * k + t], |t, j| w_hat[j * k + t]);
    assert_within(&format!("{what}: y"), &got, &want, |i| bound(size[i], k) + stored(dtype, want[i]));
    let (want, size) = product([m, k, n], |i, t| g[i * n + t], |t, j| w_hat[t * k + j]);
    let dx = gradients.get(&x).unwrap().to_vec().unwrap();
    assert_within(&format!("{what}: dx"), &dx, &want, |i| bound(size[i], n) + stored(dtype, want[i]));
    let (want, size) = product([n, k, m], |i, t| g[t * n + i], |t, j| x_hat[t * k + j]);
    let want: Vec<f64> = want.iter().zip(&factor).map(|(v, f)| v * f).collect();
    let dw = gradients.get(&weight).unwrap().to_vec().unwrap();
    assert_within(&format!("{what}: dw"), &dw, &want, |i| bound(size[i] * factor[i], m));
}

/// OneBit's layer from methods' definition: y = norm([(x . g) S^T] . h) + b, and all gradients.
fn check_onebit(context: &Context, dtype: DType) {
    const EPS: f32 = 1e-5;
    let [m, n, k] = [9, 34, 96];
    let what = format!("onebit in {dtype} on {}", context.tier());
    let mut random = Gen::new(8);
    let (x, x64) = floats(context, &random.normals(m * k), &[m, k], dtype);
    let mut weights = random.normals(n * k);
    weights[..3].copy_from_slice(&[0.0, -0.0, 30.0]);
    let weight = Tensor::from_f32(context, &weights, &[n, k]).unwrap();
    let [(g, g64), (h, h64), (b, b64)] = [k, n, n].map(|len| floats(context, &random.normals(len), &[len], DType::F32));
    let (dy, dy64) = floats(context, &random.normals(m * n), &[m, n], dtype);
    let (x, weight, g, h, b) = (x.with_grad(), weight.with_grad(), g.with_grad(), h.with_grad(), b.with_grad());
    let options = LinearOptions { quantizer: Some(quantizer("onebit")), ..Default::default() };
    let sums = linear(&x.scale_columns(&g).unwrap(), &weight, options).unwrap();
    let y = sums.value_norm(&h, Some(&b), EPS, dtype).unwrap();
    let got = y.to_vec().unwrap();
    let mut gradients = Gradients::default();
    y.backward_from(dy, &mut gradients).unwrap();

    let w = wide(&weights);
    let (s, eps) = (w.iter().map(|w| sign(*w)).collect::<Vec<f64>>(), f64::from(EPS));
    let xg: Vec<f64> = (0..m * k).map(|i| x64[i] * g64[i % k]).collect();
    let (u, u_size) = product([m, n, k], |i, t| xg[i * k + t], |t, j| s[j * k + t]);
    // Row by row the norm of v = u h, and its gradient.
    let (mut want, mut du, mut dh) = (Vec::new(), Vec::new(), vec![0.0; n]);
    // Errors: what is stored between operations is rounded to the type; the norm hands an error of v on divided by the deviation.
    let unit = if dtype == DType::F16 { U16 } else { 0.0 };
    let (mut y_error, mut du_error, mut dh_error) = (Vec::new(), Vec::new(), vec![0.0; n]);
    for r in 0..m {
        let v: Vec<f64> = (0..n).map(|j| u[r * n + j] * h64[j]).collect();
        let mean = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        let centre = mean(&|j| v[j]);
        let rstd = 1.0 / (mean(&|j| (v[j] - centre).powi(2)) + eps).sqrt();
        let z: Vec<f64> = v.iter().map(|v| (v - centre) * rstd).collect();
        let d = |j: usize| dy64[r * n + j];
        let (mean_d, mean_dz) = (mean(&d), mean(&|j| d(j) * z[j]));
        let dv: Vec<f64> = (0..n).map(|j| rstd * (d(j) - mean_d - z[j] * mean_dz)).collect();
        let dv_size: Vec<f64> = (0..n)
            .map(|j| rstd * (d(j).abs() + mean(&|i| d(i).abs()) + (z[j] * mean(&|i| (d(i) * z[i]).abs())).abs()))
            .collect();
        let e = |j: usize| {
            let sum =
                2.0 * (k as f64 + 16.0) * U32 * u_size[r * n + j] + unit * (u_size[r * n + j] + u[r * n + j].abs());
            sum * h64[j].abs() + 4.0 * U32 * v[j].abs()
        };
        let slope = rstd * mean(&|j| z[j].abs() * e(j)) + (n as f64 + 16.0) * U32;
        let ze =
            |j: usize| rstd * (e(j) + mean(&e)) + z[j].abs() * slope + (n as f64 + 16.0) * U32 * (1.0 + z[j].abs());
        for j in 0..n {
            want.push(z[j] + b64[j]);
            y_error.push(ze(j) + 4.0 * U32 * (z[j] + b64[j]).abs());
            du.push(dv[j] * h64[j]);
            dh[j] += dv[j] * u[r * n + j];
            let through = rstd * (ze(j) * mean(&|i| (d(i) * z[i]).abs()) + z[j].abs() * mean(&|i| d(i).abs() * ze(i)));
            let error = through + dv_size[j] * (slope + (n as f64 + 16.0) * U32);
            du_error.push(error * h64[j].abs() + (unit + 4.0 * U32) * (dv[j] * h64[j]).abs());
            dh_error[j] += error * u[r * n + j].abs()
                + dv_size[j] * e(j) / h64[j].abs().max(1e-9)
                + 32.0 * U32 * (dv[j] * u[r * n + j]).abs();
        }
    }
    let read = |tensor: &Tensor| gradients.get(tensor).unwrap().to_vec().unwrap();
    assert_within(&format!("{what}: y"), &got, &want, |i| y_error[i] + stored(dtype, want[i].abs() + y_error[i]));
    let db: Vec<f64> = (0..n).map(|j| (0..m).map(|i| dy64[i * n + j]).sum()).collect();
    assert_within(&format!("{what}: db"), &read(&b), &db, |_| 16.0 * m as f64 * U32);
    assert_within(&format!("{what}: dh"), &read(&h), &dh, |j| dh_error[j]);
    let (dxg, size) = product([m, k, n], |i, t| du[i * n + t], |t, j| s[t * k + j]);
    let (carried, _) = product([m, k, n], |i, t| du_error[i * n + t], |_, _| 1.0);
    let dxg_error =
        |i: usize| 2.0 * (n as f64 + 16.0) * U32 * size[i] + carried[i] + unit * (size[i] + dxg[i].abs()) + 1e-7 * unit;
    let dx: Vec<f64> = (0..m * k).map(|i| dxg[i] * g64[i % k]).collect();
    assert_within(&format!("{what}: dx"), &read(&x), &dx, |i| {
        dxg_error(i) * g64[i % k].abs() + 2.0 * U32 * dx[i].abs() + stored(dtype, dx[i])
    });
    let dg: Vec<f64> = (0..k).map(|c| (0..m).map(|r| x64[r * k + c] * dxg[r * k + c]).sum()).collect();
    assert_within(&format!("{what}: dg"), &read(&g), &dg, |c| {
        (0..m).map(|r| x64[r * k + c].abs() * (dxg_error(r * k + c) + 16.0 * U32 * dxg[r * k + c].abs())).sum()
    });
    let (ds, size) = product([n, k, m], |i, t| du[t * n + i], |t, j| xg[t * k + j]);
    let (carried, _) = product([n, k, m], |i, t| du_error[t * n + i], |t, j| xg[t * k + j].abs());
    let dw: Vec<f64> = ds.iter().zip(&w).map(|(d, w)| d * (1.001 - w.tanh().powi(2))).collect();
    assert_within(&format!("{what}: dw"), &read(&weight), &dw, |i| {
        let factor = 1.001 - w[i].tanh().powi(2);
        factor * (carried[i] + (2.0 * (m as f64 + 64.0) * U32 + 2.0 * unit) * size[i]) + 1e-30
    });
}

#[test]
fn a_layer_of_signs_and_values_agrees_with_float64() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            check_onebit(&context, dtype);
        }
    }
}

#[test]
fn layers_agree_with_float64() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for method in ["bwn", "bwn:exact", "bitnet", "binaryconnect", "binaryconnect:unit"] {
                check(&context, method, dtype);
            }
        }
    }
}

#[test]
fn what_is_left_open_is_the_methods() {
    for (method, expected) in [
        ("binaryconnect", "binaryconnect, weights binary:tensor"),
        ("binaryconnect:unit", "binaryconnect:unit, weights binary:tensor"),
        ("onebit", "onebit, weights binary:tensor"),
        ("onebit:hidden=0", "onebit:hidden=0, weights binary:tensor"),
        ("bwn", "bwn, weights binary"),
        ("bwn:exact", "bwn:exact, weights binary"),
        ("bitnet", "bitnet, weights ternary, activations int8:row:f32"),
    ] {
        let open = quantizer(method);
        assert_eq!(open.to_string(), expected);
        let again = Quantizer::new(open.method, open.weights, open.activations, open.hadamard);
        assert_eq!(again.unwrap(), open);
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_flag() {
    for (method, weights, activations, hadamard, message) in [
        ("bwn", "int4", "", "", "--weights: expected binary beside --method bwn"),
        ("bwn", "dense", "", "", "--weights: expected binary beside --method bwn"),
        ("bwn", "binary:g64", "", "", "--weights: expected binary beside --method bwn"),
        ("bwn", "", "int8", "", "--activations: expected dense beside --method bwn"),
        (
            "bwn",
            "",
            "",
            "16",
            "--hadamard: expected off beside --method bwn, whose signs are those of the weights themselves, found 16",
        ),
        ("binaryconnect", "binary", "", "", "--weights: expected binary:tensor beside --method binaryconnect"),
        (
            "onebit",
            "",
            "binary",
            "",
            "--activations: expected dense beside --method onebit, which has signs as weights and no 1-bit",
        ),
        ("onebit", "int4", "", "", "--weights: expected binary:tensor beside --method onebit"),
        ("onebit", "", "", "32", "--hadamard: expected off beside --method onebit"),
        ("bitnet", "int2", "", "", "--weights: expected ternary"),
    ] {
        let read = |text: &str| -> Option<Asked> { (!text.is_empty()).then(|| text.parse().unwrap()) };
        let asked = Settings {
            weights: read(weights),
            activations: read(activations),
            hadamard: (!hadamard.is_empty()).then(|| hadamard.parse().unwrap()),
            widths: vec![64],
        };
        let error = method.parse::<Method>().unwrap().quantizer(&asked).unwrap_err().to_string();
        assert!(error.starts_with(message), "{method} {weights} {activations} {hadamard}: {error}");
    }
}

#[test]
fn configurations_ask_for_nothing_that_methods_refuse() {
    let config = |quantizer: &str| {
        let json = format!(
            r#"{{"layers": 1, "heads": 2, "embd": 64, "block": 8, "vocab": 13, "dropout": 0.0, "bias": false, "quantizer": {quantizer}}}"#
        );
        serde_json::from_str::<GptConfig>(&json).unwrap().validate().map_err(|e| e.to_string())
    };
    assert_eq!(config(r#"{"method": "bwn", "weights": "binary"}"#), Ok(()));
    for (quantizer, message) in [
        (r#"{"method": "bwn", "weights": "binary", "hadamard": 32}"#, "--hadamard: expected off beside --method bwn"),
        (r#"{"method": "bwn", "weights": "int4"}"#, "--weights: expected binary"),
        (
            r#"{"method": "bwn", "weights": "binary", "activations": "int8"}"#,
            "--activations: expected dense beside --method bwn",
        ),
        (r#"{"method": "none", "weights": "int4"}"#, "--weights: expected no format beside --method none"),
        (r#"{"method": "ste", "weights": "int4", "hadamard": 48}"#, "for layers of width [64, 64, 64, 256]"),
    ] {
        let error = config(quantizer).unwrap_err();
        assert!(error.contains(message), "{quantizer}: {error}");
    }
}
