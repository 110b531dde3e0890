//! Rotary embedding against the float64 reference: both pairings, in place in packed QKV and out of place, with a position offset, and back.

mod common;

use common::{Gen, U16, U32, assert_within, every_tier, precisions, tensor, wide};
use walsh::kernel::rope::{Lane, Rope, RopePairs, frequencies, rope};
use walsh::reference::rope::rope as reference;
use walsh::{Error, Tensor};

#[test]
fn results_match_the_reference() {
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (n, (head_dim, pairs, offset)) in [
                (8, RopePairs::HalfSplit, 0),
                (64, RopePairs::Interleaved, 0),
                (32, RopePairs::HalfSplit, 1000),
                (128, RopePairs::Interleaved, 3),
            ]
            .into_iter()
            .enumerate()
            {
                let (batch, seq, heads) = (2, 17, 3);
                let what = format!("{head_dim} {pairs:?} {offset} f16 {f16}");
                let (rows, width) = (batch * seq, heads * head_dim);
                let f = frequencies(10000.0, head_dim);
                let f_t = Tensor::from_f32(&context, &f, &[f.len()]).unwrap();
                let offset_t = Tensor::from_u32(&context, &[offset], &[1]).unwrap();
                let task = |inverse| Rope {
                    rows,
                    seq,
                    heads,
                    head_dim,
                    pairs,
                    inverse,
                    frequencies: f_t.buffer(),
                    position_offset: (offset > 0).then_some(offset_t.buffer()),
                };
                // k of packed qkv in place; its heads are the middle third of a token.
                let mut packed = Gen::new(n as u64).hard(rows * 3 * width);
                let t = tensor(&context, &mut packed, f16);
                let lane = Lane { stride: 3 * width, offset: width };
                rope(&context, task(false), None, t.buffer(), lane).unwrap();
                let got = t.to_vec().unwrap();
                let middle =
                    |x: &[f32]| x.chunks(3 * width).flat_map(|r| r[width..2 * width].to_vec()).collect::<Vec<_>>();
                let x = wide(&middle(&packed));
                let (interleaved, offset) = (pairs == RopePairs::Interleaved, offset as usize);
                let turn = |x: &[f64], sign| reference(x, seq, heads, &wide(&f), interleaved, offset, sign);
                let want = turn(&x, 1.0);
                // Length of the pair of element i.
                let length = |i: usize| {
                    let (head, at, half) = (i / head_dim * head_dim, i % head_dim, head_dim / 2);
                    let other = if interleaved { at ^ 1 } else { (at + half) % head_dim };
                    x[head + at].hypot(x[head + other])
                };
                // The angle is rounded once where fma is not fused (twice the bound for both roundings), the reduction and the series add 8 u.
                let angle = |i: usize| {
                    let at = i % head_dim;
                    let pair = if interleaved { at / 2 } else { at % (head_dim / 2) };
                    (((i / width) % seq + offset) as f64) * f64::from(f[pair])
                };
                let bound = |i: usize| {
                    let elem = if f16 { U16 * length(i) + 2f64.powi(-25) } else { 0.0 };
                    (2.0 * angle(i) + 12.0) * U32 * length(i) + elem
                };
                assert_within(&what, &middle(&got), &want, bound);
                for (row, (before, after)) in packed.chunks(3 * width).zip(got.chunks(3 * width)).enumerate() {
                    assert_eq!(before[..width], after[..width], "q of row {row} is left alone");
                    assert_eq!(before[2 * width..], after[2 * width..], "v of row {row} is left alone");
                }
                // Out of place and backwards: from the packed middle to a tensor of its own.
                let out = common::blank(&context, rows * width, f16);
                let own = Lane { stride: width, offset: 0 };
                rope(&context, task(true), Some((t.buffer(), lane)), out.buffer(), own).unwrap();
                let want = turn(&wide(&middle(&got)), -1.0);
                assert_within(&format!("back {what}"), &out.to_vec().unwrap(), &want, |i| 2.0 * bound(i));
                assert_within(&format!("and forth {what}"), &out.to_vec().unwrap(), &x, |i| 4.0 * bound(i));
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let context = &every_tier()[0];
    let f = Tensor::from_f32(context, &[1.0; 8], &[8]).unwrap();
    let x = common::blank(context, 64, false);
    let call = |head_dim: usize, lane: Lane| {
        let task = Rope {
            rows: 2,
            seq: 2,
            heads: 2,
            head_dim,
            pairs: RopePairs::HalfSplit,
            inverse: false,
            frequencies: f.buffer(),
            position_offset: None,
        };
        rope(context, task, None, x.buffer(), lane)
    };
    assert!(call(16, Lane { stride: 32, offset: 0 }).is_ok());
    for (head_dim, stride, offset) in [(12, 24, 0), (16, 33, 0), (16, 32, 4), (16, 64, 0), (8, 16, 0)] {
        assert!(
            matches!(call(head_dim, Lane { stride, offset }), Err(Error::Shape { .. })),
            "{head_dim} {stride} {offset}"
        );
    }
}
