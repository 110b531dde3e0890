//! Reverse-mode differentiation. Every operation that has to leaves a [`Node`] behind; [`Tensor::backward`] visits the nodes from the
//! newest to the oldest, which is a topological order because a node's inputs are always older. No recursion, gradients by id.

use crate::tensor::{GradSlot, Inner};
use crate::{Context, DType, Error, Result, Tensor, kernel};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What an operation does with the gradient of its result: add to the gradients of its inputs.
type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()> + Send>;

/// One operation of the graph. Its content is taken when it is visited, so that saved tensors are freed on the way.
pub(crate) struct Node {
    /// Id of the tensor that the operation produced.
    output: u64,
    content: Mutex<Option<(Vec<Arc<Node>>, Backward)>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("output", &self.output).finish_non_exhaustive()
    }
}

impl Drop for Node {
    /// A long chain of nodes is taken apart in a loop: dropping it field by field would recurse once per operation.
    fn drop(&mut self) {
        let take = |node: &mut Node| node.content.get_mut().ok().and_then(Option::take);
        let mut open: Vec<_> = take(self).into_iter().collect();
        while let Some((parents, backward)) = open.pop() {
            // The closure holds tensors, which hold nodes; the ones it holds are all among the parents, so they outlive it here.
            drop(backward);
            open.extend(parents.into_iter().filter_map(Arc::into_inner).filter_map(|mut node| take(&mut node)));
        }
    }
}

impl Tensor {
    /// The result of an operation: a node of the graph if any input needs a gradient, a plain tensor otherwise.
    pub(crate) fn from_op(
        value: Tensor,
        inputs: &[&Tensor],
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Tensor {
        if !value.context().grad_enabled() || !inputs.iter().any(|t| t.requires_grad()) {
            return value;
        }
        let parents = inputs.iter().filter_map(|t| t.0.node.clone()).collect();
        let node = Node { output: value.id(), content: Mutex::new(Some((parents, Box::new(backward)))) };
        let plain = Inner::plain(value.context(), value.buffer().clone(), value.shape());
        Tensor::with(Inner { id: value.id(), node: Some(Arc::new(node)), requires_grad: true, ..plain })
    }

    /// Gradients of this scalar with respect to every leaf that asks for one. The graph is consumed.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not a scalar; [`Error::Invalid`] if nothing in it needs a gradient or the graph was consumed before.
    pub fn backward(&self) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        self.backward_into(&mut gradients)?;
        Ok(gradients)
    }

    /// As [`Tensor::backward`], adding to gradients that are there.
    ///
    /// # Errors
    /// As [`Tensor::backward`].
    pub fn backward_into(&self, gradients: &mut Gradients) -> Result<()> {
        if self.len() != 1 {
            return Err(Error::shape("backward", "a scalar", format!("{:?}", self.shape())));
        }
        let one = self.context().ones(self.dtype())?;
        self.backward_from(one, gradients)
    }

    /// The same for a tensor of any shape whose gradient is given.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes differ; [`Error::Invalid`] as [`Tensor::backward`].
    pub fn backward_from(&self, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        if gradient.shape() != self.shape() || gradient.dtype() != self.dtype() {
            return Err(Error::shape(
                "backward",
                format!("a gradient of shape {:?} and type {}", self.shape(), self.dtype()),
                format!("{:?} of {}", gradient.shape(), gradient.dtype()),
            ));
        }
        let Some(root) = self.0.node.clone() else {
            return Err(Error::invalid("backward", "a result computed from a tensor with a gradient", "one without"));
        };
        gradients.add(self, gradient)?;
        let mut open = BTreeMap::from([(root.output, root)]);
        while let Some((id, node)) = open.pop_last() {
            let content = node.content.lock().map_err(|_| Error::Device("a backward pass panicked".into()))?.take();
            let Some((parents, backward)) = content else {
                return Err(Error::invalid("backward", "a graph that was not consumed before", "a second backward"));
            };
            // A node that no gradient reached contributes nothing, but its parents may be reached by others.
            if let Some(gradient) = gradients.take(id) {
                backward(gradient, gradients)?;
            }
            open.extend(parents.into_iter().map(|n| (n.output, n)));
        }
        Ok(())
    }
}

/// Where a kernel writes a gradient.
pub(crate) struct Target {
    pub tensor: Tensor,
    /// True if the kernel must add to what is there.
    pub accumulate: bool,
}

/// Gradients by tensor id.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<u64, Tensor>);

impl Gradients {
    /// The gradient of `tensor`, if one reached it. Gradients of [`crate::optim::Parameters`] are in their arena instead.
    #[must_use]
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.0.get(&tensor.id())
    }

    fn take(&mut self, id: u64) -> Option<Tensor> {
        self.0.remove(&id)
    }

    /// Adds `gradient` to that of `tensor`.
    pub(crate) fn add(&mut self, tensor: &Tensor, gradient: Tensor) -> Result<()> {
        if !tensor.requires_grad() {
            return Ok(());
        }
        debug_assert_eq!(gradient.len(), tensor.len());
        if tensor.0.slot.is_none() && !self.0.contains_key(&tensor.id()) {
            self.0.insert(tensor.id(), gradient);
            return Ok(());
        }
        let Some(target) = self.target(tensor)? else { return Ok(()) };
        kernel::accumulate::accumulate(tensor.context(), gradient.buffer(), target.tensor.buffer(), target.accumulate)
    }

    /// The place where a kernel writes, or adds, the gradient of `tensor`; `None` if it needs none.
    pub(crate) fn target(&mut self, tensor: &Tensor) -> Result<Option<Target>> {
        if !tensor.requires_grad() {
            return Ok(None);
        }
        if let Some(GradSlot { buffer, written }) = &tensor.0.slot {
            let tensor = Tensor::new(tensor.context(), buffer.clone(), tensor.shape());
            return Ok(Some(Target { tensor, accumulate: written.swap(true, Ordering::Relaxed) }));
        }
        let context = tensor.context();
        let (gradient, accumulate) = match self.0.remove(&tensor.id()) {
            None => (Tensor::empty(context, tensor.shape(), tensor.dtype())?, false),
            Some(own) if own.buffer().is_unique() => (own, true),
            Some(shared) => {
                // The gradient of a sum is the same tensor for both terms: it must not change under the other's feet.
                let copy = Tensor::empty(context, tensor.shape(), shared.dtype())?;
                context.copy(shared.buffer(), copy.buffer());
                (copy, true)
            }
        };
        self.0.insert(tensor.id(), gradient.clone());
        Ok(Some(Target { tensor: gradient, accumulate }))
    }
}

impl Gradients {
    /// As [`Gradients::target`], with a place to write to and forget where the gradient is not wanted, for kernels that write several.
    pub(crate) fn target_or_scratch(&mut self, tensor: &Tensor) -> Result<Target> {
        match self.target(tensor)? {
            Some(target) => Ok(target),
            None => Ok(Target {
                tensor: Tensor::empty(tensor.context(), tensor.shape(), tensor.dtype())?,
                accumulate: false,
            }),
        }
    }
}

/// Runs `block` without keeping what its backward pass needs, and runs it again when the backward pass gets there: memory for time.
/// `block` must compute the same from the same inputs each time.
///
/// # Errors
/// What `block` returns.
pub fn checkpoint(inputs: &[&Tensor], block: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let Some(first) = inputs.first() else {
        return Err(Error::invalid("checkpoint", "at least one input", "none"));
    };
    let context = first.context().clone();
    let saved: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
    let plain: Vec<Tensor> = saved.iter().map(Tensor::detach).collect();
    let value = context.no_grad(|| block(&plain))?;
    // The parameters that `block` uses are found only when it runs again, so the result counts as differentiable even if no input is.
    let mark = first.with_grad();
    let mut all: Vec<&Tensor> = inputs.to_vec();
    all.push(&mark);
    Ok(Tensor::from_op(value.detach(), &all, move |gradient, gradients| {
        let leaves: Vec<Tensor> =
            saved.iter().map(|t| if t.requires_grad() { t.with_grad() } else { t.detach() }).collect();
        let again = block(&leaves)?;
        again.backward_from(gradient, gradients)?;
        for (leaf, input) in leaves.iter().zip(&saved) {
            if let Some(gradient) = gradients.take(leaf.id()) {
                gradients.add(input, gradient)?;
            }
        }
        Ok(())
    }))
}

impl Context {
    /// Runs `work` without building a graph: evaluation, sampling.
    pub fn no_grad<R>(&self, work: impl FnOnce() -> R) -> R {
        self.0.no_grad.fetch_add(1, Ordering::Relaxed);
        let result = work();
        self.0.no_grad.fetch_sub(1, Ordering::Relaxed);
        result
    }

    pub(crate) fn grad_enabled(&self) -> bool {
        self.0.no_grad.load(Ordering::Relaxed) == 0
    }

    /// True if `tensor` is the constant that backward passes start from, so that multiplying by it can be left out.
    pub(crate) fn is_one(&self, tensor: &Tensor) -> bool {
        let one = self.0.one.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        one.iter().any(|(_, buffer)| std::sync::Arc::ptr_eq(&buffer.raw, &tensor.buffer().raw))
    }

    /// The constant 1 that a backward pass starts from; made once.
    fn ones(&self, dtype: DType) -> Result<Tensor> {
        let mut one = self.0.one.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, buffer)) = one.iter().find(|(d, _)| *d == dtype) {
            return Ok(Tensor::new(self, buffer.clone(), &[]));
        }
        let tensor = match dtype {
            DType::F16 => Tensor::from_f16(self, &[half::f16::ONE], &[])?,
            _ => Tensor::from_f32(self, &[1.0], &[])?,
        };
        one.push((dtype, tensor.buffer().clone()));
        Ok(tensor)
    }
}
