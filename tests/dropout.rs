//! Dropout against the host's random numbers, to the bit of the mask.

mod common;

use common::{Gen, U16, U32, assert_within, blank, every_tier, precisions, tensor};
use walsh::kernel::Dropout;
use walsh::kernel::dropout::dropout;
use walsh::reference::dropout::factors;
use walsh::{Error, Tensor};

#[test]
fn results_match_the_reference() {
    for context in every_tier() {
        let mut words = [0u32; 16];
        words[0] = 5;
        let state = Tensor::from_u32(&context, &words, &[16]).unwrap();
        for &x16 in precisions(&context) {
            for &out16 in precisions(&context) {
                for (residual, p, len) in [(false, 0.1, 4097), (true, 0.5, 1022), (false, 0.0, 9), (true, 0.0, 3)] {
                    let drop = Dropout { p, seed: 42 << 32 | 7, op: 3, micro: 2, state: state.buffer() };
                    let mut g = Gen::new(len as u64);
                    let (mut x, mut r) = (g.hard(len), g.normals(len));
                    let (x_t, r_t) = (tensor(&context, &mut x, x16), tensor(&context, &mut r, false));
                    let out = blank(&context, len, out16);
                    dropout(&context, x_t.buffer(), residual.then_some(r_t.buffer()), out.buffer(), drop).unwrap();
                    let f = factors(len, f64::from(p), drop.seed, 3, 5, 2);
                    let base = |i: usize| if residual { f64::from(r[i]) } else { 0.0 };
                    let want: Vec<f64> = (0..len).map(|i| f64::from(x[i]) * f[i] + base(i)).collect();
                    let got = out.to_vec().unwrap();
                    assert_within(&format!("p {p} {x16} {out16} {residual}"), &got, &want, |i| {
                        let product = (want[i] - base(i)).abs();
                        let elem = if out16 { U16 * want[i].abs() + 2f64.powi(-25) } else { 0.0 };
                        // The scale itself is rounded on the host, in the same way or one ulp apart.
                        3.0 * U32 * product + U32 * want[i].abs() + elem
                    });
                    if !residual && p > 0.0 {
                        assert!((0..len).all(|i| (got[i] == 0.0) == (f[i] == 0.0 || x[i] == 0.0)), "the mask is exact");
                        let kept = f.iter().filter(|f| **f != 0.0).count() as f64;
                        let expected = len as f64 * (1.0 - f64::from(p));
                        let sigma = (expected * f64::from(p)).sqrt();
                        assert!((kept - expected).abs() < 6.0 * sigma, "kept {kept} of {len}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let context = &every_tier()[0];
    let (x, y) = (blank(context, 8, false), blank(context, 7, false));
    let state = Tensor::from_u32(context, &[0; 16], &[16]).unwrap();
    let with = |p| Dropout { p, seed: 0, op: 0, micro: 0, state: state.buffer() };
    assert!(matches!(dropout(context, x.buffer(), None, x.buffer(), with(1.0)), Err(Error::Invalid { .. })));
    assert!(matches!(dropout(context, x.buffer(), None, x.buffer(), with(f32::NAN)), Err(Error::Invalid { .. })));
    assert!(matches!(dropout(context, x.buffer(), None, y.buffer(), with(0.5)), Err(Error::Shape { .. })));
}
