//! Embeddings and their gradients against their float64 definition.

mod common;

use common::{Gen, U32, assert_gradient, assert_within, floats};
use walsh::kernel::Dropout;
use walsh::kernel::embedding::{Positions, PositionsGradient, embedding, embedding_backward};
use walsh::random::philox4x32_10;
use walsh::reference::embedding as reference;
use walsh::{Context, DType, Tensor};

const STEP: u32 = 7;
const SEED: u64 = 0x1234_5678_9abc_def0;

/// The factors of dropout, from the host's generator.
fn keep(len: usize, p: f32, op: u32, micro: u32) -> Vec<f64> {
    let threshold = (f64::from(p) * 4_294_967_296.0) as u32;
    (0..len as u32)
        .map(|i| {
            let bits = philox4x32_10([SEED as u32, (SEED >> 32) as u32], [i / 4, op, STEP, micro])[i as usize % 4];
            if bits < threshold { 0.0 } else { f64::from(1.0 / (1.0 - p)) }
        })
        .collect()
}

struct Case {
    batch: usize,
    seq: usize,
    cols: usize,
    vocab: usize,
    /// 0: no positions.
    block: usize,
    p: f32,
    accumulate: bool,
}

fn check(context: &Context, case: &Case, rng: &mut Gen) {
    let Case { batch, seq, cols, vocab, block, p, accumulate } = *case;
    let rows = batch * seq;
    let what =
        format!("{batch} x {seq} x {cols}, {vocab} tokens, {block} positions, dropout {p}, accumulate {accumulate}");
    // Frequent and rare tokens, as in text.
    let mut tokens: Vec<u32> =
        (0..rows).map(|_| (rng.unit().powi(3) * vocab as f64) as u32).map(|t| t.min(vocab as u32 - 1)).collect();
    let tensor = |tokens: &[u32]| Tensor::from_u32(context, tokens, &[rows]).unwrap();
    let mut words = [0u32; 16];
    words[0] = STEP;
    let state = Tensor::from_u32(context, &words, &[16]).unwrap();
    let dropout = (p > 0.0).then_some(Dropout { p, seed: SEED, op: 3, micro: 2, state: state.buffer() });
    let keep = if p > 0.0 { keep(rows * cols, p, 3, 2) } else { vec![1.0; rows * cols] };
    let (table, table64) = floats(context, &rng.hard(vocab * cols), &[vocab, cols], DType::F32);
    let (pos, pos64) = floats(context, &rng.hard(block.max(1) * cols), &[block.max(1), cols], DType::F32);
    let pos64 = if block > 0 { pos64 } else { Vec::new() };
    let out = Tensor::from_f32(context, &vec![1e30; rows * cols], &[rows, cols]).unwrap();
    let positions = (block > 0).then_some(Positions { table: pos.buffer(), seq, offset: None });
    embedding(context, tensor(&tokens).buffer(), table.buffer(), positions, dropout, out.buffer(), [rows, cols])
        .unwrap();
    let want = reference::forward(&tokens, &table64, &pos64, cols, seq, 0, &keep);
    // The sum and the product round once each, the factor itself is rounded (division: 2.5 ulp on the host's side none).
    assert_within(&format!("{what}: out"), &out.to_vec().unwrap(), &want, |i| 3.0 * U32 * want[i].abs());

    // From here on some tokens lie outside the table.
    if rows > 2 {
        tokens[1] = vocab as u32;
        tokens[rows - 1] = u32::MAX;
    }
    let (dout, dout64) = floats(context, &rng.hard(rows * cols), &[rows, cols], DType::F32);
    let (old_t, old_p) = (rng.normals(vocab * cols), rng.normals(block * cols));
    let run = || {
        let dtable = Tensor::from_f32(context, &old_t, &[vocab, cols]).unwrap();
        let dpos = Tensor::from_f32(context, &old_p, &[block, cols]).unwrap();
        let positions = (block > 0).then_some(PositionsGradient { table: dpos.buffer(), seq, accumulate });
        let (d, t) = (dout.buffer(), tensor(&tokens));
        embedding_backward(context, d, t.buffer(), dtable.buffer(), accumulate, positions, dropout, [rows, cols])
            .unwrap();
        (dtable.to_vec().unwrap(), dpos.to_vec().unwrap())
    };
    let (dtable, dpos) = run();
    let (mut want_t, mut want_p) = reference::backward(&dout64, &tokens, &keep, cols, vocab, block, seq);
    // A sum of n terms in any order is off by at most n u times the sum of magnitudes.
    let sizes: Vec<f64> = dout64.iter().map(|d| d.abs()).collect();
    let (size_t, size_p) = reference::backward(&sizes, &tokens, &keep, cols, vocab, block, seq);
    if accumulate {
        want_t.iter_mut().zip(&old_t).for_each(|(w, o)| *w += f64::from(*o));
        want_p.iter_mut().zip(&old_p).for_each(|(w, o)| *w += f64::from(*o));
    }
    let n = rows as f64 + 4.0;
    assert_within(&format!("{what}: dtable"), &dtable, &want_t, |i| n * U32 * size_t[i] + U32 * want_t[i].abs());
    assert_within(&format!("{what}: dpositions"), &dpos, &want_p, |i| n * U32 * size_p[i] + U32 * want_p[i].abs());
    let bits = |(a, b): (Vec<f32>, Vec<f32>)| a.into_iter().chain(b).map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits((dtable, dpos)), bits(run()), "{what}: equal inputs must give equal bits");
}

#[test]
fn matches_the_reference() {
    for context in common::every_tier() {
        let mut rng = Gen::new(1);
        let mut check = |batch, seq, cols, vocab, block, p, accumulate| {
            check(&context, &Case { batch, seq, cols, vocab, block, p, accumulate }, &mut rng);
        };
        check(1, 1, 1, 1, 0, 0.0, false);
        check(12, 64, 128, 65, 64, 0.2, false);
        check(5, 31, 33, 65, 40, 0.0, false);
        check(3, 67, 31, 119, 67, 0.3, true);
        check(7, 43, 36, 3, 0, 0.2, true);
        check(2, 1031, 4, 17, 0, 0.0, false);
        check(3, 37, 36, 120, 40, 0.2, false);
        check(2, 131, 35, 5003, 0, 0.0, true);
        check(4, 9, 29, 300, 9, 0.1, true);
    }
}

#[test]
fn rows_beyond_a_table_are_nan_and_positions_shift() {
    for context in common::every_tier() {
        let table: Vec<f32> = (0..3 * 4).map(|v| v as f32).collect();
        let table64: Vec<f64> = table.iter().map(|v| f64::from(*v)).collect();
        let tokens = [2, 3, u32::MAX, 0, 1, 2];
        let t = Tensor::from_u32(&context, &tokens, &[6]).unwrap();
        let table = Tensor::from_f32(&context, &table, &[3, 4]).unwrap();
        for offset in [0u32, 1, 2] {
            let out = Tensor::zeros(&context, &[6, 4], DType::F32).unwrap();
            let o = Tensor::from_u32(&context, &[offset], &[1]).unwrap();
            // The table of tokens also serves as that of positions: three of them, sequences of two.
            let positions = Positions { table: table.buffer(), seq: 2, offset: Some(o.buffer()) };
            embedding(&context, t.buffer(), table.buffer(), Some(positions), None, out.buffer(), [6, 4]).unwrap();
            let want = reference::forward(&tokens, &table64, &table64, 4, 2, offset as usize, &[1.0; 24]);
            for (g, w) in out.to_vec().unwrap().into_iter().zip(want) {
                assert!(f64::from(g) == w || (g.is_nan() && w.is_nan()), "{g} against {w}");
            }
        }
        let positions = Positions { table: table.buffer(), seq: 4, offset: None };
        let out = Tensor::zeros(&context, &[6, 4], DType::F32).unwrap();
        assert!(embedding(&context, t.buffer(), table.buffer(), Some(positions), None, out.buffer(), [6, 4]).is_err());
    }
}

#[test]
fn reference_gradients_match_differences() {
    let mut rng = Gen::new(3);
    let mut data = |n: usize| rng.normals(n).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (cols, vocab, block, seq) = (3, 4, 2, 2);
    let tokens = [1, 3, 1, 0];
    let (table, pos, dout, keep) = (data(vocab * cols), data(block * cols), data(12), data(12));
    let loss = |table: &[f64], pos: &[f64]| {
        reference::forward(&tokens, table, pos, cols, seq, 0, &keep).iter().zip(&dout).map(|(a, b)| a * b).sum::<f64>()
    };
    let (dtable, dpos) = reference::backward(&dout, &tokens, &keep, cols, vocab, block, seq);
    assert_gradient("table", &table, &dtable, |t| loss(t, &pos));
    assert_gradient("positions", &pos, &dpos, |p| loss(&table, p));
}
