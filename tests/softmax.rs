//! Softmax over rows against the float64 reference.

mod common;

use common::{Gen, U32, assert_within, blank, every_tier, tensor, wide};
use walsh::Error;
use walsh::kernel::softmax::{softmax, softmax_backward};
use walsh::reference::softmax as reference;

#[test]
fn results_match_the_reference() {
    for context in every_tier() {
        for (rows, cols) in [(1, 1), (3, 7), (5, 8), (4, 257), (2, 1031)] {
            let mut g = Gen::new(cols as u64);
            let (mut x, mut dy, mut old) = (g.hard(rows * cols), g.normals(rows * cols), g.normals(rows * cols));
            x[..cols].fill(0.0);
            let (x_t, dy_t) = (tensor(&context, &mut x, false), tensor(&context, &mut dy, false));
            let y_t = blank(&context, rows * cols, false);
            softmax(&context, x_t.buffer(), y_t.buffer(), rows, cols).unwrap();
            let (x, dy) = (wide(&x), wide(&dy));
            let want = reference::softmax(&x, cols);
            let got = y_t.to_vec().unwrap();
            // Each exponential is good to 3 + 2 |x - max| ulp of 2 u, its argument's rounding adds |x - max| u; the sum adds cols u of all, the division 5 u.
            let top = |row: usize| x[row * cols..][..cols].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponential = |i: usize| (6.0 + 5.0 * (top(i / cols) - x[i])) * U32;
            let sum_error = |row: usize| -> f64 {
                (0..cols).map(|c| want[row * cols + c] * exponential(row * cols + c)).sum::<f64>() + cols as f64 * U32
            };
            let sums: Vec<f64> = (0..rows).map(sum_error).collect();
            assert_within(&format!("{rows} x {cols}"), &got, &want, |i| {
                (exponential(i) + sums[i / cols] + 6.0 * U32) * 1.01 * want[i] + 2f64.powi(-120)
            });
            let y = wide(&got);
            for accumulate in [false, true] {
                let dx = tensor(&context, &mut old, false);
                softmax_backward(&context, y_t.buffer(), dy_t.buffer(), dx.buffer(), rows, cols, accumulate).unwrap();
                let mut want = reference::softmax_backward(&y, &dy, cols);
                if accumulate {
                    want.iter_mut().zip(&old).for_each(|(w, o)| *w += f64::from(*o));
                }
                assert_within(&format!("d {rows} x {cols} {accumulate}"), &dx.to_vec().unwrap(), &want, |i| {
                    let row = i / cols * cols;
                    let sum: f64 = (row..row + cols).map(|j| (y[j] * dy[j]).abs()).sum();
                    y[i] * ((cols as f64 + 2.0) * U32 * sum + 3.0 * U32 * (dy[i].abs() + sum))
                        + 2.0 * U32 * want[i].abs()
                        + 2f64.powi(-120)
                });
            }
        }
    }
}

#[test]
fn reference_backward_matches_central_differences() {
    let mut g = Gen::new(9);
    let (x, dy) = (wide(&g.normals(10)), wide(&g.normals(10)));
    let loss = |x: &[f64]| reference::softmax(x, 5).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
    let grad = reference::softmax_backward(&reference::softmax(&x, 5), &dy, 5);
    for i in 0..x.len() {
        let (mut up, mut down) = (x.clone(), x.clone());
        (up[i], down[i]) = (x[i] + 1e-5, x[i] - 1e-5);
        assert!(((loss(&up) - loss(&down)) / 2e-5 - grad[i]).abs() < 1e-8, "{i}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let context = &every_tier()[0];
    let x = blank(context, 8, false);
    assert!(matches!(softmax(context, x.buffer(), x.buffer(), 3, 3), Err(Error::Shape { .. })));
    assert!(matches!(softmax(context, x.buffer(), x.buffer(), 8, 0), Err(Error::Shape { .. })));
}
