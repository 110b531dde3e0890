//! Quantized matrices on the host: the layout that shaders read, and the definition of every encoder in float64.

use super::{Format, Grid, Power, Rounding, Rule, Span, Store, tables};
use crate::{Error, Result};

/// Columns that are packed together.
pub const UNIT: usize = 32;
/// Words of the side data's header.
pub const HEADER: usize = 32;

/// Words of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Header {
    /// f32: factor on every scale. The tensor's scale where groups have E4M3 scales, 2^-6 for `mxint8` (its elements have six fraction bits),
    /// else 1.
    Factor = 0,
    /// f32: a power of two that brings the largest magnitude that any code could have with its scale into [2^13, 2^14), for f16 operands; at
    /// most 2^100 and at least 2^-100; 1 for a matrix of zeros.
    Norm = 1,
    /// f32: the reciprocal of `Norm`.
    InverseNorm = 2,
    /// f32: the offset of double-quantized scales.
    Offset = 3,
    /// The first of 16 f32: the values of the codes where the grid has at most 16 that are no integers.
    Table = 16,
}

/// Sizes and places of a quantized matrix, in words of 32 bits unless said otherwise.
///
/// Side data: [`HEADER`] words; scales, row by row; zero points of 8 bits, row by row; one f32 per 256 groups where scales are double-quantized
/// (groups counted along rows, then over rows). NF3 has two scales per group: for positive values, then for negative ones. Scales and zero
/// points of a row start at a word, the first one in its lowest bits. Where scales are double-quantized, the 256 values of their codes come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Units of 32 columns in a row.
    pub units: usize,
    /// Words of codes in a row.
    pub row_words: usize,
    /// Words of all codes.
    pub code_words: usize,
    /// Elements per group.
    pub group: usize,
    /// Groups in a row.
    pub groups: usize,
    /// Bits of a stored scale.
    pub scale_bits: usize,
    /// Scales per group: 2 for NF3.
    pub scales: usize,
    /// Words of scales in a row; 0 where all rows share one.
    pub scale_stride: usize,
    /// Where zero points start.
    pub zeros_at: usize,
    /// Words of zero points in a row; 0 without.
    pub zero_stride: usize,
    /// Where the scales of scales start.
    pub nested_at: usize,
    /// Where the values of double-quantized scales' codes start.
    pub map_at: usize,
    /// Words of all side data.
    pub side_words: usize,
}

impl Layout {
    /// The layout of a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Limit`] where a word could not be addressed by 32 bits.
    pub fn new(format: &Format, rows: usize, cols: usize) -> Result<Self> {
        let too_large = || Error::Limit {
            what: format!("a matrix of {rows} x {cols} in {format}"),
            limit: "32-bit index",
            max: u64::from(u32::MAX),
            needed: (rows as u64).saturating_mul(cols as u64),
        };
        if rows.checked_mul(cols.max(1)).is_none_or(|n| n > u32::MAX as usize)
            || rows > u32::MAX as usize / (2 * HEADER)
        {
            return Err(too_large());
        }
        let units = cols.div_ceil(UNIT);
        let row_words = units * format.bits() as usize;
        let group = format.group(cols);
        let groups = cols.div_ceil(group);
        let scale_bits = match format.store {
            Store::F32 => 32,
            Store::F16 => 16,
            Store::E8M0(_) | Store::E4M3 | Store::Ue4m3 | Store::Double => 8,
        };
        let scales = if format.grid == Grid::Nf3 { 2 } else { 1 };
        let row_scales = (groups * scales * scale_bits).div_ceil(32);
        let shared = format.span == Span::Tensor;
        let scale_stride = if shared { 0 } else { row_scales };
        let zeros_at = HEADER + if shared { row_scales } else { rows * row_scales };
        let zeros = if matches!(format.grid, Grid::ZeroPoint { .. }) { groups.div_ceil(4) } else { 0 };
        let zero_stride = if shared { 0 } else { zeros };
        let nested_at = zeros_at + if shared { zeros } else { rows * zeros };
        let nested = if format.store == Store::Double { (rows * groups).div_ceil(256) } else { 0 };
        let map_at = nested_at + nested;
        let map = if format.store == Store::Double { 256 } else { 0 };
        let (code_words, side_words) = (rows * row_words, map_at + map);
        if code_words.max(side_words) > u32::MAX as usize {
            return Err(too_large());
        }
        Ok(Self {
            rows,
            cols,
            units,
            row_words,
            code_words,
            group,
            groups,
            scale_bits,
            scales,
            scale_stride,
            zeros_at,
            zero_stride,
            nested_at,
            map_at,
            side_words,
        })
    }

    /// Planes of a code: (bits, first word within the unit, position of its lowest bit within the code).
    #[must_use]
    pub fn planes(bits: u32) -> Vec<(u32, usize, u32)> {
        let (mut word, mut low) = (0, 0);
        let mut planes = Vec::new();
        for width in [8, 4, 2, 1] {
            if bits & width != 0 {
                planes.push((width, word, low));
                word += width as usize;
                low += width;
            }
        }
        planes
    }
}

/// A quantized matrix in the host's memory, in the layout that shaders read.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    format: Format,
    layout: Layout,
    codes: Vec<u32>,
    side: Vec<u32>,
}

/// Exponent of the smallest power of two not above `v > 0`.
fn exponent(v: f64) -> i32 {
    ((v.to_bits() >> 52) & 0x7FF) as i32 - 1023
}

impl PackedMatrix {
    /// A matrix of codes 0 and scales 0.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn zeros(format: Format, rows: usize, cols: usize) -> Result<Self> {
        let layout = Layout::new(&format, rows, cols)?;
        let mut matrix = Self { format, layout, codes: vec![0; layout.code_words], side: vec![0; layout.side_words] };
        matrix.side[..HEADER].copy_from_slice(&format.header());
        if format.store == Store::Double {
            matrix.set_map(&tables::dynamic_map());
        }
        Ok(matrix)
    }

    /// From words as a device or a file of walsh's own has them.
    ///
    /// # Errors
    /// [`Error::Shape`] where the number of words is not that of the layout; as [`Layout::new`].
    pub fn from_words(format: Format, rows: usize, cols: usize, codes: Vec<u32>, side: Vec<u32>) -> Result<Self> {
        let layout = Layout::new(&format, rows, cols)?;
        if codes.len() != layout.code_words || side.len() != layout.side_words {
            return Err(Error::shape(
                "quantized matrix",
                format!(
                    "{} words of codes and {} of side data for {rows} x {cols} in {format}",
                    layout.code_words, layout.side_words
                ),
                format!("{} and {}", codes.len(), side.len()),
            ));
        }
        Ok(Self { format, layout, codes, side })
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The same codes and scales as those of a format that reads them alike and differs in how values are encoded only.
    #[must_use]
    pub fn with_format(self, format: Format) -> Option<Self> {
        let read = |format: &Format| {
            let grid = match format.grid {
                Grid::Int { bits, .. } => Grid::Int { bits, full: true },
                other => other,
            };
            let store = match format.store {
                Store::E8M0(_) => Store::E8M0(Power::Floor),
                other => other,
            };
            (grid, format.span, store)
        };
        (read(&self.format) == read(&format)).then_some(Self { format, ..self })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Packed codes.
    #[must_use]
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Header, scales and zero points.
    #[must_use]
    pub fn side(&self) -> &[u32] {
        &self.side
    }

    fn at(&self, row: usize, col: usize) -> usize {
        row * self.layout.row_words + col / UNIT * self.format.bits() as usize
    }

    /// The code of an element.
    #[must_use]
    pub fn code(&self, row: usize, col: usize) -> u32 {
        let (start, i) = (self.at(row, col), (col % UNIT) as u32);
        Layout::planes(self.format.bits()).into_iter().fold(0, |code, (width, word, low)| {
            let value = self.codes[start + word + (i * width / 32) as usize] >> (i * width % 32);
            code | (value & ((1 << width) - 1)) << low
        })
    }

    /// Sets the code of an element; bits beyond the format's are ignored.
    pub fn set_code(&mut self, row: usize, col: usize, code: u32) {
        let (start, i) = (self.at(row, col), (col % UNIT) as u32);
        for (width, word, low) in Layout::planes(self.format.bits()) {
            let (mask, shift) = ((1 << width) - 1, i * width % 32);
            let word = &mut self.codes[start + word + (i * width / 32) as usize];
            *word = *word & !(mask << shift) | (code >> low & mask) << shift;
        }
    }

    /// The codes of a row, one to a byte.
    ///
    /// # Panics
    /// If `codes` does not have one element per column.
    pub fn row_codes(&self, row: usize, codes: &mut [u8]) {
        assert_eq!(codes.len(), self.layout.cols, "one code per column");
        codes.fill(0);
        let words = &self.codes[row * self.layout.row_words..][..self.layout.row_words];
        for (unit, codes) in words.chunks(self.format.bits() as usize).zip(codes.chunks_mut(UNIT)) {
            for (width, word, low) in Layout::planes(self.format.bits()) {
                let per_word = (32 / width) as usize;
                for (word, codes) in unit[word..].iter().zip(codes.chunks_mut(per_word)) {
                    let mut rest = *word;
                    for code in codes {
                        *code |= ((rest & ((1 << width) - 1)) << low) as u8;
                        rest >>= width;
                    }
                }
            }
        }
    }

    /// Sets the codes of a row; bits beyond the format's are ignored.
    ///
    /// # Panics
    /// If `codes` does not have one element per column.
    pub fn set_row_codes(&mut self, row: usize, codes: &[u8]) {
        assert_eq!(codes.len(), self.layout.cols, "one code per column");
        let words = &mut self.codes[row * self.layout.row_words..][..self.layout.row_words];
        for (unit, codes) in words.chunks_mut(self.format.bits() as usize).zip(codes.chunks(UNIT)) {
            for (width, word, low) in Layout::planes(self.format.bits()) {
                let per_word = (32 / width) as usize;
                for (word, codes) in unit[word..].iter_mut().zip(codes.chunks(per_word)) {
                    *word = codes
                        .iter()
                        .rev()
                        .fold(0, |word, code| word << width | (u32::from(*code) >> low & ((1 << width) - 1)));
                }
            }
        }
    }

    /// The values of double-quantized scales' codes; empty for other formats.
    #[must_use]
    pub fn map(&self) -> &[u32] {
        &self.side[self.layout.map_at..]
    }

    /// Sets them: [`tables::dynamic_map`] unless a file brings its own.
    pub fn set_map(&mut self, map: &[f32; 256]) {
        for (word, value) in self.side[self.layout.map_at..].iter_mut().zip(map) {
            *word = value.to_bits();
        }
    }

    /// A header word.
    #[must_use]
    pub fn header(&self, word: Header) -> f32 {
        f32::from_bits(self.side[word as usize])
    }

    /// Sets a header word.
    pub fn set_header(&mut self, word: Header, value: f32) {
        self.side[word as usize] = value.to_bits();
    }

    fn scale_place(&self, row: usize, scale: usize) -> (usize, usize) {
        let bit = scale * self.layout.scale_bits;
        (HEADER + row * self.layout.scale_stride + bit / 32, bit % 32)
    }

    /// The bits of stored scale number `scale` of a row.
    #[must_use]
    pub fn scale_bits(&self, row: usize, scale: usize) -> u32 {
        let (word, shift) = self.scale_place(row, scale);
        self.side[word] >> shift & (u32::MAX >> (32 - self.layout.scale_bits))
    }

    /// Sets them.
    pub fn set_scale_bits(&mut self, row: usize, scale: usize, bits: u32) {
        let (word, shift) = self.scale_place(row, scale);
        let mask = u32::MAX >> (32 - self.layout.scale_bits);
        self.side[word] = self.side[word] & !(mask << shift) | (bits & mask) << shift;
    }

    /// The zero point of a group; 0 where the format has none.
    #[must_use]
    pub fn zero(&self, row: usize, group: usize) -> u32 {
        if !matches!(self.format.grid, Grid::ZeroPoint { .. }) {
            return 0;
        }
        self.side[self.layout.zeros_at + row * self.layout.zero_stride + group / 4] >> (group % 4 * 8) & 0xFF
    }

    /// Sets it.
    pub fn set_zero(&mut self, row: usize, group: usize, zero: u32) {
        let word = &mut self.side[self.layout.zeros_at + row * self.layout.zero_stride + group / 4];
        let shift = group % 4 * 8;
        *word = *word & !(0xFF << shift) | (zero & 0xFF) << shift;
    }

    /// The scale of scales of the 256 groups to which a group belongs.
    #[must_use]
    pub fn nested(&self, row: usize, group: usize) -> f32 {
        f32::from_bits(self.side[self.layout.nested_at + (row * self.layout.groups + group) / 256])
    }

    /// Sets it.
    pub fn set_nested(&mut self, row: usize, group: usize, value: f32) {
        self.side[self.layout.nested_at + (row * self.layout.groups + group) / 256] = value.to_bits();
    }

    /// What a code's value is multiplied by; for NF3, of a value with sign `negative`. NaN marks a group that held what is not finite.
    #[must_use]
    pub fn scale(&self, row: usize, group: usize, negative: bool) -> f64 {
        let bits = self.scale_bits(row, group * self.layout.scales + usize::from(negative && self.layout.scales == 2));
        let stored = match self.format.store {
            Store::F32 => f64::from(f32::from_bits(bits)),
            Store::F16 => f64::from(half::f16::from_bits(bits as u16)),
            Store::E8M0(_) if bits == 255 => f64::NAN,
            Store::E8M0(_) => 2f64.powi(bits as i32 - 127),
            Store::E4M3 | Store::Ue4m3 => super::Minifloat::E4M3.decode(bits),
            Store::Double => {
                let level = f32::from_bits(self.side[self.layout.map_at + bits as usize]);
                f64::from(level) * f64::from(self.nested(row, group)) + f64::from(self.header(Header::Offset))
            }
        };
        stored * f64::from(self.header(Header::Factor))
    }

    /// The value of an element.
    #[must_use]
    pub fn value(&self, row: usize, col: usize) -> f64 {
        let group = col / self.layout.group;
        let level = self.format.grid.decode(self.code(row, col), self.zero(row, group));
        level * self.scale(row, group, level < 0.0)
    }

    /// The values of a row, for all of a matrix at once: levels are looked up. `codes` is room for a row's codes.
    ///
    /// # Panics
    /// If `codes` and `values` do not have one element per column.
    pub fn row_values(&self, row: usize, codes: &mut [u8], values: &mut [f64]) {
        assert_eq!(values.len(), self.layout.cols, "one value per column");
        self.row_codes(row, codes);
        let grid = self.format.grid;
        let mut levels = [0.0; 256];
        for (code, level) in (0..1u32 << grid.bits()).zip(&mut levels) {
            // A zero point is taken off the level.
            *level = grid.decode(code, 0);
        }
        let group = self.layout.group;
        for (number, (codes, values)) in codes.chunks(group).zip(values.chunks_mut(group)).enumerate() {
            let zero = f64::from(self.zero(row, number));
            let positive = self.scale(row, number, false);
            let negative = if self.layout.scales == 2 { self.scale(row, number, true) } else { positive };
            for (code, value) in codes.iter().zip(values) {
                let level = levels[usize::from(*code)] - zero;
                *value = level * if level < 0.0 { negative } else { positive };
            }
        }
    }

    /// All values, row by row.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f64> {
        let Layout { rows, cols, .. } = self.layout;
        (0..rows).flat_map(|row| (0..cols).map(move |col| self.value(row, col))).collect()
    }

    /// Quantizes a matrix in float64: the definition of the encoders.
    ///
    /// Magnitudes below 2^-126 count as zero, and so does a float scale below 2^-126. A group (a row, a tensor) of zeros has the scale 0 (E8M0:
    /// 2^-127), but for rules with a least scale of their own: `mse` (1e-8) and `absmean` (1e-5). A group that holds a NaN or an
    /// infinity has a scale of NaN and the codes of zeros; the rest of a tensor is not affected. A scale beyond what the format stores
    /// saturates, see [`Format::saturated_scale`].
    ///
    /// # Errors
    /// [`Error::Shape`] where `x` does not have `rows * cols` elements; as [`Layout::new`].
    pub fn quantize(format: Format, x: &[f32], rows: usize, cols: usize, rounding: Rounding) -> Result<Self> {
        let mut matrix = Self::zeros(format, rows, cols)?;
        if x.len() != rows * cols {
            return Err(Error::shape("quantize", format!("{rows} x {cols} elements"), format!("{}", x.len())));
        }
        let unrounded = matrix.choose_scales(x);
        let groups = matrix.layout.groups;
        matrix.encode_by(x, rounding, |matrix, row, group, negative| {
            if format.exact { unrounded[row * groups + group] } else { matrix.scale(row, group, negative) }
        });
        matrix.set_norm();
        Ok(matrix)
    }

    /// Encodes `x` with the scales and zero points that the matrix has.
    ///
    /// # Panics
    /// If `x` does not have one element for each of the matrix.
    pub fn encode(&mut self, x: &[f32], rounding: Rounding) {
        self.encode_by(x, rounding, Self::scale);
    }

    fn encode_by(&mut self, x: &[f32], rounding: Rounding, scale: impl Fn(&Self, usize, usize, bool) -> f64) {
        let Layout { rows, cols, group, .. } = self.layout;
        assert_eq!(x.len(), rows * cols, "one value per element");
        for row in 0..rows {
            for col in 0..cols {
                let element = row * cols + col;
                let value = flush(x[element]);
                let g = col / group;
                let (scale, zero) = (scale(self, row, g, value < 0.0), self.zero(row, g));
                let v = if scale.is_finite() && scale != 0.0 && value.is_finite() { value / scale } else { 0.0 };
                let code = match rounding {
                    Rounding::Nearest => self.format.nearest(v, zero),
                    Rounding::Stochastic(random) => self.format.stochastic(v, zero, random.at(element as u32)),
                };
                self.set_code(row, col, code);
            }
        }
    }

    /// Stores scales and zero points, and returns the scales as they were before that, group by group.
    fn choose_scales(&mut self, x: &[f32]) -> Vec<f64> {
        let Layout { rows, cols, group, groups, .. } = self.layout;
        let tensor = x.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(flush(*v).abs()));
        if self.format.store == Store::E4M3 && tensor > 0.0 {
            let factor = (tensor / (self.format.grid.max() * 448.0)) as f32;
            self.set_header(Header::Factor, factor.max(f32::MIN_POSITIVE));
        }
        let mut unrounded = Vec::with_capacity(rows * groups);
        let shared = self.format.span == Span::Tensor;
        for row in 0..if shared { rows.min(1) } else { rows } {
            for g in 0..groups {
                let elements =
                    if shared { x } else { &x[row * cols + g * group..row * cols + ((g + 1) * group).min(cols)] };
                let wide: Vec<f64> = elements.iter().map(|v| flush(*v)).collect();
                let bad = elements.iter().any(|v| !v.is_finite());
                let (scale, second) = self.format.ideal(&wide);
                unrounded.push(if bad { f64::NAN } else { flush(scale as f32) });
                if self.format.store == Store::Double {
                    continue;
                }
                if let Some((scale, zero)) = self.format.zero_point(&wide) {
                    self.set_zero(row, g, if bad { 0 } else { zero });
                    self.store_scale(row, g, scale, bad, &wide);
                    continue;
                }
                self.store_scale(row, g * self.layout.scales, scale, bad, &wide);
                if let Some(second) = second {
                    self.store_scale(row, g * self.layout.scales + 1, second, bad, &wide);
                }
            }
        }
        if self.format.store == Store::Double {
            self.store_double(&unrounded);
        }
        if shared {
            unrounded = unrounded.repeat(rows);
        }
        unrounded
    }

    fn store_scale(&mut self, row: usize, scale: usize, ideal: f64, bad: bool, group: &[f64]) {
        let ideal = if ideal.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { ideal };
        let bits = match self.format.store {
            Store::F32 => if bad { f32::NAN } else { ideal as f32 }.to_bits(),
            Store::F16 => {
                let saturated = ideal.clamp(-65504.0, 65504.0);
                u32::from(if bad { half::f16::NAN } else { half::f16::from_f64(saturated) }.to_bits())
            }
            Store::E8M0(_) if bad => 255,
            Store::E8M0(_) if self.format.rule == Rule::Gaussian => (exponent(ideal) + 127).clamp(0, 254) as u32,
            Store::E8M0(power) => self.format.power_of_two(power, group.iter().fold(0.0, |m, v| m.max(v.abs()))),
            Store::E4M3 | Store::Ue4m3 if bad => 0x7F,
            Store::Ue4m3 => ue4m3(ideal as f32),
            Store::E4M3 => {
                let format =
                    Format { grid: Grid::Float(super::Minifloat::E4M3), ties: super::Ties::Even, ..self.format };
                format.nearest(ideal / f64::from(self.header(Header::Factor)), 0)
            }
            Store::Double => unreachable!("stored by store_double"),
        };
        self.set_scale_bits(row, scale, bits);
    }

    /// Offset = the mean of all finite scales; per 256 groups the largest difference from it; each difference as an entry of the dynamic map.
    fn store_double(&mut self, scales: &[f64]) {
        let map = tables::dynamic_map();
        let finite: Vec<f64> = scales.iter().copied().filter(|s| s.is_finite()).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of groups")]
        let offset = if finite.is_empty() { 0.0 } else { (finite.iter().sum::<f64>() / finite.len() as f64) as f32 };
        self.set_header(Header::Offset, offset);
        let groups = self.layout.groups;
        for (block, part) in scales.chunks(256).enumerate() {
            let largest = part
                .iter()
                .fold(0.0f64, |m, s| if s.is_nan() { f64::NAN } else { m.max((s - f64::from(offset)).abs()) });
            let bad = part.iter().any(|s| s.is_nan());
            let nested = if bad { f32::NAN } else { largest as f32 };
            for (i, scale) in part.iter().enumerate() {
                let number = block * 256 + i;
                let (row, group) = (number / groups, number % groups);
                self.set_nested(row, group, nested);
                let v = if bad || nested == 0.0 { 0.0 } else { (scale - f64::from(offset)) / f64::from(nested) };
                let code = (0..256u32).min_by(|a, b| {
                    let distance = |c: &u32| (f64::from(map[*c as usize]) - v).abs();
                    distance(a).total_cmp(&distance(b))
                });
                self.set_scale_bits(row, group, code.unwrap_or(0));
            }
        }
    }

    /// How many scales there are, and how many of them are the largest one that the format stores, to which larger ones saturate; none for formats
    /// where f32 values reach no such end, see [`Format::saturated_scale`].
    #[must_use]
    pub fn largest_scales(&self) -> Option<[usize; 2]> {
        let [largest, _] = self.format.largest_scale()?;
        let Layout { rows, groups, scales, .. } = self.layout;
        let rows = if self.format.span == Span::Tensor { rows.min(1) } else { rows };
        let signs = &[false, true][..scales];
        let all =
            (0..rows).flat_map(|row| (0..groups).flat_map(move |g| signs.iter().map(move |sign| (row, g, *sign))));
        let at_end = all.filter(|(row, group, sign)| self.scale(*row, *group, *sign).abs() >= largest);
        Some([rows * groups * scales, at_end.count()])
    }

    /// Sets the header's normalizing power of two from the scales that are stored.
    pub fn set_norm(&mut self) {
        let Layout { rows, groups, .. } = self.layout;
        let mut largest = 0.0f64;
        for row in 0..if self.format.span == Span::Tensor { rows.min(1) } else { rows } {
            for group in 0..groups {
                for negative in [false, true] {
                    let scale = self.scale(row, group, negative).abs();
                    largest = if scale.is_finite() { largest.max(scale) } else { largest };
                }
            }
        }
        let power =
            if largest > 0.0 { (13 - exponent(largest * self.format.grid.span_max())).clamp(-100, 100) } else { 0 };
        self.set_header(Header::Norm, 2f32.powi(power));
        self.set_header(Header::InverseNorm, 2f32.powi(-power));
    }
}

/// A scale as ggml rounds it to E4M3 without sign: ties up, what lies between the largest subnormal and the smallest normal number to the former,
/// 248 and more to the largest value.
fn ue4m3(scale: f32) -> u32 {
    let bits = scale.to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if scale <= 0.0 {
        0
    } else if exponent <= 0 {
        ((scale * 512.0 + 0.5) as u32).min(7)
    } else {
        let code = ((exponent as u32) << 3 | bits >> 20 & 7) + (bits >> 19 & 1);
        if code >= 15 << 3 { 0x7E } else { code }
    }
}

/// Subnormal numbers count as zero, on every device.
fn flush(v: f32) -> f64 {
    if v.abs() < f32::MIN_POSITIVE { 0.0 } else { f64::from(v) }
}

impl Grid {
    /// The largest magnitude that any code and zero point stand for.
    #[must_use]
    pub fn span_max(self) -> f64 {
        match self {
            Self::Int { bits, .. } => f64::from(1u32 << (bits - 1)),
            other => other.max(),
        }
    }

    /// Mantissa bits, for [`Power::Even`].
    pub(crate) fn mantissa_bits(self) -> u32 {
        match self {
            Self::Float(float) => float.layout().1,
            other => other.bits() - 2,
        }
    }
}

impl Format {
    /// The first group of a matrix `[rows, cols]` whose scale is beyond the largest one that the format stores, to which it saturates: row,
    /// group, and the scale. Only f16 scales and ggml's E4M3 ones (`ue4m3`) have an end that f32 values reach.
    ///
    /// # Errors
    /// [`Error::Shape`] where `x` does not have `rows * cols` elements.
    pub fn saturated_scale(&self, x: &[f32], rows: usize, cols: usize) -> Result<Option<(usize, usize, f64)>> {
        if rows.checked_mul(cols) != Some(x.len()) {
            return Err(Error::shape("scales", format!("{rows} x {cols} elements"), format!("{}", x.len())));
        }
        let Some([_, end]) = self.largest_scale().filter(|_| self.may_saturate(x, 1.0)) else { return Ok(None) };
        let (rows, cols) = if self.span == Span::Tensor { (1, x.len()) } else { (rows, cols) };
        let size = self.group(cols);
        for row in 0..rows {
            for (number, group) in x[row * cols..][..cols].chunks(size).enumerate() {
                let wide: Vec<f64> = group.iter().map(|v| flush(*v)).collect();
                let (first, second) = self.ideal(&wide);
                let scale = self.zero_point(&wide).map_or(first.abs().max(second.unwrap_or(0.0)), |(scale, _)| scale);
                if scale >= end {
                    return Ok(Some((row, number, scale)));
                }
            }
        }
        Ok(None)
    }

    /// Whether a scale of values whose magnitudes are at most `gain` times the largest one in `x` may saturate.
    pub(crate) fn may_saturate(&self, x: &[f32], gain: f64) -> bool {
        let Some([_, end]) = self.largest_scale() else { return false };
        let largest = x.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(f64::from(*v).abs()));
        // No rule makes a scale of more than twice the largest magnitude.
        2.0 * gain * largest >= end
    }

    /// Whether there is a largest scale that f32 values reach.
    pub(crate) fn saturates(&self) -> bool {
        self.largest_scale().is_some()
    }

    /// The largest scale that is stored, and half-way to what would be the next one, up to which scales are rounded to it; none where f32
    /// values reach no such end.
    fn largest_scale(&self) -> Option<[f64; 2]> {
        match self.store {
            Store::F16 => Some([65504.0, 65520.0]),
            Store::Ue4m3 => Some([448.0, 464.0]),
            Store::F32 | Store::E8M0(_) | Store::E4M3 | Store::Double => None,
        }
    }

    /// The header of a matrix before anything is known of its values.
    #[must_use]
    pub fn header(&self) -> [u32; HEADER] {
        let mut header = [0; HEADER];
        header[Header::Factor as usize] = self.unit().to_bits();
        header[Header::Norm as usize] = 1f32.to_bits();
        header[Header::InverseNorm as usize] = 1f32.to_bits();
        for (word, value) in header[Header::Table as usize..].iter_mut().zip(self.table()) {
            *word = value.to_bits();
        }
        header
    }

    /// Values by code, for grids of at most 16 that are no integers; else empty.
    #[must_use]
    pub fn table(&self) -> &'static [f32] {
        match self.grid {
            Grid::Nf4 => &tables::NF4,
            Grid::Fp4 => &tables::FP4,
            Grid::Nf3 => &tables::NF3,
            Grid::Float(super::Minifloat::E2M1) => &tables::E2M1,
            _ => &[],
        }
    }

    /// 2^-6 for `mxint8`, whose elements have six fraction bits (OCP MX 1.0, section 5.3.4), else 1.
    #[must_use]
    pub fn unit(&self) -> f32 {
        if matches!((self.grid, self.store), (Grid::Int { bits: 8, .. }, Store::E8M0(_))) { 1.0 / 64.0 } else { 1.0 }
    }

    /// The scale before it is stored (without the tensor's factor, which is not taken off), and NF3's second one.
    fn ideal(&self, group: &[f64]) -> (f64, Option<f64>) {
        let largest = group.iter().fold(0.0f64, |m, v| if v.is_finite() { m.max(v.abs()) } else { m });
        #[expect(clippy::cast_precision_loss, reason = "a number of elements")]
        let count = group.len().max(1) as f64;
        let mean = group.iter().map(|v| v.abs()).sum::<f64>() / count;
        let rms = (group.iter().map(|v| v * v).sum::<f64>() / count).sqrt();
        if self.grid == Grid::Nf3 {
            let end = |sign: f64| group.iter().fold(0.0f64, |m, v| if v.is_finite() { m.max(v * sign) } else { m });
            return (end(1.0), Some(end(-1.0)));
        }
        let scale = match (self.rule, self.grid) {
            (Rule::AbsMax | Rule::MinMax, grid) => largest / grid.max(),
            (Rule::SignedMax, grid) => {
                let end = group.iter().copied().find(|v| v.abs() == largest).unwrap_or(0.0);
                -end / grid.max()
            }
            // Signs are +-1/2 in units of the scale; ternary levels +-1.
            (Rule::AbsMean, Grid::Centred { bits: 1 }) => 2.0 * mean,
            (Rule::AbsMean, _) => mean.max(1e-5),
            (Rule::Gaussian, _) => {
                let (gain, epsilon) = self.gaussian();
                gain * rms + epsilon
            }
        };
        (scale, None)
    }

    /// The scale by [`Rule::Gaussian`]: a factor on the root mean square, and what is added to it.
    pub(crate) fn gaussian(&self) -> (f64, f64) {
        // A clip in standard deviations, and its value in units of the scale.
        let (clip, steps) = match self.grid {
            Grid::Float(_) => return (tables::GAUSSIAN_UNIT_E2M1, 1e-8),
            Grid::Centred { bits } => (tables::GAUSSIAN_CLIP[bits as usize - 1], f64::from((1u32 << bits) - 1)),
            grid => (tables::GAUSSIAN_CLIP[grid.bits() as usize - 1], f64::from(1u32 << grid.bits())),
        };
        (2.0 * clip / steps, 2e-8 / steps)
    }

    /// Scale and zero point of a group for grids with zero points: the range, widened to hold 0, over 2^b - 1 steps.
    fn zero_point(&self, group: &[f64]) -> Option<(f64, u32)> {
        let Grid::ZeroPoint { .. } = self.grid else { return None };
        let fold = |start: f64, pick: fn(f64, f64) -> f64| {
            group.iter().fold(start, |m, v| if v.is_finite() { pick(m, *v) } else { m })
        };
        let (low, high, steps) = (fold(0.0, f64::min), fold(0.0, f64::max), self.grid.max());
        let scale = (high - low) / steps;
        // The zero point belongs to the scale as it is stored.
        let stored = match self.store {
            Store::F16 => f64::from(half::f16::from_f64(scale.min(65504.0))),
            _ => flush(scale as f32),
        };
        let zero = if stored > 0.0 { (-low / stored).round_ties_even().clamp(0.0, steps) } else { 0.0 };
        Some((scale, zero as u32))
    }

    /// The byte of an E8M0 scale for a group of this largest magnitude.
    fn power_of_two(&self, power: Power, largest: f64) -> u32 {
        if largest == 0.0 {
            return 0;
        }
        let max = self.grid.max() * f64::from(self.unit());
        let (e, top) = (exponent(largest), exponent(max));
        let fraction = largest / 2f64.powi(e);
        let scale = match power {
            Power::Floor => e - top,
            Power::RoundUp => e - top + i32::from(fraction > max / 2f64.powi(top)),
            Power::Ceil => e - top + i32::from(fraction > 1.0),
            Power::Even => e - top + i32::from(fraction >= 2.0 - 2f64.powi(-(self.grid.mantissa_bits() as i32) - 1)),
        };
        (scale + 127).clamp(0, 254) as u32
    }
}
