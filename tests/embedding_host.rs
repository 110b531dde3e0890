//! What walsh promises a host that owns the device: no submits, no polls, no callbacks or error scopes of its own left behind, and results like
//! those of a context of its own.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use walsh::nn::GptConfig;
use walsh::optim::{AdamWOptions, Schedule};
use walsh::train::{BatchShape, GptRun, Model};
use walsh::{Context, ContextOptions, DType, Error, Tensor, Tier, wgpu};

/// A host's device on each adapter, with everything that walsh can use or with nothing beyond the default limits.
fn hosts() -> Vec<(wgpu::Adapter, wgpu::Device, wgpu::Queue)> {
    let only = std::env::var("WALSH_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    let mut all = Vec::new();
    for adapter in Context::adapters() {
        if !adapter.get_info().name.to_lowercase().contains(&only) {
            continue;
        }
        let features = walsh::recommended_features(&adapter) - wgpu::Features::all_experimental_mask();
        for (features, limits) in [(wgpu::Features::empty(), wgpu::Limits::default()), (features, adapter.limits())] {
            let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
                label: Some("host"),
                required_features: features,
                required_limits: limits,
                ..Default::default()
            }))
            .unwrap();
            all.push((adapter.clone(), device, queue));
        }
    }
    assert!(!all.is_empty(), "no adapter to test on; `cargo xtask test` installs a software driver");
    all
}

const SHAPE: BatchShape = BatchShape { batch: 2, block: 16, accumulate: 1 };

fn model(context: &Context) -> GptRun {
    let config =
        GptConfig { layers: 1, heads: 2, embd: 32, block: 16, vocab: 11, dropout: 0.1, bias: false, quantizer: None };
    let options = AdamWOptions { schedule: Schedule::constant(1e-2), clip: 1.0, ..AdamWOptions::default() };
    GptRun::new(context, config, SHAPE, options, 3, DType::F32).unwrap()
}

fn batch(step: u32) -> (Vec<u32>, Vec<u32>) {
    let token = |i: u32| (i * i + step) % 11;
    ((0..32).map(token).collect(), (1..33).map(token).collect())
}

fn submit(context: &Context, device: &wgpu::Device, queue: &wgpu::Queue) {
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    context.record(&mut encoder).unwrap();
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

/// Losses of `steps` steps, `per_submit` of them in one command buffer of the host's.
fn host_losses(context: &Context, device: &wgpu::Device, queue: &wgpu::Queue, steps: u32, per_submit: u32) -> Vec<f32> {
    let mut run = model(context);
    let mut losses = Vec::new();
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for step in 0..steps {
        let (inputs, targets) = batch(step);
        run.train_step(&inputs, &targets).unwrap();
        losses.push(run.loss().read().unwrap());
        context.record(&mut encoder).unwrap();
        if (step + 1) % per_submit == 0 {
            let next = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            queue.submit([std::mem::replace(&mut encoder, next).finish()]);
        }
    }
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    losses.into_iter().map(|l| bytemuck::pod_read_unaligned(&l.wait().unwrap())).collect()
}

#[test]
fn a_host_gets_the_bits_that_a_context_of_walsh_gets_however_it_submits() {
    for (adapter, device, queue) in hosts() {
        let context = Context::from_wgpu(&adapter, &device, &queue);
        let name = adapter.get_info().name;
        if device.features().is_empty() {
            assert_eq!(context.tier(), Tier::Baseline, "{name}");
            assert!(!context.capabilities().f16);
        }
        let number = Context::adapters().iter().position(|a| a.get_info() == adapter.get_info()).unwrap();
        let own = ContextOptions::default().adapter(format!("#{number}")).max_tier(context.tier());
        let own = Context::with_options(&own).unwrap();
        let mut run = model(&own);
        let want: Vec<f32> = (0..6)
            .map(|step| {
                let (inputs, targets) = batch(step);
                run.train_step(&inputs, &targets).unwrap();
                run.loss().item().unwrap()
            })
            .collect();
        for per_submit in [1, 3, 6] {
            assert_eq!(host_losses(&context, &device, &queue, 6, per_submit), want, "{name}, {per_submit} a submit");
        }
        assert_eq!(context.counts().submits, 0);
        assert!(context.counts().dispatches > 0);
    }
}

#[test]
fn nothing_is_created_in_the_steady_state_of_a_host() {
    for (adapter, device, queue) in hosts() {
        let context = Context::from_wgpu(&adapter, &device, &queue);
        let mut run = model(&context);
        let mut step = |i: u32| {
            let (inputs, targets) = batch(i);
            run.train_step(&inputs, &targets).unwrap();
            submit(&context, &device, &queue);
        };
        (0..3).for_each(&mut step);
        let before = context.counts();
        (3..8).for_each(&mut step);
        let after = context.counts();
        assert_eq!(
            (after.buffers, after.bind_groups, after.pipelines, after.shader_modules, after.submits),
            (before.buffers, before.bind_groups, before.pipelines, before.shader_modules, 0),
        );
    }
}

#[test]
fn nothing_is_submitted_or_polled_behind_the_hosts_back() {
    for (adapter, device, queue) in hosts() {
        // Both callbacks run only when somebody polls (or submits, which polls).
        let (mapped, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let flag = mapped.clone();
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |_| flag.store(true, Relaxed));
        let flag = done.clone();
        queue.on_submitted_work_done(move || flag.store(true, Relaxed));
        let context = Context::from_wgpu(&adapter, &device, &queue);
        let mut run = model(&context);
        let (inputs, targets) = batch(0);
        run.train_step(&inputs, &targets).unwrap();
        let loss = run.loss().read().unwrap();
        context.submit().unwrap();
        context.synchronize().unwrap();
        // A value that the host has not submitted is refused, not waited for.
        let refused = run.loss().to_vec();
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        context.record(&mut encoder).unwrap();
        assert!(!mapped.load(Relaxed) && !done.load(Relaxed), "somebody polled");
        assert_eq!(context.counts().submits, 0);
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        assert!(mapped.load(Relaxed) && done.load(Relaxed));
        assert_eq!(loss.wait().unwrap().len(), 4);
    }
}

#[test]
fn the_hosts_callbacks_and_error_scopes_stay_its_own() {
    for (adapter, device, queue) in hosts() {
        let errors = Arc::new(Mutex::new(Vec::new()));
        let lost = Arc::new(AtomicU32::new(0));
        let list = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error| list.lock().unwrap().push(error.to_string())));
        let count = lost.clone();
        device.set_device_lost_callback(move |_, _| {
            count.fetch_add(1, Relaxed);
        });
        let bad = || {
            // Mapping for reading and writing at once is not allowed.
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bad"),
                size: 16,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE,
                mapped_at_creation: false,
            })
        };
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let context = Context::from_wgpu(&adapter, &device, &queue);
        let mut run = model(&context);
        let (inputs, targets) = batch(0);
        run.train_step(&inputs, &targets).unwrap();
        submit(&context, &device, &queue);
        // An error of walsh's request is walsh's to report, and neither the scope's nor the callback's.
        let limit = usize::try_from(device.limits().max_storage_buffer_binding_size / 4 + 1).unwrap();
        assert!(matches!(Tensor::zeros(&context, &[limit], DType::F32), Err(Error::Limit { .. })));
        let _ = bad();
        let caught = pollster::block_on(scope.pop()).expect("the host's own error");
        assert!(caught.to_string().contains("bad"), "{caught}");
        assert!(errors.lock().unwrap().is_empty(), "{errors:?}");
        let _ = bad();
        assert_eq!(errors.lock().unwrap().len(), 1, "{errors:?}");
        assert_eq!(lost.load(Relaxed), 0);
        drop((run, context));
        device.destroy();
        let _ = device.poll(wgpu::PollType::wait_indefinitely());
        assert_eq!(lost.load(Relaxed), 1);
    }
}

#[test]
fn two_contexts_on_one_device_are_independent() {
    for (adapter, device, queue) in hosts() {
        let [a, b] = [(); 2].map(|()| Context::from_wgpu(&adapter, &device, &queue));
        let x = Tensor::from_f32(&a, &[1.0, 2.0], &[1, 2]).unwrap();
        let y = Tensor::from_f32(&b, &[3.0, 4.0], &[1, 2]).unwrap();
        assert!(matches!(x.linear(&y, None), Err(Error::ContextMismatch { .. })));
        a.limit_tier(Tier::Baseline);
        assert_eq!(a.tier(), Tier::Baseline);
        assert_eq!(b.tier(), b.capabilities().tier);
        let before = b.counts();
        let _ = host_losses(&a, &device, &queue, 2, 1);
        assert_eq!(b.counts(), before);
        // What one records is not in what the other hands over.
        let read = y.read().unwrap();
        submit(&a, &device, &queue);
        submit(&b, &device, &queue);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&read.wait().unwrap()), [3.0, 4.0]);
        // One may go while the other stays.
        drop((x, a));
        let want = host_losses(&b, &device, &queue, 3, 1);
        let c = Context::from_wgpu(&adapter, &device, &queue);
        assert_eq!(host_losses(&c, &device, &queue, 3, 3), want);
    }
}

#[test]
fn a_device_whose_limits_are_too_low_for_a_kernel_is_told_which_one() {
    use walsh::kernel::attention::{AttentionDims, AttentionPath, attention_on};
    let (adapter, ..) = hosts().swap_remove(0);
    let limits = wgpu::Limits::default();
    for (name, required_limits) in [
        (
            "max_storage_buffers_per_shader_stage",
            wgpu::Limits { max_storage_buffers_per_shader_stage: 2, ..limits.clone() },
        ),
        (
            "max_compute_workgroup_storage_size",
            wgpu::Limits { max_compute_workgroup_storage_size: 1024, ..limits.clone() },
        ),
        ("max_compute_workgroup_size_x", wgpu::Limits { max_compute_workgroup_size_x: 128, ..limits.clone() }),
        (
            "max_compute_invocations_per_workgroup",
            wgpu::Limits { max_compute_invocations_per_workgroup: 128, ..limits.clone() },
        ),
    ] {
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("small host"),
            required_limits,
            ..Default::default()
        }))
        .unwrap();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let list = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error| list.lock().unwrap().push(error.to_string())));
        let context = Context::from_wgpu(&adapter, &device, &queue);
        let dims = AttentionDims { batch: 1, seq: 4, heads: 1, head_dim: 64, causal: true };
        let [qkv, out, lse] = [3 * dims.out_len(), dims.out_len(), dims.rows()]
            .map(|len| Tensor::zeros(&context, &[len], DType::F32).unwrap());
        let (qkv, out, lse) = (qkv.buffer(), out.buffer(), lse.buffer());
        let result = attention_on(&context, qkv, out, lse, dims, None, AttentionPath::Tiles);
        assert!(matches!(result, Err(Error::Limit { limit, .. }) if limit == name), "{name}: {result:?}");
        submit(&context, &device, &queue);
        assert!(errors.lock().unwrap().is_empty(), "{errors:?}");
    }
}
