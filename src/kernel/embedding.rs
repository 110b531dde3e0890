//! Token and position embeddings with dropout, forward and backward.

use super::{Dropout, column_sum, dim, each, expect, product, width};
use crate::buffer::{Buffer, elements};
use crate::context::Grid;
use crate::shader::{Define, Defines, Kernel};
use crate::{Context, DType, Error, Result, Tier};

macro_rules! kernel {
    ($(#[$doc:meta])* $static:ident, $name:literal, $variants:ident, $proven:literal) => {
        $(#[$doc])*
        pub static $static: Kernel = Kernel {
            name: $name,
            source: include_str!(concat!("../../shaders/", $name, ".wgsl")),
            tiers: &[Tier::Baseline],
            variants: $variants,
            proven_bounds: $proven,
        };
    };
}

kernel! {
    /// The forward kernel.
    KERNEL, "embedding", variants, false
}
kernel! {
    /// Gradients for small vocabularies.
    BACKWARD, "embedding_backward", backward_variants, true
}
kernel! {
    /// Rows in the order of their tokens.
    SORT, "embedding_sort", sort_variants, false
}
kernel! {
    /// The table's gradient for any vocabulary.
    SORTED, "embedding_backward_sorted", elementwise_variants, false
}
kernel! {
    /// The positions' gradient where the table's takes the sorted way.
    POSITIONS, "embedding_backward_positions", elementwise_variants, false
}

/// Tokens for which [`BACKWARD`] has room in workgroup memory: with 119 it takes the 16 KiB that there are; with fewer, for alphabets of about
/// 65 characters, more workgroups run at a time.
const VOCABS: [u32; 2] = [71, 119];

const WG_SIZES: [u32; 2] = [8, 256];

fn variants() -> Vec<Defines> {
    product(&[elementwise_variants(), each("POSITIONS", &[0u32, 1, 2])])
        .into_iter()
        .filter(|d| !(d.contains(&("DROPOUT", Define::Bool(true))) && d.contains(&("POSITIONS", Define::U32(2)))))
        .collect()
}

fn elementwise_variants() -> Vec<Defines> {
    product(&[each("WG_SIZE", &WG_SIZES), each("WIDTH", &[1u32, 4]), each("DROPOUT", &[false, true])])
}

fn sort_variants() -> Vec<Defines> {
    each("WG_SIZE", &WG_SIZES)
}

fn backward_variants() -> Vec<Defines> {
    let shapes = |list: &[(u32, u32)], dropout: &[u32]| {
        let shapes = list.iter().map(|(size, width)| vec![("WG_SIZE", (*size).into()), ("WIDTH", (*width).into())]);
        product(&[
            shapes.collect(),
            each("POSITIONS", &[false, true]),
            each("DROPOUT", dropout),
            each("VOCAB", &VOCABS),
        ])
    };
    [shapes(&[(8, 1), (8, 4), (32, 1)], &[0, 1]), shapes(&[(32, 1)], &[2])].concat()
}

/// The words of every parameter block here that say how to drop out.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DropoutParams {
    seed: [u32; 2],
    op: u32,
    micro: u32,
    threshold: u32,
    keep_scale: f32,
}

impl DropoutParams {
    fn new(dropout: Option<Dropout<'_>>) -> Self {
        dropout.map_or_else(bytemuck::Zeroable::zeroed, |d| {
            let (threshold, keep_scale) = d.factors();
            Self { seed: d.seed_words(), op: d.op, micro: d.micro, threshold, keep_scale }
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    units: u32,
    vocab: u32,
    seq: u32,
    block: u32,
    dropout: DropoutParams,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct BackwardParams {
    rows: u32,
    units: u32,
    vocab: u32,
    seq: u32,
    batch: u32,
    chunk: u32,
    chunks: u32,
    tiles: u32,
    accumulate: u32,
    dropout: DropoutParams,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SortParams {
    rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SortedParams {
    rows: u32,
    units: u32,
    vocab: u32,
    accumulate: u32,
    dropout: DropoutParams,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PositionsParams {
    rows: u32,
    units: u32,
    seq: u32,
    accumulate: u32,
    dropout: DropoutParams,
}

/// The position embeddings of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// Embeddings `[block, cols]`, f32.
    pub table: &'a Buffer,
    /// Rows per sequence: row r has position `r % seq`.
    pub seq: usize,
    /// What is added to positions, one u32 on the device; not together with dropout.
    pub offset: Option<&'a Buffer>,
}

/// Where the gradient of the position embeddings goes.
#[derive(Clone, Copy, Debug)]
pub struct PositionsGradient<'a> {
    /// Gradient `[block, cols]`, f32.
    pub table: &'a Buffer,
    /// Rows per sequence.
    pub seq: usize,
    /// Whether to add to it instead of setting it.
    pub accumulate: bool,
}

fn wg_size(context: &Context) -> u32 {
    WG_SIZES[usize::from(!context.capabilities().is_cpu())]
}

/// The rows of a table of `cols` columns, at least one.
fn table_rows(op: &'static str, name: &str, table: &Buffer, cols: usize) -> Result<usize> {
    let rows = table.len().checked_div(cols).unwrap_or(0).max(1);
    expect(op, name, table, rows * cols, &[DType::F32])?;
    Ok(rows)
}

/// Refuses rows that are not whole sequences, or sequences that are longer than the table of positions.
fn check_seq(op: &'static str, rows: usize, seq: usize, block: usize) -> Result<()> {
    if seq == 0 || !rows.is_multiple_of(seq) || seq > block {
        let expected = format!("whole sequences of at most {block} rows");
        return Err(Error::shape(op, expected, format!("{rows} rows in sequences of {seq}")));
    }
    Ok(())
}

/// `out[r] = table[tokens[r]] + positions[r % seq + offset]`, then dropout. A token or a position beyond its table makes its row NaN.
///
/// # Shapes
/// `tokens` `[rows]` u32, `table` `[vocab, cols]` f32, `out` `[rows, cols]` f32; see [`Positions`].
///
/// # Errors
/// [`Error::Shape`] where lengths or element types differ from that; [`Error::Invalid`] for a dropout that is no probability below 1, or
/// one together with an offset.
///
/// # Numerics
/// One addition and one product in f32. The dropout's counter is (element of `out` / 4, op, step, micro).
///
/// # Source
/// Table lookup; dropout: Srivastava et al., 2014, in the inverted form.
pub fn embedding(
    context: &Context,
    tokens: &Buffer,
    table: &Buffer,
    positions: Option<Positions<'_>>,
    dropout: Option<Dropout<'_>>,
    out: &Buffer,
    [rows, cols]: [usize; 2],
) -> Result<()> {
    let op = KERNEL.name;
    expect(op, "tokens", tokens, rows, &[DType::U32])?;
    expect(op, "out", out, elements(&[rows, cols])?, &[DType::F32])?;
    let vocab = table_rows(op, "table", table, cols)?;
    dropout.map_or(Ok(()), |d| d.check(op))?;
    let dropout = dropout.filter(|d| d.p > 0.0);
    let mut bindings = vec![tokens.read(), table.read(), out.write()];
    let (mut seq, mut block, mut kind) = (1, 1, 0u32);
    if let Some(positions) = positions {
        seq = positions.seq;
        block = table_rows(op, "positions", positions.table, cols)?;
        check_seq(op, rows, seq, block)?;
        bindings.push(positions.table.read());
        kind = 1;
        if let Some(offset) = positions.offset {
            expect(op, "offset", offset, 1, &[DType::U32])?;
            if dropout.is_some() {
                return Err(Error::invalid(op, "an offset without dropout", "both"));
            }
            bindings.push(offset.read());
            kind = 2;
        }
    }
    bindings.extend(dropout.map(|d| d.state.read()));
    let (size, width) = (wg_size(context), width(cols));
    let units = dim(cols)? / width;
    let params = Params {
        rows: dim(rows)?,
        units,
        vocab: dim(vocab)?,
        seq: dim(seq)?,
        block: dim(block)?,
        dropout: DropoutParams::new(dropout),
    };
    let defines = [
        ("WG_SIZE", size.into()),
        ("WIDTH", width.into()),
        ("DROPOUT", dropout.is_some().into()),
        ("POSITIONS", kind.into()),
    ];
    let groups = (rows as u64 * u64::from(units)).div_ceil(size.into());
    context.dispatch(&KERNEL, &defines, &params, &bindings, Grid::Linear(groups))
}

/// The gradients of [`embedding`]: of the table, set or added to, and of the positions. Tokens beyond the table add nothing to it.
///
/// # Shapes
/// `dout` `[rows, cols]` f32, `tokens` `[rows]` u32, `dtable` `[vocab, cols]` f32; see [`PositionsGradient`].
///
/// # Errors
/// [`Error::Shape`] where lengths or element types differ from that; [`Error::Invalid`] for a dropout that is no probability below 1;
/// [`Error::OutOfMemory`] for the workspace.
///
/// # Numerics
/// Sums in f32 in an order fixed by the shape, the tokens and the kind of adapter.
///
/// # Source
/// Transposed lookup: up to 119 tokens by sums per chunk of rows, beyond that by a stable sort and sums per token.
#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
pub fn embedding_backward(
    context: &Context,
    dout: &Buffer,
    tokens: &Buffer,
    dtable: &Buffer,
    accumulate: bool,
    dpositions: Option<PositionsGradient<'_>>,
    dropout: Option<Dropout<'_>>,
    [rows, cols]: [usize; 2],
) -> Result<()> {
    let op = BACKWARD.name;
    expect(op, "tokens", tokens, rows, &[DType::U32])?;
    expect(op, "dout", dout, elements(&[rows, cols])?, &[DType::F32])?;
    let vocab = table_rows(op, "dtable", dtable, cols)?;
    dropout.map_or(Ok(()), |d| d.check(op))?;
    let dropout = dropout.filter(|d| d.p > 0.0);
    if let Some(positions) = dpositions {
        let block = table_rows(op, "dpositions", positions.table, cols)?;
        check_seq(op, rows, positions.seq, block)?;
        // Positions that no row has.
        if !positions.accumulate && block > positions.seq {
            context.clear(positions.table)?;
        }
    }
    if let Some(room) = VOCABS.into_iter().find(|room| vocab <= *room as usize) {
        small(context, dout, tokens, dtable, accumulate, dpositions, dropout, [rows, cols, vocab], room)
    } else {
        sorted(context, dout, tokens, dtable, accumulate, dpositions, dropout, [rows, cols, vocab])
    }
}

#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
fn small(
    context: &Context,
    dout: &Buffer,
    tokens: &Buffer,
    dtable: &Buffer,
    accumulate: bool,
    dpositions: Option<PositionsGradient<'_>>,
    dropout: Option<Dropout<'_>>,
    [rows, cols, vocab]: [usize; 3],
    room: u32,
) -> Result<()> {
    let cpu = context.capabilities().is_cpu();
    let (size, width) = if cpu { (8, width(cols)) } else { (32, 1) };
    let units = dim(cols)? / width;
    let tiles = units.div_ceil(size);
    // Each chunk costs vocab rows of workspace, written and read again, against the rows that it sums: twice the vocabulary at least.
    // On a software adapter a few chunks per core are enough.
    let per_chunk = if cpu { (2 * vocab).max(rows / 8) } else { 2 * vocab };
    let (chunk, chunks, seq) = match dpositions {
        Some(positions) => {
            let chunk = (per_chunk * positions.seq / rows.max(1)).clamp(1, positions.seq);
            (chunk, positions.seq.div_ceil(chunk), positions.seq)
        }
        None => (per_chunk, rows.div_ceil(per_chunk), 1),
    };
    let partial = context.alloc(chunks * vocab * cols, DType::F32)?;
    let mut bindings = vec![tokens.read(), dout.read(), partial.write()];
    bindings.extend(dpositions.map(|p| p.table.write()));
    bindings.extend(dropout.map(|d| d.state.read()));
    let staged = !cpu && cols.is_multiple_of(4);
    let defines = [
        ("WG_SIZE", size.into()),
        ("WIDTH", width.into()),
        ("POSITIONS", dpositions.is_some().into()),
        ("DROPOUT", Define::U32(if dropout.is_none() { 0 } else { 1 + u32::from(staged) })),
        ("VOCAB", room.into()),
    ];
    let params = BackwardParams {
        rows: dim(rows)?,
        units,
        vocab: dim(vocab)?,
        seq: dim(seq)?,
        batch: dim(rows / seq)?,
        chunk: dim(chunk)?,
        chunks: dim(chunks)?,
        tiles,
        accumulate: dpositions.is_some_and(|p| p.accumulate).into(),
        dropout: DropoutParams::new(dropout),
    };
    let groups = u64::from(tiles) * chunks as u64;
    context.dispatch(&BACKWARD, &defines, &params, &bindings, Grid::Linear(groups))?;
    column_sum::sum(context, &partial, &[dtable], [chunks, vocab * cols], 1.0, accumulate)
}

#[expect(clippy::too_many_arguments, reason = "one argument per tensor")]
fn sorted(
    context: &Context,
    dout: &Buffer,
    tokens: &Buffer,
    dtable: &Buffer,
    accumulate: bool,
    dpositions: Option<PositionsGradient<'_>>,
    dropout: Option<Dropout<'_>>,
    [rows, cols, vocab]: [usize; 3],
) -> Result<()> {
    let (size, width) = (wg_size(context), width(cols));
    let (rows32, units) = (dim(rows)?, dim(cols)? / width);
    if !accumulate {
        context.clear(dtable)?; // most tokens do not occur
    }
    let order = context.alloc(2 * rows, DType::U32)?;
    let sort = [("WG_SIZE", size.into())];
    let groups = Grid::Linear(rows.div_ceil(8) as u64);
    context.dispatch(&SORT, &sort, &SortParams { rows: rows32 }, &[tokens.read(), order.write()], groups)?;
    let defines = [("WG_SIZE", size.into()), ("WIDTH", width.into()), ("DROPOUT", dropout.is_some().into())];
    let params = SortedParams {
        rows: rows32,
        units,
        vocab: dim(vocab)?,
        accumulate: accumulate.into(),
        dropout: DropoutParams::new(dropout),
    };
    let mut bindings = vec![order.read(), dout.read(), dtable.write()];
    bindings.extend(dropout.map(|d| d.state.read()));
    context.dispatch(&SORTED, &defines, &params, &bindings, Grid::Linear(rows as u64))?;
    let Some(positions) = dpositions else { return Ok(()) };
    let seq = dim(positions.seq)?;
    let params = PositionsParams {
        rows: rows32,
        units,
        seq,
        accumulate: positions.accumulate.into(),
        dropout: DropoutParams::new(dropout),
    };
    let mut bindings = vec![dout.read(), positions.table.write()];
    bindings.extend(dropout.map(|d| d.state.read()));
    let groups = (u64::from(seq) * u64::from(units)).div_ceil(size.into());
    context.dispatch(&POSITIONS, &defines, &params, &bindings, Grid::Linear(groups))
}
