//! The graph: accumulation, sharing, misuse, checkpoints, long chains.

mod common;

use common::{Gen, every_tier};
use walsh::op::LossOptions;
use walsh::optim::{AdamW, AdamWOptions, Init, ParameterBuilder, Parameters};
use walsh::{Context, DType, Error, Gradients, IGNORE, Result, Tensor, checkpoint};

fn leaf(context: &Context, data: &[f32]) -> Tensor {
    Tensor::from_f32(context, data, &[data.len()]).unwrap().with_grad()
}

fn gradient(gradients: &Gradients, of: &Tensor) -> Vec<f32> {
    gradients.get(of).expect("a gradient").to_vec().unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_tensor_that_is_used_twice_gets_both_gradients() {
    for context in every_tier() {
        let (x, y) = (leaf(&context, &[1.0, -2.0, 3.0]), leaf(&context, &[4.0, 5.0, -6.0]));
        // d/dx (x y + 3 x + x) = y + 4.
        let z = x.mul(&y).unwrap().add(&x.scale(3.0).unwrap()).unwrap().add(&x).unwrap();
        let mut gradients = z.sum().unwrap().backward().unwrap();
        assert_eq!(gradient(&gradients, &x), [8.0, 9.0, -2.0]);
        assert_eq!(gradient(&gradients, &y), [1.0, -2.0, 3.0]);
        // A second graph adds to them; what was read before stays as it was.
        let before = gradients.get(&x).unwrap().clone();
        x.square().unwrap().sum().unwrap().backward_into(&mut gradients).unwrap();
        assert_eq!(gradient(&gradients, &x), [10.0, 5.0, 4.0]);
        assert_eq!(before.to_vec().unwrap(), [8.0, 9.0, -2.0]);
        // In the middle of a graph.
        let x = leaf(&context, &[2.0]);
        let middle = x.square().unwrap();
        let gradients = middle.mul(&middle.scale(0.5).unwrap()).unwrap().backward().unwrap();
        assert_eq!(gradient(&gradients, &x), [16.0], "x^4 / 2");
    }
}

#[test]
fn one_tensor_may_be_every_operand() {
    for context in every_tier() {
        let x = leaf(&context, &[3.0, -1.0]);
        let run = |y: Result<Tensor>| gradient(&y.unwrap().sum().unwrap().backward().unwrap(), &x);
        assert_eq!(run(x.mul(&x)), [6.0, -2.0]);
        assert_eq!(run(x.add(&x)), [2.0, 2.0]);
        assert_eq!(run(x.sub(&x)), [0.0, 0.0]);
        // Quotients are good to 2.5 ulp.
        assert!(run(x.div(&x)).iter().all(|g| g.abs() < 1e-6));
        let m = Tensor::from_f32(&context, &[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap().with_grad();
        let run = |y: Result<Tensor>| gradient(&y.unwrap().sum().unwrap().backward().unwrap(), &m);
        // Of the sum of M M: row sums by column sums. d/dM_ij = rowsum(M)_j + colsum(M)_i.
        assert_eq!(run(m.matmul(&m)), [7.0, 11.0, 9.0, 13.0]);
        // Of the sum of M M^T: twice the column sums.
        assert_eq!(run(m.matmul_transposed(&m)), [8.0, 12.0, 8.0, 12.0]);
        // Operations that write several gradients in one kernel.
        let w = leaf(&context, &[1.0, 2.0, -1.0, 0.5]);
        let other = w.detach().with_grad();
        let third = w.detach().with_grad();
        let together = w.layer_norm(&w, Some(&w), 1e-5, DType::F32).unwrap().square().unwrap();
        let apart = w.layer_norm(&other, Some(&third), 1e-5, DType::F32).unwrap().square().unwrap();
        let parts = apart.sum().unwrap().backward().unwrap();
        let parts = [&w, &other, &third].map(|t| gradient(&parts, t));
        let got = gradient(&together.sum().unwrap().backward().unwrap(), &w);
        for i in 0..4 {
            let want: f32 = parts.iter().map(|p| p[i]).sum();
            assert!((got[i] - want).abs() <= 1e-6 * parts.iter().map(|p| p[i].abs()).sum::<f32>(), "{got:?} {want}");
        }
        let together = w.value_norm(&w, Some(&w), 1e-5, DType::F32).unwrap().square().unwrap();
        let apart = w.value_norm(&other, Some(&third), 1e-5, DType::F32).unwrap().square().unwrap();
        let parts = apart.sum().unwrap().backward().unwrap();
        let parts = [&w, &other, &third].map(|t| gradient(&parts, t));
        let got = gradient(&together.sum().unwrap().backward().unwrap(), &w);
        for i in 0..4 {
            let want: f32 = parts.iter().map(|p| p[i]).sum();
            assert!((got[i] - want).abs() <= 1e-6 * parts.iter().map(|p| p[i].abs()).sum::<f32>(), "{got:?} {want}");
        }
        let tokens = Tensor::from_u32(&context, &[1, 0], &[1, 2]).unwrap();
        let got = gradient(&tokens.embedding(&m, Some(&m), None).unwrap().sum().unwrap().backward().unwrap(), &m);
        assert_eq!(got, [2.0; 4]);
    }
}

#[test]
fn a_shared_weight_beside_biases_of_their_own() {
    let context = &every_tier()[0];
    let x = leaf(context, &[1.0, 2.0, -1.0, 0.5]);
    let [w, a, b] = [[1.0; 4], [0.0; 4], [0.5; 4]].map(|v| leaf(context, &v));
    let y = x.layer_norm(&w, Some(&a), 1e-5, DType::F32).unwrap();
    let z = y.layer_norm(&w, Some(&b), 1e-5, DType::F32).unwrap();
    let gradients = z.add(&y).unwrap().sum().unwrap().backward().unwrap();
    assert_eq!(gradient(&gradients, &b), [1.0; 4]);
    let (got, normed) = (gradient(&gradients, &w), y.to_vec().unwrap());
    // Of the second norm, whose sum does not depend on its input, and of the first: both normalised inputs are the same but for eps.
    assert!((0..4).all(|i| (got[i] - 2.0 * normed[i]).abs() < 1e-4), "{got:?} {normed:?}");
}

#[test]
fn gradients_share_no_memory() {
    for context in every_tier() {
        let (a, b) = (leaf(&context, &[1.0, 2.0]), leaf(&context, &[3.0, 4.0]));
        let upstream = Tensor::from_f32(&context, &[5.0, 6.0], &[2]).unwrap();
        let mut gradients = Gradients::default();
        a.add(&b).unwrap().reshape(&[2]).unwrap().backward_from(upstream.clone(), &mut gradients).unwrap();
        gradients.get(&a).unwrap().write(bytemuck::cast_slice(&[-1.0f32, -1.0])).unwrap();
        assert_eq!(gradient(&gradients, &b), [5.0, 6.0]);
        assert_eq!(upstream.to_vec().unwrap(), [5.0, 6.0]);
        // More for one of the terms must not reach the other.
        a.scale(2.0).unwrap().backward_from(upstream.clone(), &mut gradients).unwrap();
        assert_eq!(gradient(&gradients, &a), [9.0, 11.0]);
        assert_eq!(gradient(&gradients, &b), [5.0, 6.0]);
        // The same inside the graph: u's gradient gets more while v's is the tensor that both started with.
        let (u, v) = (a.scale(1.0).unwrap(), b.scale(1.0).unwrap());
        let w = u.scale(1.0).unwrap();
        let both = w.add(&v).unwrap().add(&u.scale(10.0).unwrap()).unwrap();
        let gradients = both.sum().unwrap().backward().unwrap();
        assert_eq!(gradient(&gradients, &a), [11.0; 2]);
        assert_eq!(gradient(&gradients, &b), [1.0; 2]);
        // The constant that backward passes start from is not the caller's to change.
        let s = Tensor::from_f32(&context, &[2.0], &[]).unwrap().with_grad();
        let one = s.reshape(&[]).unwrap().backward().unwrap();
        one.get(&s).unwrap().write(bytemuck::cast_slice(&[7.0f32])).unwrap();
        assert_eq!(gradient(&s.scale(1.0).unwrap().backward().unwrap(), &s), [1.0]);
    }
}

#[test]
fn without_gradients_there_is_no_graph() {
    let context = &every_tier()[0];
    let x = leaf(context, &[1.0, 2.0]);
    let y = context.no_grad(|| x.square().unwrap().sum().unwrap());
    assert!(!y.requires_grad());
    assert!(matches!(y.backward(), Err(Error::Invalid { .. })));
    assert!(!x.detach().square().unwrap().requires_grad());
    // It ends with the closure, also by a panic, and concerns this thread alone.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| context.no_grad(|| panic!("expected"))));
    assert!(caught.is_err() && x.square().unwrap().requires_grad());
    context.no_grad(|| {
        std::thread::scope(|s| {
            assert!(s.spawn(|| x.square().unwrap().requires_grad()).join().unwrap());
        });
        context.no_grad(|| ());
        assert!(!x.square().unwrap().requires_grad());
    });
}

#[test]
fn misuse_is_a_typed_error() {
    let contexts = [every_tier().remove(0), every_tier().remove(0)];
    let [x, other] = [&contexts[0], &contexts[1]].map(|c| leaf(c, &[1.0, 2.0]));
    // A second backward pass, over all or a part of a graph.
    let middle = x.square().unwrap();
    let loss = middle.sum().unwrap();
    let mut gradients = loss.backward().unwrap();
    assert!(matches!(loss.backward_into(&mut gradients), Err(Error::Invalid { .. })));
    assert!(matches!(middle.sum().unwrap().backward(), Err(Error::Invalid { .. })));
    assert_eq!(gradient(&gradients, &x), [2.0, 4.0]);
    // Not a scalar; a gradient that does not fit; nothing to differentiate.
    assert!(matches!(x.square().unwrap().backward(), Err(Error::Shape { .. })));
    let short = Tensor::zeros(&contexts[0], &[1], DType::F32).unwrap();
    assert!(matches!(x.square().unwrap().backward_from(short.clone(), &mut gradients), Err(Error::Shape { .. })));
    assert!(matches!(short.backward(), Err(Error::Invalid { .. })));
    // Contexts mixed.
    let foreign = other.detach();
    assert!(matches!(
        x.square().unwrap().backward_from(foreign, &mut gradients),
        Err(Error::ContextMismatch { op: "backward" })
    ));
    let [a, b] = [&x, &other].map(|t| t.reshape(&[1, 2]).unwrap());
    let tokens = Tensor::from_u32(&contexts[1], &[0], &[1]).unwrap();
    let results = [
        a.add(&b),
        a.sub(&b),
        a.mul(&b),
        a.div(&b),
        a.matmul(&b),
        a.matmul_transposed(&b),
        a.linear(&b, None),
        a.layer_norm(&other, None, 1e-5, DType::F32),
        a.rms_norm(&other, 1e-5, DType::F32),
        a.cross_entropy(&tokens, Default::default()),
        tokens.reshape(&[1, 1]).unwrap().embedding(&a, None, None),
        x.reshape(&[1, 1, 2]).unwrap().rope(1, &other, walsh::kernel::rope::RopePairs::HalfSplit),
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::ContextMismatch { .. })), "{i}: {result:?}");
    }
    // Two contexts may still share a collection of gradients.
    x.square().unwrap().sum().unwrap().backward_into(&mut gradients).unwrap();
    other.square().unwrap().sum().unwrap().backward_into(&mut gradients).unwrap();
    assert_eq!(gradient(&gradients, &other), [2.0, 4.0]);
}

#[test]
fn shapes_and_types_that_do_not_fit_are_typed_errors() {
    let context = &every_tier()[0];
    let x = Tensor::zeros(context, &[2, 3], DType::F32).unwrap();
    let u = Tensor::zeros(context, &[2, 3], DType::U32).unwrap();
    let scalar = Tensor::zeros(context, &[], DType::F32).unwrap();
    let empty = Tensor::zeros(context, &[0, 3], DType::F32).unwrap();
    let cube = Tensor::zeros(context, &[2, 2, 3], DType::F32).unwrap();
    let results = [
        x.add(&Tensor::zeros(context, &[2], DType::F32).unwrap()),
        x.mul(&u),
        u.exp(),
        u.sum(),
        u.reshape(&[5]),
        x.to_dtype(DType::U32),
        x.swiglu(),
        scalar.swiglu(),
        scalar.softmax(),
        scalar.sum_last(),
        scalar.sum_first(),
        empty.mean(),
        empty.max(),
        x.matmul(&x),
        x.matmul_transposed(&cube),
        scalar.matmul(&x),
        cube.matmul_transposed(&Tensor::zeros(context, &[3, 2, 3], DType::F32).unwrap()),
        u.linear(&x, None),
        x.linear(&u, None),
        x.rope(1, &x, walsh::kernel::rope::RopePairs::HalfSplit),
        cube.attention(1, true, None).and_then(|_| u.softmax()),
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Shape { .. } | Error::Unsupported { .. })), "{i}: {result:?}");
    }
}

#[test]
fn tensors_without_elements_pass_through() {
    for context in every_tier() {
        let x = Tensor::zeros(&context, &[0, 4], DType::F32).unwrap().with_grad();
        let w = Tensor::from_f32(&context, &[1.0; 12], &[3, 4]).unwrap().with_grad();
        let b = leaf(&context, &[1.0; 3]);
        let y = x.square().unwrap().linear(&w, Some(&b)).unwrap().softmax().unwrap();
        let y = y.mul(&b).unwrap().matmul(&Tensor::zeros(&context, &[3, 2], DType::F32).unwrap()).unwrap();
        let loss = y.sum_last().unwrap().sum().unwrap().add(&y.sum_first().unwrap().sum().unwrap()).unwrap();
        assert_eq!(loss.item().unwrap(), 0.0);
        let gradients = loss.backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().shape(), [0, 4]);
        assert_eq!(gradient(&gradients, &w), [0.0; 12]);
        assert_eq!(gradient(&gradients, &b), [0.0; 3]);
    }
}

#[test]
fn an_f16_gradient_of_f32_logits_reaches_any_operation() {
    for context in every_tier().into_iter().filter(|c| c.capabilities().f16) {
        let x = Tensor::from_f32(&context, &Gen::new(1).normals(12), &[2, 6]).unwrap().with_grad();
        let targets = Tensor::from_u32(&context, &[5, IGNORE], &[2]).unwrap();
        let run = |grad| {
            let logits = x.scale(2.0).unwrap();
            let options = walsh::op::LossOptions { grad, ..Default::default() };
            let loss = logits.cross_entropy(&targets, options).unwrap();
            // Used twice: the two gradients differ in type.
            let loss = loss.add(&logits.square().unwrap().sum().unwrap()).unwrap();
            let gradients = loss.backward().unwrap();
            assert_eq!(gradients.get(&x).unwrap().dtype(), DType::F32);
            gradient(&gradients, &x)
        };
        let (full, half) = (run(DType::F32), run(DType::F16));
        // Softmax minus one-hot is at most 1 and loses at most 2^-11 of itself; the factor is 2.
        assert!(full.iter().zip(&half).all(|(a, b)| (a - b).abs() <= 2.1 / 2048.0), "{full:?} {half:?}");
    }
}

const WIDTH: usize = 64;
const ROWS: usize = 128;

fn parameters(context: &Context, blocks: usize) -> Parameters {
    let mut builder = ParameterBuilder::new();
    for i in 0..blocks {
        builder.add(format!("{i}"), &[WIDTH, WIDTH], Init::Normal(0.1));
    }
    builder.build(context, 5, false).unwrap()
}

/// A block with several intermediate results of the size of its input.
fn block(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut y = x.linear(weight, None)?;
    for _ in 0..3 {
        y = y.gelu()?.scale(1.1)?;
    }
    y.softmax()?.add(x)
}

#[test]
fn a_checkpoint_gives_the_same_bits_in_less_memory() {
    const BLOCKS: usize = 6;
    for context in every_tier() {
        let mut results = Vec::new();
        let mut peaks = Vec::new();
        for checkpointed in [false, true] {
            let p = parameters(&context, BLOCKS);
            let input = Tensor::from_f32(&context, &Gen::new(3).normals(ROWS * WIDTH), &[ROWS, WIDTH]).unwrap();
            let input = input.with_grad();
            context.synchronize().unwrap();
            context.trim();
            let before = context.held_bytes();
            let mut x = input.clone();
            for i in 0..BLOCKS {
                let weight = p[i].clone();
                x = match (checkpointed, i % 2) {
                    (false, _) => block(&x, &weight).unwrap(),
                    // The parameter as something captured and as an input.
                    (true, 0) => checkpoint(&[&x], move |x| block(&x[0], &weight)).unwrap(),
                    (true, _) => checkpoint(&[&x, &weight], |x| block(&x[0], &x[1])).unwrap(),
                };
            }
            let loss = x.square().unwrap().sum().unwrap();
            drop(x);
            let gradients = loss.backward().unwrap();
            peaks.push(context.held_bytes() - before);
            let mut result = vec![bits(&loss.to_vec().unwrap()), bits(&gradient(&gradients, &input))];
            result.extend((0..BLOCKS).map(|i| bits(&p.gradient(i).unwrap().to_vec().unwrap())));
            assert!(result.iter().flatten().any(|b| *b != 0));
            results.push(result);
        }
        assert!(results[0] == results[1], "the bits differ");
        assert!(2 * peaks[1] < peaks[0], "{peaks:?} bytes held at the peak");
    }
}

#[test]
fn a_checkpoint_of_what_needs_no_gradient_or_is_its_input() {
    let context = &every_tier()[0];
    let (x, y) = (leaf(context, &[1.0, 2.0]), leaf(context, &[3.0, 4.0]));
    let constant = checkpoint(&[&x.detach()], |x| x[0].square()).unwrap();
    let same = checkpoint(&[&x], |x| Ok(x[0].clone())).unwrap();
    let nested = checkpoint(&[&y], |y| checkpoint(&[&y[0]], |y| y[0].square())?.scale(2.0)).unwrap();
    let gradients = constant.mul(&same).unwrap().add(&nested).unwrap().sum().unwrap().backward().unwrap();
    assert_eq!(gradient(&gradients, &x), [1.0, 4.0]);
    assert_eq!(gradient(&gradients, &y), [12.0, 16.0]);
    assert!(matches!(checkpoint(&[], |_| unreachable!()), Err(Error::Invalid { .. })));
}

#[test]
fn a_backward_pass_inside_no_grad_goes_through_checkpoints() {
    for context in every_tier() {
        let p = parameters(&context, 1);
        let x = leaf(&context, &[1.0, 2.0]);
        let weight = p[0].clone();
        let rows = Tensor::from_f32(&context, &[1.0; WIDTH], &[1, WIDTH]).unwrap();
        let inner = checkpoint(&[&rows], move |x| x[0].linear(&weight, None)).unwrap();
        let loss = checkpoint(&[&x], |x| x[0].square()).unwrap().sum().unwrap().add(&inner.sum().unwrap()).unwrap();
        context.no_grad(|| {
            assert_eq!(gradient(&loss.backward().unwrap(), &x), [2.0, 4.0]);
            assert!(!x.square().unwrap().requires_grad(), "the graph stayed on");
        });
        assert_eq!(p.gradient(0).unwrap().to_vec().unwrap(), [1.0; WIDTH * WIDTH]);
    }
}

#[test]
fn a_parameter_has_a_gradient_from_its_backward_pass_to_its_step() {
    for context in every_tier() {
        let p = parameters(&context, 2);
        let backward = || p[0].sum().unwrap().backward().unwrap();
        assert!(p.gradient(0).is_none());
        backward();
        assert_eq!(p.gradient(0).unwrap().to_vec().unwrap(), [1.0; WIDTH * WIDTH]);
        assert!(p.gradient(1).is_none(), "nothing wrote it");
        p.zero_grad();
        assert!(p.gradient(0).is_none());
        backward();
        AdamW::new(&p, AdamWOptions::default()).unwrap().step(&p).unwrap();
        assert!(p.gradient(0).is_none());
    }
}

/// What fails: a part of its graph was consumed before. It is older than what is added to it, so that the pass gets there last.
fn consumed(x: &Tensor) -> Tensor {
    let part = x.scale(2.0).unwrap();
    part.sum().unwrap().backward().unwrap();
    part.sum().unwrap()
}

#[test]
fn a_backward_pass_that_fails_leaves_no_gradients_to_add_to() {
    for context in every_tier() {
        for checkpointed in [false, true] {
            let p = parameters(&context, 3);
            let x = leaf(&context, &[3.0; 4]);
            // One parameter gets its gradient within the checkpoint, one outside of it, and the leaf both ways.
            let good = || {
                let inner = p[0].clone();
                let block = move |inputs: &[Tensor]| inner.sum()?.add(&inputs[0].sum()?);
                let first = if checkpointed { checkpoint(&[&x], block) } else { block(std::slice::from_ref(&x)) };
                first.unwrap().add(&p[1].sum().unwrap()).unwrap().add(&x.sum().unwrap()).unwrap()
            };
            let check = |gradients: &Gradients| {
                for i in [0, 1] {
                    assert_eq!(p.gradient(i).unwrap().to_vec().unwrap(), [1.0; WIDTH * WIDTH], "{checkpointed} {i}");
                }
                assert!(p.gradient(2).is_none());
                assert_eq!(gradient(gradients, &x), [2.0; 4], "{checkpointed}");
            };
            let mut gradients = Gradients::default();
            for _ in 0..2 {
                let stranger = leaf(&context, &[1.0]);
                let bad = consumed(&stranger).add(&good()).unwrap();
                assert!(matches!(bad.backward_into(&mut gradients), Err(Error::Invalid { .. })));
                assert!((0..3).all(|i| p.gradient(i).is_none()) && gradients.get(&x).is_none(), "{checkpointed}");
            }
            good().backward_into(&mut gradients).unwrap();
            check(&gradients);
            // What was there before is still there, for better or worse; what is new is not.
            let bad = consumed(&leaf(&context, &[1.0])).add(&good()).unwrap().add(&p[2].sum().unwrap()).unwrap();
            assert!(bad.backward_into(&mut gradients).is_err());
            assert!(p.gradient(0).is_some() && p.gradient(1).is_some() && p.gradient(2).is_none());
            p.zero_grad();
            let mut gradients = Gradients::default();
            good().backward_into(&mut gradients).unwrap();
            check(&gradients);
        }
    }
}

#[test]
fn writing_a_parameter_changes_what_products_in_f16_see() {
    for context in every_tier().into_iter().filter(|c| c.capabilities().f16) {
        let mut builder = ParameterBuilder::new();
        builder.add("w", &[4, 4], Init::Ones);
        let p = builder.build(&context, 1, true).unwrap();
        let x = Tensor::from_f16(&context, &[half::f16::ONE; 4], &[1, 4]).unwrap();
        let flat = p[0].reshape(&[16]).unwrap();
        for (i, weight) in
            [p[0].clone(), p[0].detach(), p[0].with_grad(), flat.clone(), flat.detach()].iter().enumerate()
        {
            let value = i as f32 + 2.0;
            weight.write(bytemuck::cast_slice(&[value; 16])).unwrap();
            assert_eq!(x.linear(&p[0], None).unwrap().to_vec().unwrap(), [4.0 * value; 4], "{i}");
        }
    }
}

#[test]
fn sizes_that_overflow_are_typed_errors() {
    let context = &every_tier()[0];
    let x = Tensor::zeros(context, &[2, 2, 96], DType::F32).unwrap();
    let (half, third) = (1usize << (usize::BITS / 2), usize::MAX / 3 + 1);
    // Modulo 2^64 these have no elements, and as many as `x`.
    let empty = Tensor::zeros(context, &[0], DType::F32).unwrap();
    assert!(matches!(empty.reshape(&[half, half]), Err(Error::Limit { .. })));
    assert!(matches!(x.reshape(&[usize::MAX, usize::MAX]), Err(Error::Limit { .. })));
    assert!(matches!(x.attention(third, true, None), Err(Error::Shape { .. })));
    assert!(matches!(x.attention(4, true, None), Err(Error::Unsupported { .. })), "heads of width 8");
    let frequencies = Tensor::zeros(context, &[16], DType::F32).unwrap();
    let pairs = walsh::kernel::rope::RopePairs::HalfSplit;
    assert!(matches!(x.rope(third, &frequencies, pairs), Err(Error::Shape { .. })));
    assert!(matches!(x.rope(usize::MAX / 32 + 2, &frequencies, pairs), Err(Error::Shape { .. })));
}

#[test]
fn without_f16_in_shaders_no_operation_gives_it() {
    let adapter = Context::adapters().remove(0);
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let context = Context::from_wgpu(&adapter, &device, &queue);
    assert!(!context.capabilities().f16);
    let x = Tensor::zeros(&context, &[2, 4], DType::F32).unwrap().with_grad();
    let w = Tensor::zeros(&context, &[4], DType::F32).unwrap();
    let targets = Tensor::zeros(&context, &[2], DType::U32).unwrap();
    let mut builder = ParameterBuilder::new();
    builder.add("w", &[4], Init::Ones);
    let results = [
        Tensor::zeros(&context, &[4], DType::F16),
        Tensor::from_f16(&context, &[half::f16::ONE], &[1]),
        x.to_dtype(DType::F16),
        x.layer_norm(&w, None, 1e-5, DType::F16),
        x.cross_entropy(&targets, LossOptions { grad: DType::F16, ..LossOptions::default() }),
        builder.build(&context, 1, true).map(|p| p[0].clone()),
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Unsupported { .. })), "{i}: {result:?}");
    }
}

#[test]
fn long_chains_need_no_stack() {
    let work = || {
        let context = &every_tier()[0];
        let x = leaf(context, &[1.0]);
        let chain = || {
            // Every eighth operation is computed, the others are views.
            (0..20_000).fold(x.clone(), |y, i| if i % 8 == 0 { y.neg().unwrap() } else { y.reshape(&[1]).unwrap() })
        };
        drop(chain());
        let end = chain();
        assert_eq!(end.to_vec().unwrap(), [1.0]);
        assert_eq!(gradient(&end.backward().unwrap(), &x), [1.0]);
        // The graph of a pass that failed, and one that is dropped on the way.
        let end = chain();
        end.backward().unwrap();
        assert!(end.backward().is_err());
    };
    // A stack on which 20,000 nested calls would not fit.
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
}
