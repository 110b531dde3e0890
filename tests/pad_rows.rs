//! Zeros around matrices, to the bit.

mod common;

use common::{Gen, dtypes, every_tier, floats, wide};
use walsh::DType;
use walsh::kernel::pad_rows::pad_rows;
use walsh::reference::pad_rows as reference;
use walsh::{Error, Tensor};

#[test]
fn elements_stay_and_the_rest_is_zero() {
    for ctx in every_tier() {
        for from in dtypes(&ctx) {
            for ([rows, cols], size) in [([3, 5], [4, 8]), ([1, 1], [1, 1]), ([2, 67], [16, 96]), ([1, 0], [2, 32])] {
                let (x, values) = floats(&ctx, &Gen::new(4).hard(rows * cols), &[rows, cols], from);
                for to in if from == DType::F16 { vec![DType::F16, DType::F32] } else { vec![DType::F32] } {
                    let (out, _) = floats(&ctx, &vec![-77.0; size[0] * size[1]], &size, to);
                    pad_rows(&ctx, x.buffer(), [rows, cols], out.buffer(), size).unwrap();
                    let got = wide(&out.to_vec().unwrap());
                    assert_eq!(got, reference::pad_rows(&values, [rows, cols], size), "{from} to {to}, {rows}x{cols}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for ctx in every_tier() {
        let tensor = |len: usize| Tensor::zeros(&ctx, &[len], DType::F32).unwrap();
        let (x, out) = (tensor(6), tensor(8));
        for (from, to) in [([2, 3], [1, 8]), ([2, 3], [4, 2]), ([3, 3], [4, 4]), ([2, 3], [3, 3])] {
            assert!(matches!(pad_rows(&ctx, x.buffer(), from, out.buffer(), to), Err(Error::Shape { .. })));
        }
    }
}
