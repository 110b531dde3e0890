//! Attention against a KV cache, token by token, against the float64 reference.

mod common;

use common::{Gen, U16, U32, assert_within, blank, every_tier, precisions, tensor, wide};
use walsh::kernel::attention_cached::{CacheDims, KvCache, attention_cached, kv_append};
use walsh::reference::attention_cached::attention_cached as reference;
use walsh::{Error, Tensor};

#[test]
fn tokens_match_the_reference() {
    for context in every_tier() {
        for &f16 in precisions(&context) {
            for (batch, heads, head_dim, max_seq) in [(1, 2, 32, 5), (2, 3, 64, 70)] {
                if f16 && head_dim == 32 {
                    continue;
                }
                let dims = CacheDims { batch, heads, head_dim, max_seq };
                let width = heads * head_dim;
                let rows = batch * heads;
                let what = format!("{dims:?} f16 {f16}");
                let (keys, values) =
                    (blank(&context, rows * max_seq * head_dim, f16), blank(&context, rows * max_seq * head_dim, f16));
                let length = Tensor::from_u32(&context, &[0], &[1]).unwrap();
                let cache = KvCache { keys: keys.buffer(), values: values.buffer(), length: length.buffer() };
                let mut g = Gen::new(head_dim as u64);
                let fill = f64::from(blank(&context, 1, f16).to_vec().unwrap()[0]);
                let mut k_want = vec![fill; rows * max_seq * head_dim];
                let mut v_want = k_want.clone();
                for t in 0..max_seq {
                    length.write(&(t as u32).to_le_bytes()).unwrap();
                    let mut qkv: Vec<f32> = g.hard(batch * 3 * width).iter().map(|v| v * 0.5).collect();
                    let qkv_t = tensor(&context, &mut qkv, f16);
                    let out = blank(&context, batch * width, f16);
                    kv_append(&context, qkv_t.buffer(), cache, dims).unwrap();
                    attention_cached(&context, qkv_t.buffer(), cache, out.buffer(), dims).unwrap();
                    let qkv = wide(&qkv);
                    let mut q = Vec::new();
                    for b in 0..batch {
                        let token = &qkv[b * 3 * width..][..3 * width];
                        q.extend_from_slice(&token[..width]);
                        for h in 0..heads {
                            let to = ((b * heads + h) * max_seq + t) * head_dim;
                            k_want[to..to + head_dim].copy_from_slice(&token[width + h * head_dim..][..head_dim]);
                            v_want[to..to + head_dim].copy_from_slice(&token[2 * width + h * head_dim..][..head_dim]);
                        }
                    }
                    if ![0, 1, 7, 8, 63, 64, max_seq - 1].contains(&t) {
                        continue;
                    }
                    let want = reference(&q, &k_want, &v_want, head_dim, max_seq, t + 1);
                    let (d, n) = (head_dim as f64, (t + 1) as f64);
                    // As for `attention`: scores to (D + 8) u of their magnitudes, exponentials, at most one fading factor per key.
                    let bound = |i: usize| {
                        let (bh, c) = (i / head_dim, i % head_dim);
                        let row = |k: usize| (bh * max_seq + k) * head_dim;
                        let top = (0..=t)
                            .map(|k| {
                                (0..head_dim).map(|j| (q[bh * head_dim + j] * k_want[row(k) + j]).abs()).sum::<f64>()
                                    / d.sqrt()
                            })
                            .fold(0.0, f64::max);
                        let weight = U32 * ((d + 8.0) * top + 8.0 + 24.0 * top + 10.0 * n);
                        let magnitude: f64 = (0..=t).map(|k| v_want[row(k) + c].abs()).fold(0.0, f64::max);
                        let elem = if f16 { U16 * want[i].abs() + 2f64.powi(-25) } else { 0.0 };
                        (2.0 * weight + (2.0 * n + 80.0) * U32) * magnitude + elem
                    };
                    assert_within(&format!("{what} token {t}"), &out.to_vec().unwrap(), &want, bound);
                }
                // A full cache takes no more.
                length.write(&(max_seq as u32).to_le_bytes()).unwrap();
                let qkv_t = tensor(&context, &mut g.normals(batch * 3 * width), f16);
                kv_append(&context, qkv_t.buffer(), cache, dims).unwrap();
                assert_eq!(wide(&keys.to_vec().unwrap()), k_want, "{what}");
                assert_eq!(wide(&values.to_vec().unwrap()), v_want, "{what}");
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let context = &every_tier()[0];
    let length = Tensor::from_u32(context, &[0], &[1]).unwrap();
    let (qkv, cache, out) = (blank(context, 96, false), blank(context, 128, false), blank(context, 32, false));
    let cache = KvCache { keys: cache.buffer(), values: cache.buffer(), length: length.buffer() };
    let dims = CacheDims { batch: 1, heads: 1, head_dim: 32, max_seq: 5 };
    assert!(matches!(attention_cached(context, qkv.buffer(), cache, out.buffer(), dims), Err(Error::Shape { .. })));
    let dims = CacheDims { heads: 4, head_dim: 8, max_seq: 4, ..dims };
    assert!(matches!(attention_cached(context, qkv.buffer(), cache, out.buffer(), dims), Err(Error::Shape { .. })));
}
