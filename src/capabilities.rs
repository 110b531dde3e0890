//! What a device offers, as plain data: tiers, subgroup sizes, f16, cooperative matrices.

use std::fmt;

/// A kernel tier: which shader features a kernel may use. Ordered; a context uses the best one that its device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Core WGSL within `wgpu::Limits::default()`.
    Baseline,
    /// `wgpu::Features::SUBGROUP`, the size read at run time.
    Subgroup,
    /// 16 x 16 x 16 cooperative matrices with f16 operands and f32 accumulation, for matrix products and attention in f16.
    Coop,
}

impl Tier {
    /// Every tier, lowest first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Subgroup, Self::Coop];

    /// The name used by flags, file names and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Subgroup => "subgroup",
            Self::Coop => "coop",
        }
    }

    /// Parses [`Tier::name`].
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for any other word.
    pub fn parse(name: &str) -> crate::Result<Self> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.name() == name)
            .ok_or_else(|| crate::Error::invalid("tier", "one of baseline, subgroup, coop", name))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What walsh uses of a device. Pure data: creating one allocates nothing on the device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// The adapter's name, driver and backend.
    pub adapter: wgpu::AdapterInfo,
    /// The features that the *device* was created with.
    pub features: wgpu::Features,
    /// The limits that the *device* was created with.
    pub limits: wgpu::Limits,
    /// The best tier on offer.
    pub tier: Tier,
    /// For each tier that is not on offer, why.
    pub missing: Vec<(Tier, String)>,
    /// Whether shaders may use `f16` (`SHADER_F16`).
    pub f16: bool,
    /// Subgroup sizes, smallest and largest; (0, 0) without subgroups.
    pub subgroup_size: (u32, u32),
    /// Kernels of the tier `coop` run without cooperative matrices, see [`Capabilities::emulate_matrices`].
    #[doc(hidden)]
    pub emulated: bool,
}

impl Capabilities {
    /// Reads what `device`, created from `adapter`, offers.
    #[must_use]
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Self {
        Self::from_parts(
            adapter.get_info(),
            device.features(),
            device.limits(),
            &adapter.cooperative_matrix_properties(),
        )
    }

    /// The same from plain values, for a host whose adapter is gone or for tests.
    #[must_use]
    pub fn from_parts(
        adapter: wgpu::AdapterInfo,
        features: wgpu::Features,
        limits: wgpu::Limits,
        coop: &[wgpu::CooperativeMatrixProperties],
    ) -> Self {
        let f16 = features.contains(wgpu::Features::SHADER_F16);
        let mut missing = Vec::new();
        let subgroup = features.contains(wgpu::Features::SUBGROUP);
        if !subgroup {
            missing.push((Tier::Subgroup, "the device has no SUBGROUP feature".to_owned()));
        }
        let (sg_min, sg_max) = if subgroup { (adapter.subgroup_min_size, adapter.subgroup_max_size) } else { (0, 0) };
        let row = coop.iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        });
        let no_coop = if !subgroup {
            Some("it needs the subgroup tier".to_owned())
        } else if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            Some("the device has no EXPERIMENTAL_COOPERATIVE_MATRIX feature".to_owned())
        } else if !f16 {
            Some("the device has no SHADER_F16 feature".to_owned())
        } else if !row {
            Some("the adapter lists no 16 x 16 x 16 matrices with f16 operands and f32 accumulators".to_owned())
        } else if sg_min != sg_max || sg_min != 32 {
            // The kernels lay tiles out by subgroup index, which is safe only where the size is known.
            Some(format!("its kernels need subgroups of exactly 32 invocations, these have {sg_min} to {sg_max}"))
        } else if limits.max_compute_workgroup_storage_size < 32 * 1024 {
            Some(format!(
                "its kernels need 32 KiB of workgroup memory, the limit is {}",
                limits.max_compute_workgroup_storage_size
            ))
        } else {
            None
        };
        let tier = match (&no_coop, subgroup) {
            (None, _) => Tier::Coop,
            (_, true) => Tier::Subgroup,
            _ => Tier::Baseline,
        };
        if let Some(why) = no_coop {
            missing.push((Tier::Coop, why));
        }
        Self { adapter, features, limits, tier, missing, f16, subgroup_size: (sg_min, sg_max), emulated: false }
    }

    /// Caps the tier, for tests and comparisons. Raising it has no effect.
    pub fn limit_tier(&mut self, max: Tier, why: &str) {
        for tier in Tier::ALL {
            if tier > max && tier <= self.tier {
                self.missing.push((tier, why.to_owned()));
            }
        }
        self.tier = self.tier.min(max);
    }

    /// Offers the tier [`Tier::Coop`] to a device that lacks cooperative matrices, in plain WGSL: for tests of its kernels, far slower than any
    /// other tier. Has no effect where the tier is there, and where the device lacks subgroups, f16 or 32 KiB of workgroup memory.
    #[doc(hidden)]
    pub fn emulate_matrices(&mut self) {
        if self.tier == Tier::Subgroup && self.f16 && self.limits.max_compute_workgroup_storage_size >= 32 * 1024 {
            (self.tier, self.emulated) = (Tier::Coop, true);
            self.missing.retain(|(tier, _)| *tier != Tier::Coop);
        }
    }

    /// True on adapters that run shaders on the CPU (lavapipe, SwiftShader, WARP): they want other tile shapes.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.adapter.device_type == wgpu::DeviceType::Cpu
    }
}

/// The features that walsh can use of an adapter, for hosts that create the device themselves. The cooperative-matrix
/// feature is experimental in wgpu: it also needs `DeviceDescriptor::experimental_features`.
#[must_use]
pub fn recommended_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features()
        & (wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
}
