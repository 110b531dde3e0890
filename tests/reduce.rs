//! Sums and maxima over all elements, rows and columns, against their float64 definitions.

mod common;

use common::{Gen, U32, assert_within, dtypes, floats};
use walsh::kernel::{column_sum::column_sum, reduce::Reduction, reduce::reduce, row_sum::row_sum};
use walsh::{DType, Tensor, reference};

/// A sum of n terms in any order is off by at most n u times the sum of magnitudes; factor and addition round twice more.
fn bound(terms: &[f64], factor: f64, old: f64) -> f64 {
    let size: f64 = terms.iter().map(|v| v.abs()).sum();
    (terms.len() as f64 + 2.0) * U32 * factor * size + 2.0 * U32 * old.abs()
}

#[test]
fn rows_and_columns_match_the_reference() {
    for context in common::every_tier() {
        let mut rng = Gen::new(1);
        for (i, shape) in
            [[1, 1], [7, 31], [33, 65], [129, 36], [1537, 4], [1100, 132], [3, 1029]].into_iter().enumerate()
        {
            let [rows, cols] = shape;
            for dtype in dtypes(&context) {
                let accumulate = i % 2 == 1;
                let (x, x64) = floats(&context, &rng.hard(rows * cols), &shape, dtype);
                let (old_c, c64) = floats(&context, &rng.hard(cols), &[cols], DType::F32);
                let (old_r, r64) = floats(&context, &rng.hard(rows), &[rows], DType::F32);
                let factor = 0.5f32; // exact, so that it adds no error of its own
                column_sum(&context, x.buffer(), old_c.buffer(), shape, factor, accumulate).unwrap();
                row_sum(&context, x.buffer(), old_r.buffer(), shape, factor, accumulate).unwrap();
                let old = |v: f64| if accumulate { v } else { 0.0 };
                let want = |sums: Vec<f64>, before: &[f64]| -> Vec<f64> {
                    sums.iter().zip(before).map(|(s, b)| 0.5 * s + old(*b)).collect()
                };
                let columns = want(reference::column_sum::column_sum(&x64, cols), &c64);
                assert_within(&format!("columns {shape:?} {dtype}"), &old_c.to_vec().unwrap(), &columns, |c| {
                    let terms: Vec<f64> = x64.iter().skip(c).step_by(cols).copied().collect();
                    bound(&terms, 0.5, old(c64[c]))
                });
                let sums = want(reference::row_sum::row_sum(&x64, cols), &r64);
                assert_within(&format!("rows {shape:?} {dtype}"), &old_r.to_vec().unwrap(), &sums, |r| {
                    bound(&x64[r * cols..(r + 1) * cols], 0.5, old(r64[r]))
                });
            }
        }
    }
}

#[test]
fn sums_and_maxima_match_the_reference() {
    for context in common::every_tier() {
        let mut rng = Gen::new(2);
        for len in [1, 2, 3, 5, 255, 1025, 16387, 50_001] {
            for dtype in dtypes(&context) {
                // All negative, so that padding taken for an element would show in the maximum.
                let data: Vec<f32> = rng.hard(len).iter().map(|v| -1.0 - v.abs()).collect();
                let (x, x64) = floats(&context, &data, &[len], dtype);
                let out = Tensor::zeros(&context, &[1], DType::F32).unwrap();
                reduce(&context, x.buffer(), out.buffer(), Reduction::Sum(0.25)).unwrap();
                assert_within("sum", &out.to_vec().unwrap(), &[0.25 * reference::reduce::sum(&x64)], |_| {
                    bound(&x64, 0.25, 0.0)
                });
                reduce(&context, x.buffer(), out.buffer(), Reduction::Max).unwrap();
                assert_eq!(f64::from(out.item().unwrap()), reference::reduce::max(&x64), "max of {len}");
            }
        }
        let empty = Tensor::zeros(&context, &[0], DType::F32).unwrap();
        let out = Tensor::from_f32(&context, &[1.0], &[1]).unwrap();
        assert!(reduce(&context, empty.buffer(), out.buffer(), Reduction::Max).is_err());
        reduce(&context, empty.buffer(), out.buffer(), Reduction::Sum(1.0)).unwrap();
        assert_eq!(out.item().unwrap(), 0.0);
    }
}
