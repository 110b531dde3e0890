//! Kernels as data, and the path from a kernel and its defines to a compiled pipeline.
//!
//! A [`Kernel`] is one WGSL source and the closed list of its variants. A [`Key`] names one of them for one tier; [`Key::reflect`] expands the
//! directives (`#import`, `#if`), parses the result and reads bindings and sizes from the parsed module, without a device.

mod emulate;
pub(crate) mod pipeline;
pub(crate) mod preprocess;

use crate::{Error, Result, Tier};
use std::fmt;

/// An element type that a shader can be specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// 32-bit float.
    F32,
    /// 16-bit float; adds `enable f16;` to the shader.
    F16,
    /// 32-bit unsigned integer.
    U32,
}

/// The value of a define: a WGSL constant, or an alias of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Define {
    /// `const NAME: u32`.
    U32(u32),
    /// `const NAME: bool`.
    Bool(bool),
    /// `alias NAME`.
    Type(Scalar),
}

impl Define {
    pub(crate) fn literal(self) -> String {
        match self {
            Self::U32(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::Type(Scalar::F32) => "f32".into(),
            Self::Type(Scalar::F16) => "f16".into(),
            Self::Type(Scalar::U32) => "u32".into(),
        }
    }

    fn declaration(self, name: &str) -> String {
        match self {
            Self::U32(v) => format!("const {name}: u32 = {v}u;\n"),
            Self::Bool(v) => format!("const {name}: bool = {v};\n"),
            Self::Type(_) => format!("alias {name} = {};\n", self.literal()),
        }
    }
}

impl From<Scalar> for Define {
    fn from(value: Scalar) -> Self {
        Self::Type(value)
    }
}
impl From<u32> for Define {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}
impl From<bool> for Define {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<crate::DType> for Define {
    fn from(value: crate::DType) -> Self {
        Self::Type(match value {
            crate::DType::F32 => Scalar::F32,
            crate::DType::F16 => Scalar::F16,
            crate::DType::U32 => Scalar::U32,
        })
    }
}

/// Names and values that specialise a shader, in the order in which the kernel lists them.
pub type Defines = Vec<(&'static str, Define)>;

/// A kernel: one WGSL source, the tiers that share it, and the closed list of its variants.
#[derive(Debug)]
pub struct Kernel {
    /// The name, which is also that of the shader, the wrapper, the reference and the test.
    pub name: &'static str,
    /// WGSL with the directives of the preprocessor.
    pub source: &'static str,
    /// The tiers that this source is specialised for; the best one that the device offers is taken.
    pub tiers: &'static [Tier],
    /// Every set of defines that the kernel may ever be asked for.
    pub variants: fn() -> Vec<Defines>,
    /// True where wgpu's run-time bounds checks and loop bounds are switched off; the shader's header then argues why every index is
    /// within bounds and every loop ends.
    pub proven_bounds: bool,
}

/// What identifies a pipeline: all that shapes the source, and nothing else.
#[derive(Clone, Debug)]
pub struct Key {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The tier that the source is expanded for.
    pub tier: Tier,
    /// The defines.
    pub defines: Defines,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kernel, other.kernel) && self.tier == other.tier && self.defines == other.defines
    }
}
impl Eq for Key {}
impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.kernel.name.hash(state);
        self.tier.hash(state);
        self.defines.hash(state);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kernel.name, self.tier)?;
        for (name, value) in &self.defines {
            write!(f, "/{name}={}", value.literal())?;
        }
        Ok(())
    }
}

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// A parsed shader and what its interface is, read from the parsed module rather than typed again by hand.
#[derive(Debug)]
pub struct Reflected {
    /// The parsed module.
    pub module: naga::Module,
    /// The expanded WGSL.
    pub source: String,
    /// Access per binding of group 0, by binding number.
    pub bindings: Vec<Access>,
    /// Size of the uniform block in bytes, 0 without one.
    pub params_size: u32,
    /// The workgroup size.
    pub workgroup_size: [u32; 3],
}

/// What the text of a shader depends on beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Invocations may write components of one vector in workgroup memory at the same time. In SPIR-V each is a place of its own; in WGSL, and in
    /// Metal's and Direct3D's languages, a store of one may write all of them again.
    pub lone_components: bool,
    /// Cooperative matrices are plain WGSL, see [`crate::Capabilities::emulate_matrices`].
    pub emulated: bool,
}

impl Dialect {
    /// That of Vulkan on a GPU.
    pub const SPIRV: Self = Self { lone_components: true, emulated: false };
    /// That of other backends.
    pub const OTHER: Self = Self { lone_components: false, emulated: false };

    /// Vulkan on a CPU gets what other backends get: so it is tested where there is no GPU, and gains nothing by the other.
    fn of(caps: &crate::Capabilities) -> Self {
        let lone_components = caps.adapter.backend == wgpu::Backend::Vulkan && !caps.is_cpu();
        Self { lone_components, emulated: caps.emulated }
    }
}

impl Key {
    /// Expands and parses the shader and reads its interface; needs no device.
    ///
    /// # Errors
    /// [`Error::Shader`] where the source is wrong, which is a defect of the kernel.
    pub fn reflect(&self, dialect: Dialect) -> Result<Reflected> {
        let fail = |message: String| Error::Shader { key: self.to_string(), message };
        let defines = [&self.defines[..], &[("LONE_COMPONENTS", dialect.lone_components.into())]].concat();
        let mut source = preprocess::expand(self.kernel.source, self.tier, &defines).map_err(fail)?;
        if dialect.emulated && source.contains("enable wgpu_cooperative_matrix;") {
            source = emulate::rewrite(&source).map_err(fail)?;
        }
        let mut options = naga::front::wgsl::Options::new();
        options.capabilities = naga::valid::Capabilities::all();
        let module = naga::front::wgsl::Frontend::new_with_options(options)
            .parse(&source)
            .map_err(|e| fail(e.emit_to_string(&source)))?;
        let mut found: Vec<(u32, Access)> = Vec::new();
        let mut params_size = 0;
        for (_, var) in module.global_variables.iter() {
            let Some(binding) = &var.binding else { continue };
            if binding.group != 0 {
                return Err(fail(format!("binding {} is in group {}, expected 0", binding.binding, binding.group)));
            }
            let access = match var.space {
                naga::AddressSpace::Uniform => {
                    params_size = module.types[var.ty].inner.size(module.to_ctx());
                    Access::Uniform
                }
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                    Access::ReadWrite
                }
                naga::AddressSpace::Storage { .. } => Access::Read,
                other => return Err(fail(format!("binding {} is in address space {other:?}", binding.binding))),
            };
            found.push((binding.binding, access));
        }
        found.sort_by_key(|(n, _)| *n);
        if found.iter().enumerate().any(|(i, (n, _))| u32::try_from(i) != Ok(*n)) {
            return Err(fail(format!("bindings are not numbered 0, 1, 2 ..: {found:?}")));
        }
        let [entry] = module.entry_points.as_slice() else {
            return Err(fail(format!("{} entry points, expected 1", module.entry_points.len())));
        };
        let workgroup_size = entry.workgroup_size;
        Ok(Reflected {
            bindings: found.into_iter().map(|(_, a)| a).collect(),
            params_size,
            workgroup_size,
            module,
            source,
        })
    }
}
