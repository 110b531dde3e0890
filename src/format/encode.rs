//! From a value in units of the scale to a code.

use super::{Format, Grid, Minifloat, Ties, tables};
use crate::random::{philox4x32_10, uniform};

/// How values between two levels are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rounding {
    /// To the nearest level; ties as the format says.
    #[default]
    Nearest,
    /// To the upper of the two neighbouring levels with probability `(v - lower) / (upper - lower)`, so that the mean is the value itself
    /// unless it saturates.
    Stochastic(Uniform),
}

/// Where the random numbers of stochastic rounding come from: Philox 4x32-10, key = `seed`, counter =
/// `[element / 4, op, step, 0]`, word `element % 4`, where `element = row * cols + col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uniform {
    /// The 64-bit seed.
    pub seed: u64,
    /// Tells operations of one step apart.
    pub op: u32,
    /// The step.
    pub step: u32,
}

impl Uniform {
    /// The number in [0, 1) of one element.
    #[must_use]
    pub fn at(self, element: u32) -> f64 {
        let key = [(self.seed & 0xFFFF_FFFF) as u32, (self.seed >> 32) as u32];
        f64::from(uniform(philox4x32_10(key, [element / 4, self.op, self.step, 0])[element as usize % 4]))
    }
}

fn round(v: f64, ties: Ties) -> f64 {
    match ties {
        Ties::Even => v.round_ties_even(),
        Ties::Away => v.round(),
        Ties::Up => (v + 0.5).floor(),
        Ties::Down => (v - 0.5).ceil(),
        Ties::Zero => (v.abs() - 0.5).ceil().copysign(v),
    }
}

/// Ascending magnitudes; the nearest one's index.
fn nearest_magnitude(levels: &[f64], v: f64, ties: Ties, even: impl Fn(usize) -> bool) -> usize {
    let above = levels.partition_point(|l| *l < v).min(levels.len() - 1);
    let Some(below) = above.checked_sub(1) else { return above };
    let (down, up) = (v - levels[below], levels[above] - v);
    let tie_up = match ties {
        Ties::Even => even(above),
        Ties::Up | Ties::Away => true,
        Ties::Down | Ties::Zero => false,
    };
    if up < down || (up == down && tie_up) { above } else { below }
}

/// Levels of a table, ascending, with their codes.
fn table_levels(grid: Grid) -> Vec<(f64, u32)> {
    let table: &[f32] = match grid {
        Grid::Nf4 => &tables::NF4,
        Grid::Fp4 => &tables::FP4,
        _ => &tables::NF3,
    };
    let mut levels: Vec<(f64, u32)> = (0u32..).zip(table).map(|(code, v)| (f64::from(*v), code)).collect();
    levels.sort_by(|a, b| a.0.total_cmp(&b.0));
    levels
}

impl Format {
    /// The code nearest to `v`, a finite value in units of the scale (NF3: of the scale of its sign), with zero point `zero` where the grid
    /// has one. Beyond the grid's ends it saturates. A small float keeps the sign of a value that rounds to zero, unless ties go to zero.
    #[must_use]
    pub fn nearest(&self, v: f64, zero: u32) -> u32 {
        let ties = self.ties;
        match self.grid {
            Grid::Int { bits, full } => {
                let half = f64::from(1u32 << (bits - 1));
                index(round(v, ties).clamp(if full { -half } else { 1.0 - half }, half - 1.0) + half)
            }
            Grid::Centred { bits } => {
                let half = f64::from(1u32 << (bits - 1));
                index(round(v - 0.5, ties).clamp(-half, half - 1.0) + half)
            }
            Grid::ZeroPoint { bits } => {
                index((round(v, ties) + f64::from(zero)).clamp(0.0, f64::from((1u32 << bits) - 1)))
            }
            Grid::Float(float) => {
                let levels: Vec<f64> = float.magnitudes().collect();
                let magnitude = nearest_magnitude(&levels, v.abs(), magnitude_ties(ties, v), |code| code % 2 == 0);
                signed_code(float, v, magnitude as u32, ties)
            }
            Grid::Fp4 => {
                let mut levels: Vec<(f64, u32)> =
                    (0..8).map(|code| (f64::from(tables::FP4[code as usize]), code)).collect();
                levels.sort_by(|a, b| a.0.total_cmp(&b.0));
                let values: Vec<f64> = levels.iter().map(|l| l.0).collect();
                let code = levels[nearest_magnitude(&values, v.abs(), magnitude_ties(ties, v), |_| false)].1;
                if v < 0.0 { code | 8 } else { code }
            }
            Grid::Nf4 => {
                let values: Vec<f64> = tables::NF4.iter().map(|l| f64::from(*l)).collect();
                nearest_magnitude(&values, v, zero_ties(ties, v), |_| false) as u32
            }
            Grid::Nf3 => {
                let magnitudes =
                    |codes: &[usize]| -> Vec<f64> { codes.iter().map(|c| f64::from(tables::NF3[*c]).abs()).collect() };
                if v < 0.0 {
                    3 - nearest_magnitude(&magnitudes(&[3, 2, 1, 0]), -v, magnitude_ties(ties, v), |_| false) as u32
                } else {
                    3 + nearest_magnitude(&magnitudes(&[3, 4, 5, 6, 7]), v, magnitude_ties(ties, v), |_| false) as u32
                }
            }
        }
    }

    /// The lower or the upper neighbour of `v`: the upper one if `random`, in [0, 1), is below `(v - lower) / (upper - lower)`.
    #[must_use]
    pub fn stochastic(&self, v: f64, zero: u32, random: f64) -> u32 {
        let integer = |v: f64| v.floor() + f64::from(u8::from(random < v - v.floor()));
        match self.grid {
            Grid::Int { .. } | Grid::ZeroPoint { .. } => self.nearest(integer(v), zero),
            Grid::Centred { .. } => self.nearest(integer(v - 0.5) + 0.5, zero),
            Grid::Float(float) => {
                let levels: Vec<f64> = float.magnitudes().collect();
                let magnitude = between(&levels, v.abs(), if v < 0.0 { 1.0 - random } else { random }, v < 0.0);
                signed_code(float, v, magnitude as u32, self.ties)
            }
            Grid::Fp4 => {
                let levels = table_levels(self.grid);
                let (values, codes): (Vec<f64>, Vec<u32>) = levels.into_iter().filter(|l| l.1 < 8).unzip();
                let rank = between(&values, v.abs(), if v < 0.0 { 1.0 - random } else { random }, v < 0.0);
                codes[rank] | if v < 0.0 { 8 } else { 0 }
            }
            Grid::Nf4 | Grid::Nf3 => {
                let levels = table_levels(self.grid);
                let values: Vec<f64> = levels.iter().map(|l| l.0).collect();
                levels[between(&values, v, random, false)].1
            }
        }
    }
}

/// Index of the neighbour that `random` chooses; with `flipped`, levels are magnitudes of negative values and `random` is `1 - u`, in (0, 1].
fn between(levels: &[f64], v: f64, random: f64, flipped: bool) -> usize {
    let above = levels.partition_point(|l| *l < v).min(levels.len() - 1);
    let Some(below) = above.checked_sub(1) else { return above };
    let share = ((v - levels[below]) / (levels[above] - levels[below])).min(1.0);
    if random < share || (flipped && random == share) { above } else { below }
}

fn index(v: f64) -> u32 {
    v as u32
}

/// Ties of a value as those of its magnitude.
fn magnitude_ties(ties: Ties, v: f64) -> Ties {
    match (ties, v < 0.0) {
        (Ties::Up, true) => Ties::Down,
        (Ties::Down, true) => Ties::Up,
        _ => ties,
    }
}

/// Ties towards or away from zero, as up or down.
fn zero_ties(ties: Ties, v: f64) -> Ties {
    match (ties, v < 0.0) {
        (Ties::Zero, true) | (Ties::Away, false) => Ties::Up,
        (Ties::Zero, false) | (Ties::Away, true) => Ties::Down,
        _ => ties,
    }
}

fn signed_code(float: Minifloat, v: f64, magnitude: u32, ties: Ties) -> u32 {
    let negative = v.is_sign_negative() && !(magnitude == 0 && ties == Ties::Zero);
    magnitude | u32::from(negative) << (float.bits() - 1)
}
