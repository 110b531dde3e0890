//! Token and position embeddings.

use crate::kernel::embedding::{Positions, PositionsGradient, embedding, embedding_backward};
use crate::nn::Dropout;
use crate::{Buffer, DType, Error, Result, Tensor};

impl Tensor {
    /// `dropout(table[token] + positions[t])` for every token; a token beyond the table gives a row of NaN.
    ///
    /// # Shapes
    /// `self` `[batch, t]` u32, `table` `[vocabulary, c]`, `positions` `[at least t, c]`; the result is `[batch, t, c]` f32.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit; [`Error::Invalid`] for a dropout outside [0, 1); [`Error::ContextMismatch`]; [`Error::Limit`],
    /// [`Error::OutOfMemory`].
    pub fn embedding(&self, table: &Tensor, positions: Option<&Tensor>, dropout: Option<&Dropout>) -> Result<Tensor> {
        self.embed(table, positions, None, dropout)
    }

    /// The same with `offset`, a u32 on the device, added to the positions; without dropout and outside the graph.
    pub(crate) fn embed(
        &self,
        table: &Tensor,
        positions: Option<&Tensor>,
        offset: Option<&Buffer>,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        const OP: &str = "embedding";
        let context = self.context();
        let (&[batch, seq], &[_, c]) = (self.shape(), table.shape()) else {
            return Err(Error::shape(
                OP,
                "tokens [batch, t] and a table [vocabulary, c]",
                format!("{:?} and {:?}", self.shape(), table.shape()),
            ));
        };
        if positions.is_some_and(|p| p.shape().len() != 2 || p.shape()[1] != c || p.shape()[0] < seq) {
            return Err(Error::shape(
                OP,
                format!("positions of at least {seq} rows and {c} columns"),
                format!("{:?}", positions.map(Tensor::shape)),
            ));
        }
        if ![Some(table), positions].into_iter().flatten().all(|t| context.same(t.context())) {
            return Err(Error::ContextMismatch { op: OP });
        }
        // One kernel writes both gradients: each needs a place of its own.
        let positions = positions.map(|p| p.apart(&[table])).transpose()?;
        let positions = positions.as_ref();
        let out = Tensor::empty(context, &[batch, seq, c], DType::F32)?;
        let shape = [batch * seq, c];
        let places = positions.map(|p| Positions { table: p.buffer(), seq, offset });
        let mask = dropout.map(Dropout::kernel);
        embedding(context, self.buffer(), table.buffer(), places, mask, out.buffer(), shape)?;
        let inputs: Vec<&Tensor> = [Some(table), positions].into_iter().flatten().collect();
        let (tokens, table, positions, dropout) = (self.clone(), table.clone(), positions.cloned(), dropout.cloned());
        Ok(Tensor::from_op(out, &inputs, move |gradient, gradients| {
            let target = gradients.target_or_scratch(&table)?;
            let places = positions.as_ref().map(|p| gradients.target_or_scratch(p)).transpose()?;
            embedding_backward(
                tokens.context(),
                gradient.buffer(),
                tokens.buffer(),
                target.tensor.buffer(),
                target.accumulate,
                places.as_ref().map(|p| PositionsGradient { table: p.tensor.buffer(), seq, accumulate: p.accumulate }),
                dropout.as_ref().map(Dropout::kernel),
                shape,
            )
        }))
    }
}
