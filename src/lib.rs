//! Training on any GPU: WGSL kernels, tensors with autograd, a GPT and its trainer, on [wgpu].
//!
//! walsh runs its own compute shaders on Vulkan, Metal and DX12, so the same program trains on a discrete GPU, an integrated one, or a software
//! adapter on the CPU. Every kernel is tested against a float64 reference on every adapter and tier present, and one seed gives the same bits on
//! one adapter, whether a run was interrupted or not.
//!
//! # Who it is for
//!
//! - Someone who has a GPU but no CUDA, or no GPU at all, and wants to train a small model.
//! - Someone who measures kernels: which one runs where, how long it takes, and how close that is to the adapter's limits.
//! - Someone whose application already owns a [`wgpu::Device`] and wants to train inside it: see [`Context::from_wgpu`].
//!
//! It is not for you if you have an NVIDIA GPU, PyTorch, and only want the shortest time to a trained model: the vendor's libraries are several
//! times faster at large matrix products. Nor does it spread a model over several GPUs, or load models of other projects. And where it is going,
//! training with weights and activations of 8, 4, 2 or 1 bits (quantization-aware training), is **not there yet**: what is there today trains in
//! f32, and in f16 with f32 accumulation.
//!
//! # A training loop
//!
//! One transformer block learns a sentence:
//!
//! ```
//! use walsh::op::{Activation, LinearOptions, LossOptions, linear};
//! use walsh::optim::{AdamW, AdamWOptions, Init, ParameterBuilder, Schedule};
//! use walsh::{Context, DType, Tensor};
//!
//! # fn main() -> walsh::Result<()> {
//! let context = Context::new()?;
//! let text: Vec<u32> = "the quick brown fox jumps over the lazy dog ".repeat(4).bytes().map(|b| u32::from(b % 32)).collect();
//!
//! let mut builder = ParameterBuilder::new();
//! let mut weight = |name: &str, shape: &[usize]| builder.add(name, shape, Init::Normal(0.1));
//! let (tokens, places) = (weight("tokens", &[32, 32]), weight("positions", &[16, 32]));
//! let (qkv, mix) = (weight("qkv", &[96, 32]), weight("mix", &[32, 32]));
//! let (up, down) = (weight("up", &[128, 32]), weight("down", &[32, 128]));
//! let (norm1, norm2) = (builder.add("norm1", &[32], Init::Ones), builder.add("norm2", &[32], Init::Ones));
//! let p = builder.build(&context, 1, false)?;
//! let mut optimizer = AdamW::new(&p, AdamWOptions { schedule: Schedule::constant(1e-2), ..Default::default() })?;
//!
//! let mut losses = Vec::new();
//! for step in 0..60 {
//!     let start = step * 7 % 44;
//!     let inputs = Tensor::from_u32(&context, &text[start..start + 128], &[8, 16])?;
//!     let targets = Tensor::from_u32(&context, &text[start + 1..start + 129], &[8, 16])?;
//!     let x = inputs.embedding(&p[tokens], Some(&p[places]), None)?; // [8, 16, 32]
//!     let h = x.layer_norm(&p[norm1], None, 1e-5, DType::F32)?.linear(&p[qkv], None)?.attention(2, true, None)?;
//!     let x = linear(&h, &p[mix], LinearOptions { residual: Some(&x), ..Default::default() })?;
//!     let h = x.layer_norm(&p[norm2], None, 1e-5, DType::F32)?;
//!     let h = linear(&h, &p[up], LinearOptions { activation: Some(Activation::Gelu), ..Default::default() })?;
//!     let x = linear(&h, &p[down], LinearOptions { residual: Some(&x), ..Default::default() })?;
//!     let loss = x.linear(&p[tokens], None)?.cross_entropy(&targets, LossOptions::default())?;
//!     loss.backward()?;
//!     optimizer.step(&p)?;
//!     context.submit()?;
//!     if step % 20 == 19 {
//!         losses.push(loss.item()?); // the only line that waits for the device
//!     }
//! }
//! println!("{losses:?}");
//! assert!(losses[2] < losses[0] && losses[2] < 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! A whole GPT is [`nn::Gpt`]; data, schedule, evaluation, checkpoints and the loop around it are in [`train`].
//!
//! # How a step runs
//!
//! Operations do not run when they are called. They check shapes, take memory from a pool and record a dispatch; [`Context::submit`] sends all
//! that was recorded as **one** command buffer, and returns without waiting. Commands take effect in the order of the calls, uploads
//! ([`Tensor::write`]) included. Reading a value ([`Tensor::read`], [`Tensor::item`]) is a command too, and the only thing that can wait.
//!
//! From the third step on **nothing is created**: no buffer, bind group, pipeline or shader module. The pool hands equal sequences of requests
//! equal buffers, so bind groups are found again, and what changes from step to step (step number, learning rate, loss scale, whether the gradients
//! were finite) lives on the device, advanced by a kernel. [`Context::counts`] counts each kind of object, and a test holds the counts still.
//!
//! # Tiers
//!
//! | tier | needs | used by |
//! |---|---|---|
//! | [`Baseline`](Tier::Baseline) | nothing beyond `wgpu::Limits::default()` | every kernel |
//! | [`Subgroup`](Tier::Subgroup) | `Features::SUBGROUP` | reductions, norms, softmax, products on CPU adapters |
//! | [`Coop`](Tier::Coop) | 16 x 16 x 16 cooperative matrices, f16 operands, f32 sums | matrix products and attention in f16 |
//!
//! A context uses the best tier that its device offers. [`Capabilities::missing`] says why a higher one is not on offer, and
//! [`ContextOptions::max_tier`] keeps to a lower one. [`Context::self_test`] compares the products of the cooperative tier with exact results,
//! and its attention with a bound, and switches the tier off where they differ. Kernels are chosen from a static table by adapter and shape, never by timing.
//!
//! # In a host's application
//!
//! [`Context::from_wgpu`] takes the host's adapter, device and queue. Such a context never submits, polls or sets callbacks, with two exceptions:
//! [`Context::record`] has the encoder call back when its commands are done, to reuse memory, and [`Context::self_test`], which a host calls
//! where the tier is [`Coop`](Tier::Coop), submits and waits. The host calls [`Context::record`] with an encoder of its own and submits that; it
//! can bind [`Tensor::buffer`] in its own shaders. The example `embed_in_app.rs` does so.
//!
//! # Modules
//!
//! - [`Context`], [`Tensor`], [`autograd`]: the device and what is recorded on it; arrays; gradients.
//! - [`op`]: differentiable operations. [`nn`]: the GPT composed of them. [`optim`]: parameters, AdamW and CAGE.
//! - [`train`]: corpus, data, settings, checkpoints, metrics, the training loop, sampling.
//! - [`mod@format`]: low-bit formats as data. [`io`]: files of quantized tensors, in walsh's container and those of other programs.
//! - [`kernel`]: the same kernels on bare buffers, without shapes or graph. [`shader`]: how their WGSL is expanded and reflected.
//! - [`random`]: Philox, whose numbers are the same on the host and on the device.
//!
//! # Features
//!
//! `cli` (on by default) adds what only the `walsh` command needs. A library user sets `default-features = false`. No feature chooses a tier.

pub mod autograd;
#[doc(hidden)]
pub mod bench;
mod buffer;
mod capabilities;
mod context;
mod error;
pub mod format;
pub mod io;
pub mod kernel;
pub mod nn;
pub mod op;
pub mod optim;
pub mod qat;
pub mod random;
#[doc(hidden)]
pub mod reference;
mod self_test;
pub mod shader;
mod tensor;
pub mod train;

pub use autograd::{Gradients, checkpoint};
pub use buffer::{Buffer, Readback};
pub use capabilities::{Capabilities, Tier, recommended_features};
pub use context::{Context, ContextOptions, Counts};
pub use error::{Error, Result};
pub use kernel::cross_entropy::IGNORE;
pub use self_test::{Case, SelfTest};
pub use tensor::{DType, Tensor};
pub use wgpu;

/// The README's example runs as a test too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
