//! The Walsh-Hadamard transform against the float64 reference: every size and strategy, types, signs, masks, gradients.

mod common;

use common::{
    Gen, U16, U32, assert_gradient, assert_within, blank, dtypes, every_tier, floats, precisions, stored, tensor, wide,
};
use walsh::kernel::hadamard::{Hadamard, Signs, Step, Strategy, hadamard, hadamard_with, sizes, supported};
use walsh::kernel::unary::{Unary, unary_backward};
use walsh::op::HadamardOptions;
use walsh::reference::hadamard::{hadamard as reference, sign, signs};
use walsh::{Buffer, Context, DType, Error, Gradients, Tensor, Tier};

/// Units of roundoff by which a block may be off in the Euclidean norm, and so each element of it: butterflies round each sum or
/// difference once, so a stage of them adds one relative to the norm, which the rest of an orthonormal transform keeps; a sum of m terms
/// is off by m - 1 units of the sum of their magnitudes, which is at most sqrt(m) times the block's norm per element, m elements, over
/// the matrix's own sqrt(m); the factor is rounded and so is the product with it.
fn units(n: usize) -> f64 {
    let odd = n >> n.trailing_zeros();
    let (m, k) = if odd == 1 { (1, n.ilog2()) } else { (4 * odd, n.trailing_zeros() - 2) };
    let m = m as f64;
    1.01 * (f64::from(k) + (m - 1.0) * m.sqrt() + 2.0)
}

/// The Euclidean norm of the block of `n` that holds element `i`.
fn norms(x: &[f64], n: usize) -> Vec<f64> {
    x.chunks(n).map(|b| b.iter().map(|v| v * v).sum::<f64>().sqrt()).collect()
}

fn dtype(f16: bool) -> DType {
    if f16 { DType::F16 } else { DType::F32 }
}

fn ones(context: &Context, len: usize) -> Tensor {
    Tensor::from_f32(context, &vec![1.0; len], &[len]).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_matrices_are_orthonormal_and_the_reference_multiplies_by_them() {
    for n in sizes().into_iter().filter(|n| *n <= 128) {
        let rows: Vec<Vec<f64>> = (0..n).map(|r| (0..n).map(|c| sign(n, r, c)).collect()).collect();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                assert_eq!(dot, if i == j { n as f64 } else { 0.0 }, "rows {i} and {j} of {n}");
            }
        }
        let symmetric = (0..n).all(|i| (0..n).all(|j| rows[i][j] == rows[j][i]));
        assert_eq!(symmetric, n % 5 != 0 && n % 7 != 0, "{n}");
        let x: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
        for transpose in [false, true] {
            let dense = |i: usize| {
                let entry = |j: usize| if transpose { rows[i][j] } else { rows[j][i] };
                (0..n).map(|j| x[j] * entry(j)).sum::<f64>() / (n as f64).sqrt()
            };
            let fast = reference(&x, n, transpose);
            assert!((0..n).all(|i| (fast[i] - dense(i)).abs() < 1e-12), "{n} {transpose}");
        }
    }
}

#[test]
fn the_sizes_are_those_that_are_promised() {
    let mut want: Vec<usize> = (0..16).map(|k| 1 << k).collect();
    for m in [12, 20, 28] {
        want.extend((0..11).map(|k| m << k));
    }
    want.sort_unstable();
    assert_eq!(sizes(), want);
    for n in 0..70_000 {
        assert_eq!(supported(n), want.binary_search(&n).is_ok(), "{n}");
    }
}

/// Every size as it is chosen on the adapter and, where that differs, as it is elsewhere: forward, back, and back again is where it began.
#[test]
fn every_size_matches_the_reference_and_transposes_to_its_inverse() {
    for context in every_tier() {
        for n in sizes() {
            if !n.is_power_of_two() && again(&context, n) {
                continue;
            }
            // More than one block per invocation, a ragged last workgroup, but not much data.
            let rows = if n > 2048 { 1 } else { 3 };
            let cols = n * (if n > 512 { 1 } else { (515 / n).max(1) });
            let data = Gen::new(n as u64).hard(rows * cols);
            let x = Tensor::from_f32(&context, &data, &[rows, cols]).unwrap();
            let want = reference(&wide(&data), n, false);
            let want_back = reference(&wide(&data), n, true);
            let norm = norms(&wide(&data), n);
            for strategy in Strategy::ALL {
                let what = format!("{n} {strategy:?} on {} {}", context.capabilities().adapter.name, context.tier());
                let task = |transpose| Hadamard { transpose, ..Hadamard::new(rows, cols, n) };
                let run = |x: &Tensor, transpose| {
                    let out = blank(&context, rows * cols, false);
                    hadamard_with(&context, &task(transpose), Some(x.buffer()), out.buffer(), strategy).unwrap();
                    out
                };
                let y = run(&x, false);
                let bound = |i: usize| units(n) * U32 * norm[i / n];
                assert_within(&what, &y.to_vec().unwrap(), &want, bound);
                let back = run(&x, true).to_vec().unwrap();
                assert_within(&format!("{what} transposed"), &back, &want_back, bound);
                // The second transform adds as much again.
                let again = run(&y, true).to_vec().unwrap();
                assert_within(&format!("{what} and back"), &again, &wide(&data), |i| 2.01 * bound(i));
            }
        }
    }
}

/// Sizes and columns, in part no powers of two: on GPUs one for every way to share the work, on software adapters, which take seconds to
/// compile some, those of most kinds.
fn sample(context: &Context) -> Vec<(usize, usize)> {
    let mut all = vec![(1, 37), (2, 6), (8, 136), (128, 640), (12, 60)];
    if !context.capabilities().is_cpu() {
        all.extend([(4, 12), (64, 192), (512, 1024), (1024, 3072), (2048, 2048), (4096, 4096), (8192, 16384)]);
        all.extend([(16384, 16384), (32768, 65536), (24, 72), (20, 60), (40, 200), (112, 336), (10240, 10240)]);
    }
    all
}

/// Kernels of a lower tier, tested there: the cooperative one has none of its own, and software adapters take long to compile.
fn again(context: &Context, n: usize) -> bool {
    let cpu = context.capabilities().is_cpu();
    context.tier() == Tier::Coop || (cpu && context.tier() > Tier::Baseline && n != 128)
}

fn rows_of(cols: usize) -> usize {
    if cols > 4096 { 1 } else { 5 }
}

#[test]
fn types_factors_and_accumulation() {
    for context in every_tier() {
        for (n, cols) in sample(&context).into_iter().filter(|(n, _)| !again(&context, *n)) {
            let rows = rows_of(cols);
            let len = rows * cols;
            for &x16 in precisions(&context) {
                for &out16 in precisions(&context) {
                    for (accumulate, in_place) in [(false, false), (true, false), (false, true)] {
                        let cpu = context.capabilities().is_cpu();
                        if x16 != out16 && (in_place || (n > 8 && cpu)) || (n == 12 && x16 && cpu) {
                            continue;
                        }
                        let what = format!("{n} {x16} {out16} {accumulate} {in_place} {}", context.tier());
                        let mut data = Gen::new(n as u64).normals(len);
                        let x = tensor(&context, &mut data, x16);
                        let mut before = Gen::new(7).normals(len);
                        let out = if in_place { x.clone() } else { tensor(&context, &mut before, out16) };
                        let task = Hadamard { alpha: -2.5, accumulate, ..Hadamard::new(rows, cols, n) };
                        hadamard(&context, &task, (!in_place).then_some(x.buffer()), out.buffer()).unwrap();
                        let norm = norms(&wide(&data), n);
                        let base = |i: usize| if accumulate { f64::from(before[i]) } else { 0.0 };
                        let product = reference(&wide(&data), n, false);
                        let want: Vec<f64> = (0..len).map(|i| base(i) - 2.5 * product[i]).collect();
                        assert_within(&what, &out.to_vec().unwrap(), &want, |i| {
                            let error = 2.5 * units(n) * U32 * norm[i / n] + U32 * want[i].abs();
                            error + stored(dtype(out16), want[i].abs() + error)
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn signs_and_masks_are_exact() {
    const SEED: u64 = 3 << 40 | 11;
    for context in every_tier() {
        let mut words = [0u32; 16];
        words[0] = 9;
        let state = Tensor::from_u32(&context, &words, &[16]).unwrap();
        for (n, cols) in sample(&context).into_iter().filter(|(n, _)| !again(&context, *n)) {
            let rows = rows_of(cols);
            let len = rows * cols;
            let mut g = Gen::new(cols as u64);
            let data = g.hard(len);
            let d = signs(cols, SEED, 4, 9);
            let per_row = cols.div_ceil(32);
            let mask: Vec<u32> = (0..rows * per_row).map(|_| g.bits() as u32).collect();
            let kept = |i: usize| mask[i / cols * per_row + i % cols / 32] >> (i % cols % 32) & 1 == 1;
            let signed = |x: &[f32]| x.iter().enumerate().map(|(i, v)| v * d[i % cols] as f32).collect::<Vec<_>>();
            let masked =
                |x: &[f32]| x.iter().enumerate().map(|(i, v)| if kept(i) { *v } else { 0.0 }).collect::<Vec<_>>();
            let upload = |x: &[f32]| Tensor::from_f32(&context, x, &[len]).unwrap();
            let mask_t = Tensor::from_u32(&context, &mask, &[mask.len()]).unwrap();
            for strategy in Strategy::ALL {
                for (from_state, transpose) in [(false, false), (true, true)] {
                    let what = format!("{n} {strategy:?} {} {}", context.capabilities().adapter.name, context.tier());
                    let step = if from_state { Step::State(state.buffer().clone()) } else { Step::Number(9) };
                    let signs = Signs { seed: SEED, op: 4, step };
                    let run = |x: &[f32], signs: Option<&Signs>, mask: Option<&Buffer>| {
                        let out = blank(&context, len, false);
                        let task = Hadamard { transpose, signs, mask, ..Hadamard::new(rows, cols, n) };
                        hadamard_with(&context, &task, Some(upload(x).buffer()), out.buffer(), strategy).unwrap();
                        out.to_vec().unwrap()
                    };
                    let want = if transpose {
                        signed(&run(&masked(&data), None, None))
                    } else {
                        run(&signed(&masked(&data)), None, None)
                    };
                    let got = run(&data, Some(&signs), Some(mask_t.buffer()));
                    // The same operations on the same numbers, apart from the sign of zeros.
                    let zeroed = |x: &[f32]| x.iter().map(|v| v + 0.0).collect::<Vec<_>>();
                    assert_eq!(bits(&zeroed(&got)), bits(&zeroed(&want)), "{what}: signs and mask");
                    let only = run(&data, None, Some(mask_t.buffer()));
                    assert_eq!(bits(&zeroed(&only)), bits(&zeroed(&run(&masked(&data), None, None))), "{what}: mask");
                }
            }
        }
    }
}

#[test]
fn signs_depend_on_column_operation_step_and_seed_and_are_balanced() {
    let context = &every_tier()[0];
    for cols in [1, 3, 127, 128, 129, 5000] {
        let x = ones(context, 2 * cols);
        let out = blank(context, 2 * cols, false);
        let signs_of = Signs { seed: 5, op: 1, step: Step::Number(2) };
        let task = Hadamard { signs: Some(&signs_of), ..Hadamard::new(2, cols, 1) };
        hadamard(context, &task, Some(x.buffer()), out.buffer()).unwrap();
        let d = signs(cols, 5, 1, 2);
        assert_eq!(wide(&out.to_vec().unwrap()), [d.as_slice(), &d].concat(), "{cols} columns, both rows alike");
    }
    let d = signs(5000, 5, 1, 2);
    for other in [signs(5000, 6, 1, 2), signs(5000, 5, 2, 2), signs(5000, 5, 1, 3), signs(5000, 1 << 40 | 5, 1, 2)] {
        // Means of 5000 fair signs, and of their products: 6 standard deviations.
        let agreement: f64 = d.iter().zip(&other).map(|(a, b)| a * b).sum();
        assert!(agreement.abs() < 6.0 * 5000f64.sqrt(), "{agreement}");
        assert!(other.iter().sum::<f64>().abs() < 6.0 * 5000f64.sqrt());
    }
}

#[test]
fn what_is_not_finite_stays_in_its_block_and_a_mask_takes_it_out() {
    for context in every_tier() {
        for (n, cols) in [(2, 8), (64, 128), (1024, 2048), (24, 96), (4096, 8192)] {
            let blocks = 2 * cols / n;
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut data = Gen::new(3).normals(2 * cols);
                let bad = n + n / 2;
                data[bad] = value;
                let x = Tensor::from_f32(&context, &data, &[2, cols]).unwrap();
                let out = blank(&context, 2 * cols, false);
                let task = Hadamard::new(2, cols, n);
                hadamard(&context, &task, Some(x.buffer()), out.buffer()).unwrap();
                let got = out.to_vec().unwrap();
                for block in 0..blocks {
                    let part = &got[block * n..(block + 1) * n];
                    // By the bits: compilers assume that there are no such numbers.
                    let finite = |v: &f32| v.to_bits() & 0x7f80_0000 != 0x7f80_0000;
                    assert!(part.iter().all(|v| finite(v) == (block != 1)), "{n}: block {block} of {value}");
                }
                let per_row = cols.div_ceil(32);
                let mut words = vec![u32::MAX; 2 * per_row];
                words[bad / cols * per_row + bad % cols / 32] &= !(1 << (bad % cols % 32));
                let mask = Tensor::from_u32(&context, &words, &[words.len()]).unwrap();
                let task = Hadamard { mask: Some(mask.buffer()), ..task };
                hadamard(&context, &task, Some(x.buffer()), out.buffer()).unwrap();
                data[bad] = 0.0;
                let norm = norms(&wide(&data), n);
                let want = reference(&wide(&data), n, false);
                assert_within("masked", &out.to_vec().unwrap(), &want, |i| units(n) * U32 * norm[i / n]);
            }
        }
    }
}

/// In one kernel what is two: the transform, then the product with the derivative.
#[test]
fn the_derivative_of_an_activation_is_a_last_factor() {
    let rows = 3;
    for context in every_tier() {
        for dtype in dtypes(&context) {
            for (n, cols) in [(16, 96), (128, 384), (4, 12), (24, 48)] {
                let mut g = Gen::new(12);
                let (x, _) = floats(&context, &g.normals(rows * cols), &[rows, cols], dtype);
                let (pre, _) = floats(&context, &g.normals(rows * cols), &[rows, cols], dtype);
                let words: Vec<u32> = (0..rows * cols.div_ceil(32)).map(|_| g.bits() as u32).collect();
                let mask = Tensor::from_u32(&context, &words, &[words.len()]).unwrap();
                for mask in [None, Some(mask.buffer())] {
                    let two = Tensor::zeros(&context, &[rows, cols], dtype).unwrap();
                    let one = two.to_dtype(dtype).unwrap();
                    let task = Hadamard { transpose: true, mask, ..Hadamard::new(rows, cols, n) };
                    hadamard(&context, &task, Some(x.buffer()), two.buffer()).unwrap();
                    let want = Tensor::zeros(&context, &[rows, cols], dtype).unwrap();
                    unary_backward(&context, Unary::GeluErf, pre.buffer(), two.buffer(), want.buffer(), false).unwrap();
                    let fused = Hadamard { gelu_grad: Some(pre.buffer()), ..task };
                    hadamard(&context, &fused, Some(x.buffer()), one.buffer()).unwrap();
                    let want = wide(&want.to_vec().unwrap());
                    // The same operations, but for the transform's result on its way through memory: rounded to its type and again.
                    let unit = if dtype == DType::F16 { 3.0 * U16 } else { 4.0 * U32 };
                    let what = format!("{dtype}, blocks of {n}, masked: {}", mask.is_some());
                    let got = one.to_vec().unwrap();
                    assert_within(&what, &got, &want, |i| {
                        unit * want[i].abs() + if dtype == DType::F16 { 1e-7 } else { 1e-37 }
                    });
                    assert!(hadamard(&context, &fused, None, one.buffer()).is_err(), "in place");
                }
            }
        }
    }
}

/// What a product leaves whose K is cut: terms that are added up on the way in.
#[test]
fn an_input_may_be_a_sum_of_terms() {
    for context in every_tier() {
        for (n, cols) in sample(&context).into_iter().filter(|(n, _)| !again(&context, *n)) {
            let rows = 4;
            let len = rows * cols;
            let words: Vec<u32> = (0..rows * cols.div_ceil(32)).map(|_| Gen::new(5).bits() as u32).collect();
            let mask = Tensor::from_u32(&context, &words, &[words.len()]).unwrap();
            for (terms, masked) in [(2, true), (4, false), (5, false), (5, true), (10, true)] {
                let data = Gen::new(n as u64).normals(terms * len);
                let x = Tensor::from_f32(&context, &data, &[terms, len]).unwrap();
                let kept = |i: usize| {
                    !masked || words[i / cols * cols.div_ceil(32) + i % cols / 32] >> (i % cols % 32) & 1 == 1
                };
                let sum = |f: fn(f64) -> f64| -> Vec<f64> {
                    let of = |i: usize| (0..terms).map(|t| f(f64::from(data[t * len + i]))).sum();
                    (0..len).map(|i| if kept(i) { of(i) } else { 0.0 }).collect()
                };
                let (want, sizes) = (sum(|v| v), sum(f64::abs));
                // As of a transform, and an element's sum rounds once a term, by up to what its terms' magnitudes come to.
                let (norm, most) = (norms(&want, n), norms(&sizes, n));
                let bound = |i: usize| U32 * (units(n) * norm[i / n] + 1.01 * terms as f64 * most[i / n]);
                let product = reference(&want, n, true);
                for strategy in Strategy::ALL {
                    let mask = masked.then_some(mask.buffer());
                    let out = blank(&context, len, false);
                    let task = Hadamard { terms, mask, transpose: true, ..Hadamard::new(rows, cols, n) };
                    hadamard_with(&context, &task, Some(x.buffer()), out.buffer(), strategy).unwrap();
                    let what = format!("{terms} terms, {n} {strategy:?}, masked: {masked}");
                    assert_within(&what, &out.to_vec().unwrap(), &product, bound);
                    let more = Hadamard { accumulate: true, ..task };
                    hadamard_with(&context, &more, Some(x.buffer()), out.buffer(), strategy).unwrap();
                    let twice: Vec<f64> = product.iter().map(|v| 2.0 * v).collect();
                    assert_within(&what, &out.to_vec().unwrap(), &twice, |i| 2.0 * bound(i) + U32 * twice[i].abs());
                }
            }
        }
        let x = ones(&context, 2 * 12);
        let refused = |terms, [rows, cols]: [usize; 2], in_place: bool| {
            let task = Hadamard { terms, ..Hadamard::new(rows, cols, 2) };
            let out = ones(&context, rows * cols);
            let error = hadamard(&context, &task, (!in_place).then_some(x.buffer()), out.buffer()).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        };
        refused(0, [3, 4], false);
        refused(2, [3, 4], true);
        refused(3, [3, 4], false);
        refused(4, [3, 2], false);
    }
}

/// The bytes of the memory behind a tensor, as far as it goes.
fn memory(context: &Context, tensor: &Tensor) -> Vec<u8> {
    use walsh::wgpu;
    context.synchronize().unwrap();
    let binding = tensor.buffer().as_wgpu();
    let size = binding.buffer.size();
    let read = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(binding.buffer, 0, &read, 0, size);
    context.queue().submit([encoder.finish()]);
    read.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    context.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    read.get_mapped_range(..).unwrap().to_vec()
}

#[test]
fn nothing_is_written_past_the_end() {
    for context in every_tier() {
        for strategy in Strategy::ALL {
            for (n, cols) in
                [(1, 5), (2, 6), (4, 4), (32, 96), (256, 256), (2048, 2048), (16384, 16384), (12, 36), (112, 112)]
            {
                // Filled memory of the same size class goes back to the pool and is handed out again.
                let class = 64 * usize::div_ceil(cols + 4, 64).next_power_of_two();
                drop(blank(&context, class, false));
                let x = Tensor::from_f32(&context, &Gen::new(1).normals(cols), &[cols]).unwrap();
                let out = Tensor::zeros(&context, &[cols], DType::F32).unwrap();
                let before = memory(&context, &out);
                let task = Hadamard::new(1, cols, n);
                hadamard_with(&context, &task, Some(x.buffer()), out.buffer(), strategy).unwrap();
                let after = memory(&context, &out);
                // Bindings are whole vec4.
                let end = (4 * cols).next_multiple_of(16);
                assert_eq!(before[end..], after[end..], "{n} {strategy:?}");
                assert_ne!(before[..4 * cols], after[..4 * cols], "{n} {strategy:?}: nothing was written at all");
            }
        }
    }
}

#[test]
fn gradients_are_the_transposed_transform() {
    // The reference against differences.
    for n in [4, 20, 56] {
        let mut g = Gen::new(n as u64);
        let x: Vec<f64> = (0..n).map(|_| g.normal()).collect();
        let dy: Vec<f64> = (0..n).map(|_| g.normal()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let d = signs(n, 1, 2, 3);
        let mul = |a: &[f64]| a.iter().zip(&d).map(|(x, y)| x * y).collect::<Vec<_>>();
        let dx = mul(&reference(&dy, n, true));
        assert_gradient("signs first", &x, &dx, |x| dot(&reference(&mul(x), n, false), &dy));
        let dx = reference(&mul(&dy), n, false);
        assert_gradient("transposed", &x, &dx, |x| dot(&mul(&reference(x, n, true)), &dy));
    }
    for context in every_tier() {
        for (n, transpose) in [(16, false), (16, true), (40, false), (40, true)] {
            for &f16 in precisions(&context) {
                if n == 40 && (f16 || !transpose || again(&context, n)) && context.capabilities().is_cpu() {
                    continue;
                }
                let (rows, cols) = (3, 2 * n);
                let mut g = Gen::new(n as u64);
                let (mut data, mut upstream) = (g.normals(rows * cols), g.normals(rows * cols));
                let x = tensor(&context, &mut data, f16).reshape(&[rows, cols]).unwrap().with_grad();
                let dy = tensor(&context, &mut upstream, f16).reshape(&[rows, cols]).unwrap();
                let options =
                    HadamardOptions { transpose, signs: Some(Signs { seed: 8, op: 2, step: Step::Number(1) }) };
                let d = signs(cols, 8, 2, 1);
                let mul = |a: &[f64]| a.iter().enumerate().map(|(i, x)| x * d[i % cols]).collect::<Vec<_>>();
                let apply = |x: &[f64], transpose| {
                    if transpose { mul(&reference(x, n, true)) } else { reference(&mul(x), n, false) }
                };
                // Twice the same input: the gradients add up.
                let y = x.hadamard(n, &options).unwrap();
                let z = x.hadamard(n, &options).unwrap();
                let mut gradients = Gradients::default();
                y.backward_from(dy.clone(), &mut gradients).unwrap();
                let once = gradients.get(&x).unwrap().to_vec().unwrap();
                let check = |what: &str, got: &[f32], from: &[f32], transpose, times: f64| {
                    let norm = norms(&wide(from), n);
                    let want: Vec<f64> = apply(&wide(from), transpose).iter().map(|v| v * times).collect();
                    assert_within(what, got, &want, |i| {
                        times * (units(n) * U32 * norm[i / n] + 2.0 * stored(dtype(f16), want[i].abs()))
                            + U32 * want[i].abs()
                    });
                };
                check("value", &y.to_vec().unwrap(), &data, transpose, 1.0);
                check("gradient", &once, &upstream, !transpose, 1.0);
                z.backward_from(dy.clone(), &mut gradients).unwrap();
                check("both", &gradients.get(&x).unwrap().to_vec().unwrap(), &upstream, !transpose, 2.0);
            }
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let context = &every_tier()[0];
    let x = blank(context, 96, false);
    let out = blank(context, 96, false);
    let run = |task: &Hadamard<'_>| hadamard(context, task, Some(x.buffer()), out.buffer());
    assert!(run(&Hadamard::new(3, 32, 32)).is_ok());
    assert!(run(&Hadamard::new(2, 48, 48)).is_ok());
    for n in [0, 3, 6, 18, 36, 65536, 24576] {
        let error = run(&Hadamard::new(3, 32, n)).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{n}: {error}");
        assert!(error.to_string().contains("32768") && error.to_string().contains("28672"), "{error}");
    }
    assert!(matches!(run(&Hadamard::new(3, 32, 64)), Err(Error::Shape { .. })));
    assert!(matches!(run(&Hadamard::new(4, 32, 32)), Err(Error::Shape { .. })));
    assert!(matches!(run(&Hadamard::new(usize::MAX, 32, 32)), Err(Error::Shape { .. })));
    let short = Tensor::from_u32(context, &[1; 2], &[2]).unwrap();
    let task = Hadamard { mask: Some(short.buffer()), ..Hadamard::new(3, 32, 32) };
    assert!(matches!(run(&task), Err(Error::Shape { .. })));
    let signs = Signs { seed: 0, op: 0, step: Step::State(short.buffer().clone()) };
    let task = Hadamard { signs: Some(&signs), ..Hadamard::new(3, 32, 32) };
    assert!(matches!(run(&task), Err(Error::Shape { .. })));
    assert!(matches!(x.hadamard(5, &HadamardOptions::default()), Err(Error::Invalid { .. })));
    let tokens = Tensor::from_u32(context, &[1; 4], &[4]).unwrap();
    assert!(matches!(tokens.hadamard(4, &HadamardOptions::default()), Err(Error::Shape { .. })));
    let none = Tensor::zeros(context, &[0, 32], DType::F32).unwrap();
    assert!(none.hadamard(32, &HadamardOptions::default()).unwrap().is_empty());
}
