//! Small floats: sign, exponent and mantissa in at most 8 bits.

/// A small float's layout: sign, then `exponent` bits, then `mantissa` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Minifloat {
    /// 2 exponent bits, 1 mantissa bit; up to 6, no infinity and no NaN.
    E2M1,
    /// Up to 7.5, no infinity and no NaN.
    E2M3,
    /// Up to 28, no infinity and no NaN.
    E3M2,
    /// Up to 448; S.1111.111 is NaN, no infinity (the "FN" variant).
    E4M3,
    /// Up to 57344, with infinities and NaNs as IEEE 754 has them.
    E5M2,
}

impl Minifloat {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::E2M1, Self::E2M3, Self::E3M2, Self::E4M3, Self::E5M2];

    /// (exponent bits, mantissa bits).
    #[must_use]
    pub const fn layout(self) -> (u32, u32) {
        match self {
            Self::E2M1 => (2, 1),
            Self::E2M3 => (2, 3),
            Self::E3M2 => (3, 2),
            Self::E4M3 => (4, 3),
            Self::E5M2 => (5, 2),
        }
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        let (e, m) = self.layout();
        1 + e + m
    }

    /// Exponent bias.
    #[must_use]
    pub const fn bias(self) -> i32 {
        (1 << (self.layout().0 - 1)) - 1
    }

    /// The code of the largest finite value.
    #[must_use]
    pub const fn max_code(self) -> u32 {
        match self {
            Self::E4M3 => 0x7E,
            Self::E5M2 => 0x7B,
            _ => (1 << (self.bits() - 1)) - 1,
        }
    }

    /// The largest finite value.
    #[must_use]
    pub fn max(self) -> f64 {
        self.decode(self.max_code())
    }

    /// Exponent of the largest finite value.
    #[must_use]
    pub const fn max_exponent(self) -> i32 {
        match self {
            Self::E2M1 | Self::E2M3 => 2,
            Self::E3M2 => 4,
            Self::E4M3 => 8,
            Self::E5M2 => 15,
        }
    }

    /// The value of a code; bits above [`Minifloat::bits`] are ignored.
    #[must_use]
    pub fn decode(self, code: u32) -> f64 {
        let (e_bits, m_bits) = self.layout();
        let sign = if code >> (e_bits + m_bits) & 1 == 1 { -1.0 } else { 1.0 };
        let magnitude = code & ((1 << (e_bits + m_bits)) - 1);
        if magnitude > self.max_code() {
            return if self == Self::E5M2 && magnitude == 0x7C { sign * f64::INFINITY } else { f64::NAN };
        }
        let (exponent, mantissa) = (magnitude >> m_bits, magnitude & ((1 << m_bits) - 1));
        let hidden = if exponent == 0 { 0 } else { 1 << m_bits };
        let power = i32::try_from(exponent.max(1)).unwrap_or(0) - self.bias() - i32::try_from(m_bits).unwrap_or(0);
        sign * f64::from(mantissa + hidden) * 2f64.powi(power)
    }

    /// Ascending magnitudes of the finite codes without sign.
    pub fn magnitudes(self) -> impl Iterator<Item = f64> {
        (0..=self.max_code()).map(move |code| self.decode(code))
    }
}
