//! The only cache of pipelines: key to source to pipeline, compiled on threads of their own while the step is still being recorded.

use super::{Access, Dialect, Key};
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
    /// What the shader calls them.
    pub names: Vec<String>,
    pub params_size: u32,
    pub layout: wgpu::BindGroupLayout,
    compiled: Compiled,
}

type Compiled = Arc<OnceLock<Result<wgpu::ComputePipeline, String>>>;

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
        // Held until the pipeline is listed, so that no two threads compile one key. A panic in here leaves the map as it was.
        let mut map = self.map.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = map.get(&key) {
            return Ok(found.clone());
        }
        // The list is closed so that a test can enumerate and translate it without a GPU.
        if !(key.kernel.variants)().contains(&key.defines) {
            return Err(Error::Shader { key: key.to_string(), message: "not in the kernel's list of variants".into() });
        }
        let pipeline = Arc::new(self.create(shared, key.clone())?);
        map.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn create(&self, shared: &Shared, key: Key) -> Result<Pipeline> {
        let reflected = key.reflect(Dialect::of(&shared.caps))?;
        check_limits(&key, &reflected, &shared.caps.limits)?;
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
        let names = names(&reflected.module);
        let layout = shared.validated(|device| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries })
        })?;
        let job = {
            let (device, layout) = (shared.device.clone(), layout.clone());
            let (module, proven) = (reflected.module, key.kernel.proven_bounds);
            move || compile(&device, &label, module, proven, &layout)
        };
        shared.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        shared.counters.shader_modules.fetch_add(1, Ordering::Relaxed);
        let compiled = spawn(job)?;
        Ok(Pipeline {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            bindings: reflected.bindings,
            names,
            params_size: reflected.params_size,
            layout,
            compiled,
            key,
        })
    }
}

/// Runs `job` on a thread of its own. Whoever waits for the result gets one even where the compiler panics.
fn spawn(job: impl FnOnce() -> Result<wgpu::ComputePipeline, String> + Send + 'static) -> Result<Compiled> {
    let compiled = Compiled::default();
    let slot = compiled.clone();
    let job = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
            .unwrap_or_else(|_| Err("the shader compiler panicked".to_owned()));
        slot.set(result).expect("each pipeline is compiled by one thread");
    };
    std::thread::Builder::new()
        .name("walsh compile".into())
        .spawn(job)
        .map_err(|e| Error::Device(format!("cannot start a thread to compile shaders: {e}")))?;
    Ok(compiled)
}

/// Names of the bindings, in their order.
fn names(module: &naga::Module) -> Vec<String> {
    let mut found: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, var)| Some((var.binding?.binding, var.name.clone().unwrap_or_default())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// Compares what the shader declares with the device's limits, so that the caller learns which one is too low.
fn check_limits(key: &Key, reflected: &super::Reflected, limits: &wgpu::Limits) -> Result<()> {
    let [x, y, z] = reflected.workgroup_size;
    let module = &reflected.module;
    // Each variable counts as a multiple of 16 bytes, as in WebGPU.
    let shared: u32 = module
        .global_variables
        .iter()
        .filter(|(_, var)| var.space == naga::AddressSpace::WorkGroup)
        .map(|(_, var)| module.types[var.ty].inner.size(module.to_ctx()).next_multiple_of(16))
        .sum();
    let buffers = reflected.bindings.iter().filter(|access| **access != Access::Uniform).count();
    for (limit, max, needed) in [
        ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, x),
        ("max_compute_workgroup_size_y", limits.max_compute_workgroup_size_y, y),
        ("max_compute_workgroup_size_z", limits.max_compute_workgroup_size_z, z),
        ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup, x * y * z),
        ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size, shared),
        (
            "max_storage_buffers_per_shader_stage",
            limits.max_storage_buffers_per_shader_stage,
            u32::try_from(buffers).unwrap_or(u32::MAX),
        ),
    ] {
        if needed > max {
            let what = format!("the kernel {key}");
            return Err(Error::Limit { what, limit, max: max.into(), needed: needed.into() });
        }
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_of_the_compiler_is_an_error_and_not_a_wait_without_end() {
        let compiled = super::spawn(|| panic!("as a test asked")).unwrap();
        assert_eq!(compiled.wait().as_ref().unwrap_err(), "the shader compiler panicked");
    }
}
