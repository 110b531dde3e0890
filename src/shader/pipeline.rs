//! The only cache of pipelines: key to source to pipeline, compiled on threads of their own while the step is still being recorded.

use super::{Access, Key};
use crate::context::Shared;
use crate::{Error, Result, Tier};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A pipeline whose interface is known at once and whose compilation may still be running.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub id: u64,
    pub key: Key,
    pub bindings: Vec<Access>,
    pub params_size: u32,
    pub layout: wgpu::BindGroupLayout,
    compiled: Arc<OnceLock<Result<wgpu::ComputePipeline, String>>>,
}

impl Pipeline {
    /// The compiled pipeline; waits for the compiling thread if it is still at it.
    pub fn get(&self) -> Result<&wgpu::ComputePipeline> {
        self.compiled
            .wait()
            .as_ref()
            .map_err(|message| Error::Shader { key: self.key.to_string(), message: message.clone() })
    }
}

#[derive(Debug, Default)]
pub(crate) struct PipelineCache {
    map: Mutex<HashMap<Key, Arc<Pipeline>>>,
    next: AtomicU64,
}

impl PipelineCache {
    pub fn get(&self, shared: &Shared, key: Key) -> Result<Arc<Pipeline>> {
        if let Some(found) = self.map.lock().expect("no thread panics while it holds the cache").get(&key) {
            return Ok(found.clone());
        }
        // The list is closed so that a test can enumerate and translate it without a GPU.
        if !(key.kernel.variants)().contains(&key.defines) {
            return Err(Error::Shader { key: key.to_string(), message: "not in the kernel's list of variants".into() });
        }
        let pipeline = Arc::new(self.create(shared, key.clone())?);
        self.map.lock().expect("no thread panics while it holds the cache").insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn create(&self, shared: &Shared, key: Key) -> Result<Pipeline> {
        let reflected = key.reflect()?;
        check_limits(&key, &reflected, &shared.device.limits())?;
        let label = format!("walsh {key}");
        let entries: Vec<_> = (0u32..)
            .zip(&reflected.bindings)
            .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match access {
                        Access::Uniform => wgpu::BufferBindingType::Uniform,
                        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = shared
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
        let compiled = Arc::new(OnceLock::new());
        let job = {
            let (device, layout, compiled) = (shared.device.clone(), layout.clone(), compiled.clone());
            let (module, proven) = (reflected.module, key.kernel.proven_bounds);
            move || {
                let result = compile(&device, &label, module, proven, &layout);
                compiled.set(result).expect("each pipeline is compiled by one thread");
            }
        };
        shared.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        shared.counters.shader_modules.fetch_add(1, Ordering::Relaxed);
        std::thread::Builder::new()
            .name("walsh compile".into())
            .spawn(job)
            .map_err(|e| Error::Device(format!("cannot start a thread to compile shaders: {e}")))?;
        Ok(Pipeline {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            bindings: reflected.bindings,
            params_size: reflected.params_size,
            layout,
            compiled,
            key,
        })
    }
}

fn check_limits(key: &Key, reflected: &super::Reflected, limits: &wgpu::Limits) -> Result<()> {
    let invocations: u32 = reflected.workgroup_size.iter().product();
    if invocations > limits.max_compute_invocations_per_workgroup {
        return Err(Error::Limit {
            what: format!("the workgroup of {key}"),
            limit: "max_compute_invocations_per_workgroup",
            max: limits.max_compute_invocations_per_workgroup.into(),
            needed: invocations.into(),
        });
    }
    Ok(())
}

fn compile(
    device: &wgpu::Device,
    label: &str,
    module: naga::Module,
    proven_bounds: bool,
    layout: &wgpu::BindGroupLayout,
) -> Result<wgpu::ComputePipeline, String> {
    // Error scopes belong to the thread that pushes them, so a host's own scopes and callbacks never see these errors.
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let desc = wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module)),
    };
    let shader = if proven_bounds {
        // SAFETY: `Kernel::proven_bounds` is set only where the shader's header shows that every index is in bounds and every loop ends.
        #[expect(unsafe_code, reason = "bounds are argued in the shader's header")]
        unsafe {
            device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
        }
    } else {
        device.create_shader_module(desc)
    };
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(label),
        bind_group_layouts: &[Some(layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: Some(&pipeline_layout),
        module: &shader,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions {
            // Every kernel writes workgroup memory before it reads it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    });
    let errors = [pollster::block_on(validation.pop()), pollster::block_on(internal.pop())];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(error.to_string()),
        None => Ok(pipeline),
    }
}

impl Key {
    /// The best tier, at most `max`, that `kernel` is written for.
    pub(crate) fn best_tier(kernel: &super::Kernel, max: Tier) -> Tier {
        kernel.tiers.iter().copied().filter(|tier| *tier <= max).max().unwrap_or(Tier::Baseline)
    }
}
