//! Masks of one bit per element: exact.

mod common;

use common::{Gen, assert_within, every_tier, floats};
use walsh::kernel::mask::{mask, words};
use walsh::reference::mask::mask as reference;
use walsh::{DType, Tensor};

#[test]
fn masked_elements_are_zero_and_others_pass() {
    for ctx in every_tier() {
        for dtype in common::dtypes(&ctx) {
            for [rows, cols] in [[1, 1], [3, 31], [2, 32], [5, 33], [7, 97], [64, 64]] {
                let mut random = Gen::new(cols as u64);
                let mut data = random.hard(rows * cols);
                let bits: Vec<u32> = (0..words(rows, cols)).map(|_| random.bits() as u32).collect();
                // What is masked may be anything.
                let hidden = (0..cols).find(|c| bits[c / 32] >> (c % 32) & 1 == 0);
                let (_, values) = floats(&ctx, &data, &[data.len()], dtype);
                if let Some(c) = hidden {
                    data[c] = f32::NAN;
                }
                let (x, _) = floats(&ctx, &data, &[data.len()], dtype);
                let m = Tensor::from_u32(&ctx, &bits, &[bits.len()]).unwrap();
                let out = common::blank(&ctx, rows * cols, dtype == DType::F16);
                let want = reference(&values, &bits, cols);
                for accumulate in [false, true] {
                    mask(&ctx, x.buffer(), m.buffer(), out.buffer(), [rows, cols], accumulate).unwrap();
                    // Twice a number is exact.
                    let times = if accumulate { 2.0 } else { 1.0 };
                    let want: Vec<f64> = want.iter().map(|w| w * times).collect();
                    assert_within(&format!("{dtype} {rows}x{cols}"), &out.to_vec().unwrap(), &want, |_| 0.0);
                }
            }
        }
    }
}

#[test]
fn a_mask_of_another_size_is_refused() {
    let ctx = &every_tier()[0];
    let x = Tensor::zeros(ctx, &[66], DType::F32).unwrap();
    let bits = Tensor::from_u32(ctx, &[0; 3], &[3]).unwrap();
    let error = mask(ctx, x.buffer(), bits.buffer(), x.buffer(), [2, 33], false).unwrap_err();
    assert!(error.to_string().contains("mask of 4 elements"), "{error}");
}
