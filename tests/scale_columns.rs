//! Columns times numbers, and the gradients of these, against float64.

mod common;

use common::{Gen, U16, U32, assert_within, dtypes, every_tier, floats, stored};
use walsh::kernel::scale_columns::{column_dot, scale_columns};
use walsh::reference::scale_columns::{column_dot as dot_reference, scale_columns as reference};
use walsh::{DType, Error, Gradients, Tensor};

#[test]
fn products_and_sums_match_the_reference() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for [rows, cols] in [[1, 1], [3, 31], [5, 33], [2, 128], [67, 36], [300, 132], [1, 516]] {
                let what = format!("[{rows}, {cols}] {dtype} on {}", context.tier());
                let mut random = Gen::new(cols as u64);
                let (x, x64) = floats(&context, &random.hard(rows * cols), &[rows, cols], dtype);
                let (values, v64) = floats(&context, &random.normals(cols), &[cols], DType::F32);
                let (d, d64) = floats(&context, &random.normals(rows * cols), &[rows, cols], dtype);
                let out = common::blank(&context, rows * cols, dtype == DType::F16);
                let want = reference(&x64, &v64);
                // One rounding, and that of the type; twice as much and one more of each for what is added.
                let unit = if dtype == DType::F16 { U16 } else { U32 };
                for times in [1.0, 2.0] {
                    scale_columns(&context, x.buffer(), values.buffer(), out.buffer(), [rows, cols], times == 2.0)
                        .unwrap();
                    let want: Vec<f64> = want.iter().map(|v| v * times).collect();
                    assert_within(&what, &out.to_vec().unwrap(), &want, |i| {
                        times * (1.01 * U32 * want[i].abs() + stored(dtype, want[i])) + 2.0 * unit * want[i].abs()
                    });
                }
                let sums = common::blank(&context, cols, false);
                let want = dot_reference(&x64, &d64, cols);
                let mut sizes = vec![0.0; cols];
                (0..rows * cols).for_each(|i| sizes[i % cols] += (x64[i] * d64[i]).abs());
                for times in [1.0, 2.0] {
                    column_dot(&context, x.buffer(), d.buffer(), sums.buffer(), [rows, cols], times == 2.0).unwrap();
                    let want: Vec<f64> = want.iter().map(|v| v * times).collect();
                    let bound = |c: usize| times * (rows as f64 + 4.0) * U32 * sizes[c] + 1e-30;
                    assert_within(&format!("{what} sums"), &sums.to_vec().unwrap(), &want, bound);
                }
            }
        }
    }
}

#[test]
fn the_operation_hands_both_gradients_on() {
    for context in every_tier() {
        let mut random = Gen::new(3);
        let (x, x64) = floats(&context, &random.normals(6 * 10), &[2, 3, 10], DType::F32);
        let (v, v64) = floats(&context, &random.normals(10), &[10], DType::F32);
        let (d, d64) = floats(&context, &random.normals(6 * 10), &[2, 3, 10], DType::F32);
        let (x, v) = (x.with_grad(), v.with_grad());
        let mut gradients = Gradients::default();
        x.scale_columns(&v).unwrap().backward_from(d, &mut gradients).unwrap();
        let bound = |want: Vec<f64>| move |i: usize| 16.0 * U32 * (1.0 + want[i].abs());
        let (dx, dv) = (reference(&d64, &v64), dot_reference(&x64, &d64, 10));
        assert_within("dx", &gradients.get(&x).unwrap().to_vec().unwrap(), &dx, bound(dx.clone()));
        // Six terms below 10 each.
        assert_within("dv", &gradients.get(&v).unwrap().to_vec().unwrap(), &dv, |_| 60.0 * 10.0 * U32);
    }
}

#[test]
fn other_shapes_are_refused() {
    let context = &every_tier()[0];
    let [x, v, w] = [6, 3, 2].map(|n| Tensor::zeros(context, &[n], DType::F32).unwrap());
    let wrong = scale_columns(context, x.buffer(), w.buffer(), x.buffer(), [2, 3], false);
    assert!(matches!(wrong, Err(Error::Shape { .. })));
    assert!(matches!(column_dot(context, x.buffer(), v.buffer(), v.buffer(), [2, 3], false), Err(Error::Shape { .. })));
    assert!(matches!(x.scale_columns(&v), Err(Error::Shape { .. })));
}
