//! The multiply-add rate's kernels against float64, so that what is timed is known to be computed.

mod common;

use common::{Gen, U32, assert_within, blank, every_tier, skip, tensor, wide};
use walsh::kernel::multiply_peak::{CHAINS, multiply_peak, multiply_peak_coop};
use walsh::reference::multiply_peak as reference;
use walsh::{Error, Tier};

#[test]
fn chains_match_the_reference() {
    for context in every_tier() {
        for chains in CHAINS {
            for (len, steps, factor, addend) in
                [(4, 0, 0.5, 1.0), (4 * 63, 8, -0.75, 0.125), (4 * 65, 16, 0.99, -3.0), (4 * 4097, 64, -1.0, 0.1)]
            {
                let mut x = Gen::new(len as u64).hard(len);
                let x_t = tensor(&context, &mut x, false);
                let out = blank(&context, len, false);
                multiply_peak(&context, x_t.buffer(), out.buffer(), chains, steps, [factor, addend]).unwrap();
                let coefficients = [f64::from(factor), f64::from(addend)];
                let want = reference::multiply_peak(&wide(&x), chains, steps, coefficients);
                assert_within(&format!("{chains} chains, {steps} steps"), &out.to_vec().unwrap(), &want, |i| {
                    // |factor| <= 1: no value exceeds |x| + chains + steps |addend|, errors do not grow from step to step, and a step adds
                    // at most two roundings. Then there is one for the start of each chain, and one per addition to the sum of `chains` values.
                    let largest = f64::from(x[i]).abs() + chains as f64 + steps as f64 * coefficients[1].abs();
                    chains as f64 * largest * U32 * (2.0 * steps as f64 + 1.0 + chains as f64) * 1.01
                });
            }
        }
    }
}

#[test]
fn cooperative_products_are_exact() {
    for context in every_tier() {
        if context.tier() < Tier::Coop {
            skip(&format!("multiply_peak_coop on {}: tier {}", context.capabilities().adapter.name, context.tier()));
            let x = blank(&context, 1024, false);
            let refused = multiply_peak_coop(&context, x.buffer(), x.buffer(), x.buffer(), 1);
            assert!(matches!(refused, Err(Error::Unsupported { .. })));
            continue;
        }
        // Whole numbers up to 4: sums are at most 17 steps x 8 products x 16 x 16 = 2^15.1, exact in f32.
        let mut g = Gen::new(1);
        let mut whole = |len: usize| (0..len).map(|_| g.below(9) as f32 - 4.0).collect::<Vec<_>>();
        let (mut a, mut b) = (whole(512), whole(1024));
        let (a_t, b_t) = (tensor(&context, &mut a, true), tensor(&context, &mut b, true));
        for (workgroups, steps) in [(1, 1), (3, 17), (130, 0)] {
            let out = blank(&context, workgroups * 512, false);
            multiply_peak_coop(&context, a_t.buffer(), b_t.buffer(), out.buffer(), steps).unwrap();
            let want = reference::multiply_peak_coop(&wide(&a), &wide(&b), steps);
            for (block, got) in out.to_vec().unwrap().chunks_exact(256).enumerate() {
                assert_within(&format!("block {block}, {steps} steps"), got, &want, |_| 0.0);
            }
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let context = &every_tier()[0];
    let (x, odd) = (blank(context, 8, false), blank(context, 7, false));
    let peak = |x: &walsh::Tensor, chains, steps| {
        let out = blank(context, x.len(), false);
        multiply_peak(context, x.buffer(), out.buffer(), chains, steps, [0.5, 1.0])
    };
    assert!(matches!(peak(&odd, 8, 8), Err(Error::Shape { .. })));
    assert!(matches!(peak(&x, 3, 8), Err(Error::Invalid { .. })));
    assert!(matches!(peak(&x, 8, 4), Err(Error::Invalid { .. })));
}
