//! What the buffer pool and the recorder promise: limits and absurd sizes are refused by name, commands keep their order, a lost device is an error.

mod common;

use common::every_tier;
use walsh::nn::GptConfig;
use walsh::optim::{AdamWOptions, Init, ParameterBuilder};
use walsh::train::{BatchShape, GptRun, Model};
use walsh::{Context, ContextOptions, DType, Error, Tensor};

#[test]
fn a_tensor_beyond_the_binding_limit_is_refused_with_the_limits_name() {
    for context in every_tier() {
        let max = context.capabilities().limits.max_storage_buffer_binding_size;
        let len = usize::try_from(max / 4 + 1).unwrap();
        let held = context.held_bytes();
        let error = Tensor::zeros(&context, &[len], DType::F32).unwrap_err();
        match &error {
            // Where bindings may be larger than any tensor can be, the index is the limit.
            Error::Limit { limit, .. } if u32::try_from(len).is_err() => assert_eq!(*limit, "u32 element index"),
            Error::Limit { limit, max: allowed, needed, .. } => {
                assert_eq!((*limit, *allowed), ("max_storage_buffer_binding_size", max));
                assert!(*needed > max);
            }
            other => panic!("{other:?}"),
        }
        assert!(!error.is_failure(), "it is the request that was bad");
        assert_eq!(context.held_bytes(), held, "nothing was allocated");
        // The context is as good as before.
        assert_eq!(Tensor::from_f32(&context, &[1.5], &[1]).unwrap().to_vec().unwrap(), [1.5]);
    }
}

#[test]
fn absurd_sizes_are_errors() {
    for context in every_tier() {
        for shape in [
            &[1usize << 40][..],
            &[1 << 20, 1 << 20],
            &[1 << 40, 1 << 40],
            &[usize::MAX],
            &[usize::MAX, usize::MAX, usize::MAX],
            &[1 << 40, 1 << 40, 0],
            &[0, usize::MAX, 2],
        ] {
            for dtype in [DType::F32, DType::U32] {
                let result = Tensor::zeros(&context, shape, dtype);
                assert!(matches!(result, Err(Error::Limit { .. })), "{shape:?}: {result:?}");
            }
            assert!(Tensor::from_f32(&context, &[1.0], shape).is_err());
            let mut builder = ParameterBuilder::new();
            builder.add("absurd", shape, Init::Zeros);
            let result = builder.build(&context, 1, false);
            assert!(matches!(result, Err(Error::Limit { .. })), "{shape:?}: {result:?}");
        }
        // Nothing is a size too.
        let empty = Tensor::zeros(&context, &[3, 0], DType::F32).unwrap();
        assert!(empty.is_empty() && empty.to_vec().unwrap().is_empty());
        let mismatch = Tensor::from_f32(&context, &[1.0, 2.0], &[3]);
        assert!(matches!(mismatch, Err(Error::Shape { .. })), "{mismatch:?}");
    }
}

#[test]
fn uploads_keep_their_place_among_the_commands() {
    for context in every_tier() {
        let weight = Tensor::from_f32(&context, &[10.0], &[1, 1]).unwrap();
        let x = Tensor::from_f32(&context, &[1.0], &[1, 1]).unwrap();
        let mut results = Vec::new();
        let submits = context.counts().submits;
        for i in 1..=20u8 {
            x.write(bytemuck::bytes_of(&f32::from(i))).unwrap();
            results.push(x.linear(&weight, None).unwrap());
        }
        let reads: Vec<_> = results.iter().map(|r| r.read().unwrap()).collect();
        // Read before the write, although nothing was submitted in between.
        let before = x.read().unwrap();
        x.write(bytemuck::bytes_of(&-1.0f32)).unwrap();
        for (i, read) in (1..=20u8).zip(reads) {
            let got: f32 = bytemuck::pod_read_unaligned(&read.wait().unwrap());
            assert_eq!(got, 10.0 * f32::from(i));
        }
        assert_eq!(before.wait().unwrap(), 20.0f32.to_le_bytes());
        assert_eq!(x.item().unwrap(), -1.0);
        // All of the first part was one command buffer, the last readback another.
        assert_eq!(context.counts().submits - submits, 2);
    }
}

#[test]
fn a_readback_that_nobody_waits_for_harms_no_later_one() {
    for context in every_tier() {
        let x = Tensor::from_f32(&context, &[0.0], &[1]).unwrap();
        for i in 0..30u8 {
            x.write(bytemuck::bytes_of(&f32::from(i))).unwrap();
            let (dropped, kept) = (x.read().unwrap(), x.read().unwrap());
            match i % 3 {
                // Dropped before the submit, after it, and after the value has arrived.
                0 => drop(dropped),
                1 => {
                    context.submit().unwrap();
                    drop(dropped);
                }
                _ => {
                    context.synchronize().unwrap();
                    drop(dropped);
                }
            }
            assert_eq!(kept.wait().unwrap(), f32::from(i).to_le_bytes());
        }
        // The pool gave the same few buffers out again and again.
        let buffers = context.counts().buffers;
        drop(x.read().unwrap());
        assert_eq!(x.item().unwrap(), 29.0);
        assert_eq!(context.counts().buffers, buffers);
        // `poll` does not wait and gives the value once.
        let mut read = x.read().unwrap();
        assert!(read.poll().unwrap().is_none());
        context.synchronize().unwrap();
        assert_eq!(read.poll().unwrap().unwrap(), 29.0f32.to_le_bytes());
    }
}

#[test]
fn a_value_that_is_submitted_arrives_by_polling_alone() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(60);
    for context in every_tier() {
        let x = Tensor::from_f32(&context, &[1.5, -2.0], &[2]).unwrap();
        let (mut first, mut second) = (x.read().unwrap(), x.read().unwrap());
        context.submit().unwrap();
        let start = std::time::Instant::now();
        for read in [&mut first, &mut second] {
            let bytes = loop {
                if let Some(bytes) = read.poll().unwrap() {
                    break bytes;
                }
                assert!(start.elapsed() < LONG, "polling alone brings no value");
                std::thread::yield_now();
            };
            assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(&[1.5, -2.0]));
        }
        // Polling submits nothing.
        let submits = context.counts().submits;
        let mut unsubmitted = x.read().unwrap();
        assert!((0..100).all(|_| unsubmitted.poll().unwrap().is_none()));
        assert_eq!(context.counts().submits, submits);
        assert_eq!(unsubmitted.wait().unwrap().len(), 8);
    }
}

fn gone<T: std::fmt::Debug>(what: &str, result: walsh::Result<T>) {
    assert!(matches!(result, Err(Error::DeviceLost(_) | Error::Device(_))), "{what}: {result:?}");
    assert!(result.unwrap_err().is_failure());
}

#[test]
fn a_lost_device_is_an_error_and_not_a_panic() {
    for context in every_tier() {
        let x = Tensor::from_f32(&context, &[1.0, 2.0], &[1, 2]).unwrap();
        let recorded = x.linear(&x, None).unwrap();
        let pending = recorded.read().unwrap();
        context.device().destroy();
        gone("a value under way", pending.wait());
        gone("a value", x.to_vec());
        gone("synchronize", context.synchronize());
        gone("check", context.check());
        gone("a large tensor", Tensor::zeros(&context, &[1 << 20], DType::F32).and_then(|t| t.to_vec()));
        gone(
            "a kernel",
            x.layer_norm(&x, None, 1e-5, DType::F32).or_else(|_| x.linear(&x, None)).and_then(|y| y.to_vec()),
        );
        if context.capabilities().features.contains(walsh::wgpu::Features::TIMESTAMP_QUERY) {
            gone("a timing", context.gpu_time(|| x.linear(&x, None).map(|_| ())));
        }
    }
}

#[test]
fn training_survives_the_loss_of_its_device_with_an_error() {
    for context in every_tier() {
        let config = GptConfig {
            layers: 1,
            heads: 2,
            embd: 32,
            block: 16,
            vocab: 11,
            dropout: 0.1,
            bias: false,
            quantizer: None,
        };
        let shape = BatchShape { batch: 2, block: 16, accumulate: 1 };
        let mut run = GptRun::new(&context, config.clone(), shape, AdamWOptions::default(), 3, DType::F32).unwrap();
        let tokens: Vec<u32> = (0..32).map(|i| i % 11).collect();
        for _ in 0..3 {
            run.train_step(&tokens, &tokens).unwrap();
        }
        let stats = run.stats().unwrap();
        context.device().destroy();
        // Steps are submitted ahead of the device, so the loss is seen once the host waits for one of them, which it does after a few.
        let noticed = (0..8).map(|_| run.train_step(&tokens, &tokens)).position(|result| result.is_err());
        assert!(noticed.is_some(), "training went on for 8 steps without a device");
        gone("train_step", run.train_step(&tokens, &tokens));
        gone("stats", walsh::train::PendingStats::wait(stats));
        gone("eval", run.eval(&tokens, &tokens));
        gone("export", run.export());
        gone("decoder", run.decoder().and_then(|mut d| walsh::train::Decoder::start(&mut d, &[1])));
        gone(
            "a new model",
            GptRun::new(&context, config, shape, AdamWOptions::default(), 3, DType::F32)
                .and_then(|mut run| run.train_step(&tokens, &tokens)),
        );
        drop(run);
        context.trim();
    }
}

#[test]
fn an_adapter_that_is_not_there_is_refused_with_those_that_are() {
    let names: Vec<String> = Context::adapters().iter().map(|a| a.get_info().name).collect();
    for wanted in ["no such adapter", "#4711", "#", "#-1", "#x"] {
        let error = Context::with_options(&ContextOptions::default().adapter(wanted)).unwrap_err();
        assert!(matches!(error, Error::NoAdapter(_)), "{wanted}: {error:?}");
        assert!(!error.is_failure());
        let message = error.to_string();
        assert!(message.contains(wanted), "{message}");
        for name in &names {
            assert!(message.contains(name.as_str()), "{message}");
        }
    }
}

#[test]
fn threads_may_share_a_context() {
    for context in every_tier() {
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let context = &context;
                scope.spawn(move || {
                    let weight = Tensor::from_f32(context, &[2.0], &[1, 1]).unwrap();
                    for i in 0..50u8 {
                        let value = f32::from(thread) * 100.0 + f32::from(i);
                        let x = Tensor::from_f32(context, &[value], &[1, 1]).unwrap();
                        assert_eq!(x.linear(&weight, None).unwrap().item().unwrap(), 2.0 * value);
                    }
                });
            }
        });
    }
}

#[test]
fn timings_span_copies_and_need_a_dispatch() {
    for context in every_tier() {
        if !context.capabilities().features.contains(walsh::wgpu::Features::TIMESTAMP_QUERY) {
            continue;
        }
        let large = Tensor::zeros(&context, &[512, 512], DType::F32).unwrap();
        let small = Tensor::from_f32(&context, &[1.0], &[1, 1]).unwrap();
        let heavy = || large.linear(&large, None).map(|_| ());
        let light = || small.linear(&small, None).map(|_| ());
        let copy = || small.write(bytemuck::bytes_of(&1.0f32));
        heavy().and_then(|()| light()).and_then(|()| context.synchronize()).unwrap();
        let shortest = |work: &dyn Fn() -> walsh::Result<()>| {
            (0..9).map(|_| context.gpu_time(work).unwrap()).fold(f64::INFINITY, f64::min)
        };
        let alone = shortest(&heavy);
        let first = shortest(&|| heavy().and_then(|()| copy()).and_then(|()| light()));
        let last = shortest(&|| light().and_then(|()| copy()).and_then(|()| heavy()).and_then(|()| copy()));
        let middle = shortest(&|| {
            light().and_then(|()| copy()).and_then(|()| heavy()).and_then(|()| copy()).and_then(|()| light())
        });
        for time in [first, last, middle] {
            // A timer that missed the large product would show a thousandth of it; other work of the machine may double any of these.
            assert!(time > 0.1 * alone && time < 100.0 * alone, "{alone}: {first} {last} {middle}");
        }
        for work in [&copy as &dyn Fn() -> walsh::Result<()>, &|| Ok(()), &|| light().and_then(|()| context.submit())] {
            let result = context.gpu_time(work);
            assert!(matches!(result, Err(Error::Invalid { .. })), "{result:?}");
        }
        assert_eq!(small.item().unwrap(), 1.0);

        if !context.capabilities().features.contains(walsh::wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            continue;
        }
        let dispatches = context.counts().dispatches;
        let profile = context.profile(|| heavy().and_then(|()| copy()).and_then(|()| light()).and_then(|()| copy()));
        let profile = profile.unwrap();
        assert_eq!(profile.len() as u64, context.counts().dispatches - dispatches);
        assert!(profile.iter().all(|(_, time)| (0.0..10.0).contains(time)), "{profile:?}");
        let total: f64 = profile.iter().map(|(_, time)| time).sum();
        assert!(total > 0.1 * alone, "{alone}: {profile:?}");
        assert!(context.profile(copy).unwrap().is_empty());
        // More than one query set holds, each dispatch in a pass of its own.
        let many = context.profile(|| (0..2100).try_for_each(|_| light().and_then(|()| copy()))).unwrap();
        assert!(many.len() >= 2100 && many.iter().all(|(_, time)| (0.0..10.0).contains(time)));
    }
}

#[test]
fn buffers_that_a_kernel_may_not_share_are_refused_by_name() {
    for context in every_tier() {
        let x = Tensor::from_f32(&context, &[1.0; 64], &[64]).unwrap();
        let result = walsh::kernel::accumulate::accumulate(&context, x.buffer(), x.buffer(), true);
        let Err(Error::Invalid { what, got, .. }) = result else { panic!("{result:?}") };
        assert!(what.contains("accumulate") && what.contains('`') && got.contains('`'), "{what}: {got}");
    }
}

#[test]
fn buffers_of_another_context_are_refused_where_no_kernel_runs() {
    use walsh::format::PackedMatrix;
    use walsh::kernel::packed::Packed;
    use walsh::kernel::reduce::{Reduction, reduce};
    for context in every_tier() {
        // On a device of its own, and on the same one, where the pools are two.
        let beside = Context::from_parts(context.device(), context.queue(), context.capabilities().clone());
        for other in [&Context::new().unwrap(), &beside] {
            let packed = Packed::from_host(&context, &PackedMatrix::zeros("int4".parse().unwrap(), 2, 64).unwrap());
            let [scalar, empty] = [1, 0].map(|len| Tensor::zeros(&context, &[len], DType::F32).unwrap());
            let results = [
                packed.unwrap().to_host(other).map(|_| ()),
                reduce(other, empty.buffer(), scalar.buffer(), Reduction::Sum(1.0)),
            ];
            for (i, result) in results.into_iter().enumerate() {
                assert!(matches!(result, Err(Error::ContextMismatch { .. })), "{i}: {result:?}");
            }
            // Both are as good as before.
            assert_eq!(scalar.item().unwrap(), 0.0);
            let mut encoder = other.device().create_command_encoder(&walsh::wgpu::CommandEncoderDescriptor::default());
            other.record(&mut encoder).unwrap();
            drop(encoder.finish());
            other.check().unwrap();
        }
    }
}

#[test]
fn threads_that_need_one_pipeline_compile_it_once() {
    let run = |threads: usize| {
        let context = Context::new().unwrap();
        let ready = std::sync::Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let x = Tensor::from_f32(&context, &[2.0; 64], &[8, 8]).unwrap();
                    ready.wait();
                    x.linear(&x, None).unwrap();
                });
            }
        });
        context.counts().pipelines
    };
    assert_eq!(run(8), run(1));
}
