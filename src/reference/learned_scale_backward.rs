//! A quantizer with one scale and an offset, which are parameters, and its gradients.

/// Levels are `low + centre` to `high + centre` in units of the scale, one apart.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    /// The scale, positive.
    pub scale: f64,
    /// The offset; 0 without.
    pub offset: f64,
    /// The lowest level less the centre.
    pub low: f64,
    /// The highest level less the centre.
    pub high: f64,
    /// 0, or 1/2 where there is no level zero.
    pub centre: f64,
    /// Whether values are rounded before they are clamped.
    pub rounded_first: bool,
}

impl Learned {
    /// The integers of `bits` bits, two's complement, without an offset.
    #[must_use]
    pub fn integers(bits: u32, scale: f64) -> Self {
        let half = 2f64.powi(bits as i32 - 1);
        Self { scale, offset: 0.0, low: -half, high: half - 1.0, centre: 0.0, rounded_first: false }
    }

    /// `(x - offset) / scale - centre`.
    #[must_use]
    pub fn place(&self, x: f64) -> f64 {
        (x - self.offset) / self.scale - self.centre
    }

    /// Whether a place is in the range.
    #[must_use]
    pub fn inside(&self, place: f64) -> bool {
        if self.rounded_first {
            let level = place.round_ties_even();
            self.low <= level && level <= self.high
        } else {
            self.low < place && place < self.high
        }
    }

    /// The quantized value.
    #[must_use]
    pub fn value(&self, x: f64) -> f64 {
        let level = self.place(x).round_ties_even().clamp(self.low, self.high);
        self.scale * (level + self.centre) + self.offset
    }

    /// The derivatives of the quantized value by `x`, by the scale and by the offset, where rounding has the derivative 1.
    #[must_use]
    pub fn derivatives(&self, x: f64) -> [f64; 3] {
        let place = self.place(x);
        if self.inside(place) {
            [1.0, place.round_ties_even() - place, 0.0]
        } else {
            [0.0, if place < self.low + 0.5 { self.low } else { self.high } + self.centre, 1.0]
        }
    }
}

/// The gradients of `x`, of the scale and of the offset.
#[must_use]
pub fn learned_scale_backward(x: &[f64], dy: &[f64], learned: Learned, factor: f64) -> (Vec<f64>, f64, f64) {
    let mut dx = Vec::with_capacity(x.len());
    let (mut scale, mut offset) = (0.0, 0.0);
    for (x, dy) in x.iter().zip(dy) {
        let [by_x, by_scale, by_offset] = learned.derivatives(*x);
        dx.push(dy * by_x);
        scale += dy * by_scale;
        offset += dy * by_offset;
    }
    (dx, factor * scale, factor * offset)
}

/// LSQ's factor on the gradient of the scale of `len` elements, where the largest level less the centre is `high`; of none, that of one.
#[must_use]
pub fn lsq_factor(len: usize, high: f64) -> f64 {
    1.0 / (len.max(1) as f64 * high.max(1.0)).sqrt()
}

/// The scale that LSQ starts from.
#[must_use]
pub fn lsq_start(x: &[f64], high: f64) -> f64 {
    2.0 * (x.iter().map(|v| v.abs()).sum::<f64>() / x.len() as f64) / high.max(1.0).sqrt()
}
