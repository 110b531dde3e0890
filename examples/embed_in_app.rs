//! Training inside an application that owns the device.
//!
//! The host makes instance, adapter, device and queue, and all submits and polls are its own. Between training steps it runs its own compute work,
//! here a kernel that draws a chart, and that kernel reads the loss straight from the memory of walsh's tensor. walsh only records into the
//! host's encoder.

use walsh::nn::GptConfig;
use walsh::optim::{AdamWOptions, Schedule};
use walsh::train::{BatchShape, Dataset, GptRun, Model};
use walsh::{Context, Counts, DType, Tier, wgpu};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Width of the image: a column per step.
pub const WIDTH: u32 = 48;
/// Height of the image.
pub const HEIGHT: u32 = 16;
const TOP: f32 = 5.0;

/// The host's own shader: draws the bar of this step into the image, and appends the loss to a list.
const DRAW: &str = "
struct Frame { step: u32, width: u32, height: u32, top: f32 }
@group(0) @binding(0) var<uniform> frame: Frame;
@group(0) @binding(1) var<storage, read> loss: array<f32>;  // walsh's tensor
@group(0) @binding(2) var<storage, read_write> image: array<u32>;
@group(0) @binding(3) var<storage, read_write> history: array<f32>;
@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= frame.height { return; }
    let above = f32(frame.height - id.x) / f32(frame.height) * frame.top;  // row 0 is on top
    image[id.x * frame.width + frame.step] = select(0u, 1u, loss[0] >= above - 0.5 * frame.top / f32(frame.height));
    if id.x == 0u { history[frame.step] = loss[0]; }
}";

fn main() -> Result<()> {
    let outcome = run(true)?;
    for row in outcome.image.chunks(WIDTH as usize) {
        println!("{}", row.iter().map(|pixel| if *pixel == 1 { '#' } else { '.' }).collect::<String>());
    }
    println!("loss {:.3} -> {:.3}", outcome.history[0], outcome.history[WIDTH as usize - 1]);
    println!("command buffers submitted by walsh: {}", outcome.counts.submits);
    Ok(())
}

/// What the host read from buffers of its own.
pub struct Outcome {
    /// 1 where a bar is.
    pub image: Vec<u32>,
    /// The losses as the host's shader saw them.
    pub history: Vec<f32>,
    /// The last loss as walsh's own readback gave it.
    pub last_loss: f32,
    /// What walsh created and submitted.
    pub counts: Counts,
}

/// With `features`, the device is created with what walsh can use of it; else with wgpu's default limits and nothing more.
pub fn run(features: bool) -> Result<Outcome> {
    // The host's part: everything that an application has anyway.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let required_features = if features {
        // Cooperative matrices are experimental in wgpu; a host that wants them opts in by `experimental_features`.
        walsh::recommended_features(&adapter) - wgpu::Features::all_experimental_mask()
    } else {
        wgpu::Features::empty()
    };
    let required_limits = if features { adapter.limits() } else { wgpu::Limits::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("host"),
        required_features,
        required_limits,
        ..Default::default()
    }))?;

    // walsh's part.
    let context = Context::from_wgpu(&adapter, &device, &queue);
    if context.tier() == Tier::Coop {
        // On a host's device nobody has tried these kernels yet. This is the one call that submits to the host's queue and waits, so it comes
        // before the first frame; where a result is wrong, the context goes on without the tier.
        println!("{}", context.self_test()?);
    }
    let data = Dataset::built_in(64, 1)?;
    let vocab = data.vocab().len();
    let config =
        GptConfig { layers: 1, heads: 2, embd: 32, block: 64, vocab, dropout: 0.0, bias: false, quantizer: None };
    let shape = BatchShape { batch: 4, block: 64, accumulate: 1 };
    let options = AdamWOptions { schedule: Schedule::constant(1e-2), ..AdamWOptions::default() };
    let mut model = GptRun::new(&context, config, shape, options, 1, DType::F32)?;

    let host = Host::new(&device, model.loss());
    for step in 0..WIDTH {
        let (inputs, targets) = data.train_batch(step.into(), 0, shape.batch, shape.block);
        model.train_step(&inputs, &targets)?;
        // One frame: walsh's training step, then the host's own work, in one command buffer of the host's.
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("frame") });
        context.record(&mut encoder)?;
        host.draw(&queue, &mut encoder, step);
        queue.submit([encoder.finish()]);
    }

    // The host reads what it drew. A value of walsh's comes the same way: requested, recorded, submitted and polled by the host.
    let last_loss = model.loss().read()?;
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read") });
    context.record(&mut encoder)?;
    let [image, history] = [&host.image, &host.history].map(|from| {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let to = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("host read"),
            size: from.size(),
            usage,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(from, 0, &to, 0, from.size());
        to
    });
    queue.submit([encoder.finish()]);
    for buffer in [&image, &history] {
        buffer.slice(..).map_async(wgpu::MapMode::Read, |_| ());
    }
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(Outcome {
        image: bytemuck::pod_collect_to_vec(&image.slice(..).get_mapped_range()?),
        history: bytemuck::pod_collect_to_vec(&history.slice(..).get_mapped_range()?),
        last_loss: bytemuck::pod_read_unaligned(&last_loss.wait()?),
        counts: context.counts(),
    })
}

/// The host's own pipeline and buffers.
struct Host {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    frame: wgpu::Buffer,
    image: wgpu::Buffer,
    history: wgpu::Buffer,
}

impl Host {
    fn new(device: &wgpu::Device, loss: &walsh::Tensor) -> Self {
        use wgpu::BufferUsages as U;
        let buffer = |label, words: u32, usage| {
            let size = u64::from(words) * 4;
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        let frame = buffer("frame", 4, U::UNIFORM | U::COPY_DST);
        let image = buffer("image", WIDTH * HEIGHT, U::STORAGE | U::COPY_SRC);
        let history = buffer("history", WIDTH, U::STORAGE | U::COPY_SRC);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("draw"),
            source: wgpu::ShaderSource::Wgsl(DRAW.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("draw"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let resources = [
            frame.as_entire_binding(),
            // The tensor keeps its place in memory, so this bind group stays valid.
            wgpu::BindingResource::Buffer(loss.buffer().as_wgpu()),
            image.as_entire_binding(),
            history.as_entire_binding(),
        ];
        let entries: Vec<_> =
            (0..).zip(resources).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("draw"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self { pipeline, bind_group, frame, image, history }
    }

    fn draw(&self, queue: &wgpu::Queue, encoder: &mut wgpu::CommandEncoder, step: u32) {
        queue.write_buffer(&self.frame, 0, bytemuck::cast_slice(&[step, WIDTH, HEIGHT, TOP.to_bits()]));
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(HEIGHT.div_ceil(16), 1, 1);
    }
}
