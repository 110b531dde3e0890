//! Every shader variant, from the closed lists, without a GPU: it validates, its bindings and sizes fit the limits, and it translates to the
//! languages of every backend that its tier runs on.

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use std::collections::HashSet;
use walsh::Tier;
use walsh::kernel;
use walsh::shader::{Access, Define, Dialect, Key, Reflected};

fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    for kernel in kernel::ALL {
        for tier in kernel.tiers {
            for defines in (kernel.variants)() {
                keys.push(Key { kernel, tier: *tier, defines });
            }
        }
    }
    keys
}

fn uses_f16(key: &Key) -> bool {
    key.defines.iter().any(|(_, v)| *v == Define::Type(walsh::shader::Scalar::F16)) || key.tier == Tier::Coop
}

/// What naga is told of a device of the tier; a shader that needs more does not validate.
fn capabilities(key: &Key) -> Capabilities {
    // For `unpack2x16float`: every WebGPU device has it, wgpu knows it as a downlevel flag.
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if uses_f16(key) {
        allowed |= Capabilities::SHADER_FLOAT16;
    }
    if key.tier >= Tier::Subgroup {
        allowed |= Capabilities::SUBGROUP;
    }
    if key.tier == Tier::Coop {
        allowed |= Capabilities::COOPERATIVE_MATRIX;
    }
    if key.defines.contains(&("INT64", Define::Bool(true))) {
        allowed |= Capabilities::SHADER_INT64;
    }
    allowed
}

fn workgroup_memory(reflected: &Reflected) -> u32 {
    let ctx = reflected.module.to_ctx();
    reflected
        .module
        .global_variables
        .iter()
        .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
        .map(|(_, v)| reflected.module.types[v.ty].inner.size(ctx))
        .sum()
}

fn check_limits(key: &Key, reflected: &Reflected) {
    let default = wgpu_limits(key);
    let storage = reflected.bindings.iter().filter(|a| **a != Access::Uniform).count();
    assert!(storage <= default.max_storage_buffers_per_shader_stage as usize, "{key}: {storage} storage buffers");
    let [x, y, z] = reflected.workgroup_size;
    assert!(x * y * z <= default.max_compute_invocations_per_workgroup, "{key}: workgroup of {x} x {y} x {z}");
    let memory = workgroup_memory(reflected);
    assert!(memory <= default.max_compute_workgroup_storage_size, "{key}: {memory} bytes of workgroup memory");
    assert!(reflected.bindings.iter().skip(1).all(|a| *a != Access::Uniform), "{key}: parameters must be binding 0");
}

/// The baseline keeps to what every WebGPU device has; cooperative matrices are only found where there is more.
fn wgpu_limits(key: &Key) -> walsh::wgpu::Limits {
    let mut limits = walsh::wgpu::Limits::default();
    // The wrapper looks for these before it takes such a variant, and has another kernel for the default limits.
    if key.defines.contains(&("HUGE", Define::Bool(true))) {
        limits.max_compute_workgroup_storage_size = 48 * 1024;
        limits.max_compute_invocations_per_workgroup = 1024;
    } else if key.tier == Tier::Coop || key.defines.contains(&("LARGE", Define::Bool(true))) {
        // `Capabilities` asks for it before it offers the coop tier.
        limits.max_compute_workgroup_storage_size = 32 * 1024;
    }
    limits
}

#[test]
fn every_variant_validates_fits_the_limits_and_translates() {
    let keys = keys();
    let unique: HashSet<String> = keys.iter().map(Key::to_string).collect();
    assert_eq!(unique.len(), keys.len(), "a variant is listed twice");
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for part in keys.chunks(keys.len().div_ceil(threads)) {
            scope.spawn(move || part.iter().for_each(check));
        }
    });
    println!("{} variants of {} kernels", keys.len(), kernel::ALL.len());
}

fn valid(key: &Key, dialect: Dialect) -> (Reflected, ModuleInfo) {
    let reflected = key.reflect(dialect).unwrap_or_else(|e| panic!("{e}"));
    let mut validator = Validator::new(ValidationFlags::all(), capabilities(key));
    let info = validator
        .validate(&reflected.module)
        .unwrap_or_else(|e| panic!("{key}: {}", e.emit_to_string(&reflected.source)));
    check_limits(key, &reflected);
    (reflected, info)
}

/// Whether a block stores components of vectors in workgroup memory, which WGSL lets one invocation do at a time.
fn stores_components(block: &naga::Block, types: &FunctionInfo, module: &naga::Module) -> bool {
    use naga::{AddressSpace::WorkGroup, TypeInner::ValuePointer};
    let component = |pointer: naga::Handle<naga::Expression>| {
        let inner = types[pointer].ty.inner_with(&module.types);
        matches!(inner, ValuePointer { size: None, space: WorkGroup, .. })
    };
    block.iter().any(|statement| match statement {
        naga::Statement::Store { pointer, .. } => component(*pointer),
        naga::Statement::Block(block) => stores_components(block, types, module),
        naga::Statement::If { accept, reject, .. } => {
            stores_components(accept, types, module) || stores_components(reject, types, module)
        }
        naga::Statement::Switch { cases, .. } => cases.iter().any(|case| stores_components(&case.body, types, module)),
        naga::Statement::Loop { body, continuing, .. } => {
            stores_components(body, types, module) || stores_components(continuing, types, module)
        }
        _ => false,
    })
}

fn check(key: &Key) {
    let (reflected, info) = valid(key, Dialect::SPIRV);
    let entry = reflected.module.entry_points[0].name.clone();

    let options =
        spv::Options { lang_version: (1, if key.tier == Tier::Coop { 6 } else { 3 }), ..spv::Options::default() };
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.clone() };
    spv::write_vec(&reflected.module, &info, &options, Some(&pipeline))
        .unwrap_or_else(|e| panic!("{key}: SPIR-V: {e}"));

    // Metal has no 16 x 16 matrices and DX12 has none at all: the cooperative tier is Vulkan's.
    if key.tier == Tier::Coop {
        return;
    }
    let (reflected, info) = valid(key, Dialect::OTHER);
    let module = &reflected.module;
    let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
    let main = (&module.entry_points[0].function, info.get_entry_point(0));
    for (function, types) in functions.chain([main]) {
        assert!(!stores_components(&function.body, types, module), "{key}: a lone component of a vector is stored");
    }
    let mut slot = 0u8;
    let mut resources = msl::EntryPointResources::default();
    for binding in 0..u32::try_from(reflected.bindings.len()).unwrap() {
        let target = msl::BindTarget { buffer: Some(slot), mutable: true, ..msl::BindTarget::default() };
        resources.resources.insert(naga::ResourceBinding { group: 0, binding }, target);
        slot += 1;
    }
    resources.sizes_buffer = Some(slot);
    let options = msl::Options {
        lang_version: (2, 4),
        per_entry_point_map: [(entry.clone(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        ..msl::Options::default()
    };
    let (_, written) = msl::write_string(&reflected.module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{key}: MSL: {e}"));
    written.entry_point_names.iter().for_each(|n| assert!(n.is_ok(), "{key}: MSL: {n:?}"));

    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((naga::ShaderStage::Compute, entry)) };
    let mut text = String::new();
    let written = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&reflected.module, &info, None)
        .unwrap_or_else(|e| panic!("{key}: HLSL: {e}"));
    written.entry_point_names.iter().for_each(|n| assert!(n.is_ok(), "{key}: HLSL: {n:?}"));
}

#[test]
fn a_variant_that_needs_more_than_its_tier_is_caught() {
    // The check above would be worthless if naga let subgroup operations through in the baseline tier.
    let key = keys().into_iter().find(|k| k.tier == Tier::Subgroup && k.kernel.name == "grad_norm").unwrap();
    let reflected = key.reflect(Dialect::SPIRV).unwrap();
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
    assert!(validator.validate(&reflected.module).is_err());
}
