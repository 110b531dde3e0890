//! The error type of the whole crate.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, in four families: the request was invalid, the device cannot do it, the device failed,
/// or a file was not what it should be. [`Error::is_failure`] tells bad input from a failure while working.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes do not fit together.
    #[error("{op}: expected {expected}, found {got}")]
    Shape {
        /// The operation that was asked for.
        op: &'static str,
        /// The rule that the shapes break.
        expected: String,
        /// The shapes that were passed.
        got: String,
    },
    /// An argument, flag or option has a value that makes no sense.
    #[error("{what}: expected {expected}, found {got}")]
    Invalid {
        /// The argument, flag or option.
        what: String,
        /// What it takes.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// Tensors of two contexts met in one operation.
    #[error("{op}: the tensors belong to different contexts")]
    ContextMismatch {
        /// The operation that was asked for.
        op: &'static str,
    },
    /// The request is valid but this device, driver or tier cannot do it.
    #[error("{what} is not available on this device: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What is missing.
        why: String,
    },
    /// A tensor, dispatch or kernel needs more than a limit of the device allows.
    #[error("{what} needs {needed}{unit}, but this device's limit {limit} is {max}{unit}", unit = unit(limit))]
    Limit {
        /// The tensor, dispatch or kernel.
        what: String,
        /// The name of the `wgpu::Limits` field.
        limit: &'static str,
        /// What the device allows.
        max: u64,
        /// What was asked for.
        needed: u64,
    },
    /// No adapter matched.
    #[error("no GPU adapter found: {0}")]
    NoAdapter(String),
    /// The device is gone; nothing that ran on it can be read any more.
    #[error("the GPU device was lost: {0}")]
    DeviceLost(String),
    /// The device has no memory left.
    #[error("out of GPU memory while allocating {bytes} bytes ({in_use} bytes already held)")]
    OutOfMemory {
        /// Size of the allocation that failed.
        bytes: u64,
        /// What this context held at the time.
        in_use: u64,
    },
    /// The driver or wgpu refused something; a defect of walsh or of the driver.
    #[error("GPU error: {0}")]
    Device(String),
    /// A shader did not parse, validate or compile; a defect of walsh or of the driver.
    #[error("shader {key}: {message}")]
    Shader {
        /// Kernel, tier and defines.
        key: String,
        /// What the compiler said.
        message: String,
    },
    /// Training produced a NaN or an infinity.
    #[error("step {step}: {tensor} is not finite; training stopped: a lower --lr or a larger --warmup may help")]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// The first tensor that went bad.
        tensor: String,
    },
    /// Reading or writing a file failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, as a verb.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: expected {expected}, found {got}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// The user asked to stop; the message says what is kept.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

/// What a limit counts, where that is bytes.
fn unit(limit: &str) -> &'static str {
    if limit.ends_with("_binding_size") || limit.ends_with("_storage_size") || limit == "max_buffer_size" {
        " bytes"
    } else {
        ""
    }
}

impl Error {
    /// True if something failed while working (exit code 1), false if the input was bad (exit code 2).
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::DeviceLost(_)
            | Self::OutOfMemory { .. }
            | Self::Device(_)
            | Self::Shader { .. }
            | Self::NonFinite { .. }
            | Self::Interrupted(_) => true,
            // A path that does not exist or may not be touched is the caller's to mend; a full or failing disk is not.
            Self::Io { source, .. } => !matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::AlreadyExists
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::IsADirectory
                    | std::io::ErrorKind::ReadOnlyFilesystem
                    | std::io::ErrorKind::InvalidInput
                    | std::io::ErrorKind::InvalidFilename
            ),
            _ => false,
        }
    }

    pub(crate) fn shape(op: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Shape { op, expected: expected.into(), got: got.into() }
    }

    /// An invalid argument.
    pub fn invalid(what: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), expected: expected.into(), got: got.into() }
    }

    pub(crate) fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn file(path: impl AsRef<Path>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), expected: expected.into(), got: got.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_bytes_say_so() {
        for (limit, text) in [
            (
                "max_storage_buffer_binding_size",
                "x needs 2 bytes, but this device's limit max_storage_buffer_binding_size is 1 bytes",
            ),
            ("max_buffer_size", "x needs 2 bytes, but this device's limit max_buffer_size is 1 bytes"),
            (
                "max_compute_workgroup_storage_size",
                "x needs 2 bytes, but this device's limit max_compute_workgroup_storage_size is 1 bytes",
            ),
            ("max_compute_workgroup_size_x", "x needs 2, but this device's limit max_compute_workgroup_size_x is 1"),
            ("u32 element index", "x needs 2, but this device's limit u32 element index is 1"),
        ] {
            assert_eq!(Error::Limit { what: "x".into(), limit, max: 1, needed: 2 }.to_string(), text);
        }
    }
}
