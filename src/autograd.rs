//! Reverse-mode differentiation. Every operation that has to leaves a node behind; [`Tensor::backward`] visits the nodes from the
//! newest to the oldest, which is a topological order because a node's inputs are always older. No recursion, gradients by id.

use crate::tensor::{GradSlot, Inner};
use crate::{Context, DType, Error, Result, Tensor, kernel};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    /// The contexts for which this thread is inside [`Context::no_grad`]. Another thread may be training meanwhile.
    static NO_GRAD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

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
    /// The result of an operation: a node of the graph if any input needs a gradient, a plain tensor otherwise. `backward` gets a gradient of
    /// the result's element type.
    pub(crate) fn from_op(
        value: Tensor,
        inputs: &[&Tensor],
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Tensor {
        let dtype = value.dtype();
        Self::from_op_any(value, inputs, move |gradient, gradients| backward(gradient.cast(dtype)?, gradients))
    }

    /// The same for a `backward` that takes a gradient of either float type: a loss may hand f32 logits an f16 gradient.
    pub(crate) fn from_op_any(
        value: Tensor,
        inputs: &[&Tensor],
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Tensor {
        if !value.context().grad_enabled() || !inputs.iter().any(|t| t.requires_grad()) {
            return value;
        }
        let parents = inputs.iter().filter_map(|t| t.0.node.clone()).collect();
        let node = Node { output: value.id(), content: Mutex::new(Some((parents, Box::new(backward)))) };
        let plain = Inner::of(value.context(), value.buffer().clone(), value.shape());
        // A view of a parameter has its f16 copy too.
        let half = value.0.half.clone();
        Tensor::with(Inner { id: value.id(), node: Some(Arc::new(node)), requires_grad: true, half, ..plain })
    }

    /// Gradients of this scalar with respect to every leaf that asks for one. The graph is consumed.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not a scalar; [`Error::Invalid`] if nothing in it needs a gradient or the graph was consumed before; what an
    /// operation returns. For [`crate::optim::Parameters`] see [`Tensor::backward_into`].
    pub fn backward(&self) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        self.backward_into(&mut gradients)?;
        Ok(gradients)
    }

    /// As [`Tensor::backward`], adding to gradients that are there.
    ///
    /// # Errors
    /// As [`Tensor::backward`]. After an error, gradients that this pass would have been the first to give do not exist, in `gradients` as well as
    /// in [`crate::optim::Parameters`]: a further pass, whose graph has to be built anew, sets them. Gradients that were there before hold an
    /// unknown part of this pass, or are gone: what was accumulated over several passes has to start afresh, by [`Gradients::default`] and
    /// [`crate::optim::Parameters::zero_grad`].
    pub fn backward_into(&self, gradients: &mut Gradients) -> Result<()> {
        if self.len() != 1 {
            return Err(Error::shape("backward", "a scalar", format!("{:?}", self.shape())));
        }
        let one = self.context().ones(self.dtype())?.view(self.shape());
        self.backward_from(one, gradients)
    }

    /// The same for a tensor of any shape whose gradient is given.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes differ; else as [`Tensor::backward_into`].
    pub fn backward_from(&self, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let before: HashSet<u64> = gradients.by_id.keys().copied().collect();
        let result = self.pass(gradient, gradients);
        let first = std::mem::take(&mut gradients.first);
        if result.is_err() {
            // Kernels may have been recorded for some of them and not for others.
            first.iter().filter_map(|tensor| tensor.0.slot.as_ref()).for_each(GradSlot::forget);
            gradients.by_id.retain(|id, _| before.contains(id));
        }
        result
    }

    /// A backward pass, or a part of one that is under way.
    fn pass(&self, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        if gradient.shape() != self.shape() || gradient.dtype() != self.dtype() {
            return Err(Error::shape(
                "backward",
                format!("a gradient of shape {:?} and type {}", self.shape(), self.dtype()),
                format!("{:?} of {}", gradient.shape(), gradient.dtype()),
            ));
        }
        if !gradient.context().same(self.context()) {
            return Err(Error::ContextMismatch { op: "backward" });
        }
        if !self.requires_grad() {
            return Err(Error::invalid("backward", "a result computed from a tensor with a gradient", "one without"));
        }
        let consumed = || Error::invalid("backward", "a graph that was not consumed before", "a second backward");
        let content = |node: &Node| node.content.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut open = BTreeMap::new();
        if let Some(root) = &self.0.node {
            // Nothing may be added to the gradients if the root was consumed before.
            let (parents, backward) = content(root).ok_or_else(consumed)?;
            backward(gradient, gradients)?;
            open.extend(parents.into_iter().map(|n| (n.output, n)));
        } else {
            gradients.add(self, gradient)?;
        }
        while let Some((id, node)) = open.pop_last() {
            let (parents, backward) = content(&node).ok_or_else(consumed)?;
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

/// A tensor as a backward pass knows it that does not need its values: holding one keeps no activation alive.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    context: Context,
    id: u64,
    shape: Vec<usize>,
    dtype: DType,
    requires_grad: bool,
    /// Whether no operation computed it.
    leaf: bool,
    /// The tensor itself where its gradient has a place in an arena; its memory is the arena's.
    parameter: Option<Tensor>,
}

impl Tensor {
    pub(crate) fn as_input(&self) -> Input {
        Input {
            context: self.context().clone(),
            id: self.id(),
            shape: self.shape().to_vec(),
            dtype: self.dtype(),
            requires_grad: self.requires_grad(),
            leaf: self.0.node.is_none(),
            parameter: self.0.slot.is_some().then(|| self.clone()),
        }
    }
}

/// Gradients by tensor id.
#[derive(Debug, Default)]
pub struct Gradients {
    by_id: HashMap<u64, Tensor>,
    /// The tensors with a place in an arena that the pass under way was the first to write a gradient of.
    first: Vec<Tensor>,
}

impl Gradients {
    /// The gradient of `tensor`, if one reached it. Gradients of [`crate::optim::Parameters`] are in their arena instead.
    #[must_use]
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.by_id.get(&tensor.id())
    }

    fn take(&mut self, id: u64) -> Option<Tensor> {
        self.by_id.remove(&id)
    }

    /// Adds `gradient` to that of `tensor`.
    pub(crate) fn add(&mut self, tensor: &Tensor, gradient: Tensor) -> Result<()> {
        self.add_to(&tensor.as_input(), gradient)
    }

    /// The same for an input whose values are gone.
    pub(crate) fn add_to(&mut self, input: &Input, gradient: Tensor) -> Result<()> {
        if !input.requires_grad {
            return Ok(());
        }
        if input.parameter.is_none() && !self.by_id.contains_key(&input.id) {
            // What the caller gets to see, the gradients of leaves, shares no memory with anything. Between operations sharing is fine.
            if !input.leaf || gradient.is_exclusive() {
                self.by_id.insert(input.id, gradient);
                return Ok(());
            }
        }
        let Some(target) = self.target_of(input)? else { return Ok(()) };
        kernel::accumulate::accumulate(&input.context, gradient.buffer(), target.tensor.buffer(), target.accumulate)
    }

    /// The place where a kernel writes, or adds, the gradient of `tensor`; `None` if it needs none.
    pub(crate) fn target(&mut self, tensor: &Tensor) -> Result<Option<Target>> {
        self.target_of(&tensor.as_input())
    }

    /// The same for an input whose values are gone.
    pub(crate) fn target_of(&mut self, input: &Input) -> Result<Option<Target>> {
        if !input.requires_grad {
            return Ok(None);
        }
        let Input { context, id, shape, dtype, .. } = input;
        if let Some(parameter) = &input.parameter
            && let Some(GradSlot { buffer, written }) = &parameter.0.slot
        {
            let tensor = Tensor::new(context, buffer.clone(), shape);
            let accumulate = written.swap(true, Ordering::Relaxed);
            if !accumulate {
                self.first.push(parameter.clone());
            }
            return Ok(Some(Target { tensor, accumulate }));
        }
        let (gradient, accumulate) = match self.by_id.remove(id) {
            None => (Tensor::empty(context, shape, *dtype)?, false),
            Some(own) if own.dtype() == *dtype && own.is_exclusive() => (own, true),
            Some(other) => {
                // The gradient of a sum is the same tensor for both terms: it must not change under the other's feet. And kernels write the
                // tensor's own type.
                let copy = Tensor::empty(context, shape, *dtype)?;
                kernel::accumulate::accumulate(context, other.buffer(), copy.buffer(), false)?;
                (copy, true)
            }
        };
        self.by_id.insert(*id, gradient.clone());
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
/// `block` must compute the same from the same inputs each time. It may capture leaves such as parameters; a tensor that was itself computed
/// from leaves must come in through `inputs`, or its part of the graph is consumed too early and the backward pass fails.
///
/// # Errors
/// What `block` returns; [`Error::Invalid`] without inputs.
///
/// # Source
/// Chen et al., arXiv 1604.06174.
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
        // Whoever runs the backward pass inside `no_grad` wants gradients all the same, and they need the graph.
        let again = saved[0].context().with_graph(|| block(&leaves))?;
        if !again.requires_grad() {
            return Ok(());
        }
        again.pass(gradient, gradients)?;
        for (leaf, input) in leaves.iter().zip(&saved) {
            if let Some(gradient) = gradients.take(leaf.id()) {
                gradients.add(input, gradient)?;
            }
        }
        Ok(())
    }))
}

/// Runs `work` without the graphs of these contexts only.
fn with_no_grad<R>(contexts: Vec<usize>, work: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when `work` panics.
    struct End(Vec<usize>);
    impl Drop for End {
        fn drop(&mut self) {
            NO_GRAD.set(std::mem::take(&mut self.0));
        }
    }
    let _end = End(NO_GRAD.replace(contexts));
    work()
}

impl Context {
    /// Runs `work` without building a graph on this thread: evaluation, sampling.
    pub fn no_grad<R>(&self, work: impl FnOnce() -> R) -> R {
        let mut contexts = NO_GRAD.with_borrow(Vec::clone);
        contexts.push(self.address());
        with_no_grad(contexts, work)
    }

    /// Runs `work` with the graph of this context, also inside [`Context::no_grad`].
    fn with_graph<R>(&self, work: impl FnOnce() -> R) -> R {
        let mut contexts = NO_GRAD.with_borrow(Vec::clone);
        contexts.retain(|c| *c != self.address());
        with_no_grad(contexts, work)
    }

    pub(crate) fn grad_enabled(&self) -> bool {
        NO_GRAD.with_borrow(|contexts| !contexts.contains(&self.address()))
    }

    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// True if `tensor` is the constant that backward passes start from, so that multiplying by it can be left out.
    pub(crate) fn is_one(&self, tensor: &Tensor) -> bool {
        let one = self.0.one.lock().unwrap_or_else(PoisonError::into_inner);
        one.iter().any(|(_, buffer)| Arc::ptr_eq(&buffer.raw, &tensor.buffer().raw))
    }

    /// The constant 1 that a backward pass starts from; made once.
    fn ones(&self, dtype: DType) -> Result<Tensor> {
        let mut one = self.0.one.lock().unwrap_or_else(PoisonError::into_inner);
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
