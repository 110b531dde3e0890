//! Broadcasting operations and the sums of their gradients against the float64 reference.

mod common;

use common::{Gen, U16, U32, assert_within, blank, every_tier, precisions, tensor, wide};
use walsh::Error;
use walsh::kernel::binary::{Binary, binary, broadcast_shape, sum_to};
use walsh::reference::binary::{broadcast_index, sum_to as sum_reference};

#[test]
fn operations_match_the_reference() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[1], &[1]),
        (&[3, 5], &[3, 5]),
        (&[1031], &[1031]),
        (&[7, 33], &[33]),
        (&[7, 1], &[1, 33]),
        (&[], &[4, 3]),
        (&[2, 3, 4, 5], &[3, 1, 5]),
        (&[2, 1, 4, 1], &[3, 1, 5]),
        (&[2, 2, 1, 1, 3, 2], &[2, 2, 4, 5, 3, 2]),
    ];
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (n, (a_shape, b_shape)) in shapes.iter().enumerate() {
                let target = broadcast_shape(a_shape, b_shape).unwrap();
                let len = target.iter().product::<usize>();
                let mut g = Gen::new(n as u64);
                let mut a = g.hard(a_shape.iter().product());
                let mut b = g.hard(b_shape.iter().product());
                b.iter_mut().for_each(|v| *v = v.signum() * v.abs().max(0.05));
                let (a_t, b_t) = (tensor(&context, &mut a, f16), tensor(&context, &mut b, f16));
                for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div] {
                    let out = blank(&context, len, f16);
                    binary(&context, op, (a_t.buffer(), a_shape), (b_t.buffer(), b_shape), out.buffer()).unwrap();
                    let want: Vec<f64> = (0..len)
                        .map(|i| {
                            let x = f64::from(a[broadcast_index(i, &target, a_shape)]);
                            let y = f64::from(b[broadcast_index(i, &target, b_shape)]);
                            match op {
                                Binary::Add => x + y,
                                Binary::Sub => x - y,
                                Binary::Mul => x * y,
                                Binary::Div => x / y,
                            }
                        })
                        .collect();
                    // Division: 2.5 ulp.
                    let relative = if op == Binary::Div { 5.0 * U32 } else { U32 } + if f16 { U16 } else { 0.0 };
                    assert_within(
                        &format!("{a_shape:?} {op:?} {b_shape:?} f16 {f16}"),
                        &out.to_vec().unwrap(),
                        &want,
                        |i| relative * want[i].abs() + if f16 { 2f64.powi(-25) } else { 2f64.powi(-126) },
                    );
                }
            }
        }
    }
}

#[test]
fn sums_match_the_reference() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[1], &[1]),
        (&[7, 33], &[33]),
        (&[7, 33], &[7, 1]),
        (&[7, 33], &[]),
        (&[2, 3, 4, 5], &[3, 1, 5]),
        (&[2, 3, 4, 5], &[2, 1, 4, 1]),
        (&[300, 257], &[1]),
        (&[40_000, 3], &[3]),
    ];
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (n, (from, to)) in shapes.iter().enumerate() {
                let mut g = Gen::new(n as u64);
                let mut x = g.hard(from.iter().product());
                let x_t = tensor(&context, &mut x, f16);
                let len = to.iter().product();
                let mut old = g.normals(len);
                let x = wide(&x);
                let count = x.len() / len;
                let magnitude = sum_reference(&x.iter().map(|v| v.abs()).collect::<Vec<_>>(), from, to);
                let mut first: Option<Vec<f32>> = None;
                for accumulate in [false, true, false] {
                    let out = tensor(&context, &mut old, false);
                    sum_to(&context, x_t.buffer(), from, out.buffer(), to, accumulate).unwrap();
                    let mut want = sum_reference(&x, from, to);
                    if accumulate {
                        want.iter_mut().zip(&old).for_each(|(w, o)| *w += f64::from(*o));
                    }
                    let got = out.to_vec().unwrap();
                    assert_within(&format!("{from:?} to {to:?} {accumulate}"), &got, &want, |i| {
                        count as f64 * U32 * magnitude[i] + 2.0 * U32 * want[i].abs()
                    });
                    if !accumulate {
                        assert_eq!(*first.get_or_insert(got.clone()), got, "the same input gives the same bits");
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let context = &every_tier()[0];
    let x = blank(context, 6, false);
    let call = |a: &[usize], b: &[usize]| binary(context, Binary::Add, (x.buffer(), a), (x.buffer(), b), x.buffer());
    assert!(matches!(call(&[2, 3], &[3, 2]), Err(Error::Shape { .. })));
    assert!(matches!(call(&[6], &[7]), Err(Error::Shape { .. })));
    assert!(matches!(sum_to(context, x.buffer(), &[2, 3], x.buffer(), &[2, 2], false), Err(Error::Shape { .. })));
    assert_eq!(broadcast_shape(&[2, 1, 4], &[3, 1]).unwrap(), [2, 3, 4]);
}
