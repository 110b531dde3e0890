//! Optimizers by name.

use super::Correction;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How parameters are updated. Spelled `name[:option...]`, as in `adamw`, `cage`, `cage:lambda=2.5:silence=0.9`, `cage:coupled:constant` or
/// `feedback:lambda=2`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Optimizer {
    /// AdamW.
    #[default]
    AdamW,
    /// AdamW with [`Correction`] as CAGE has it.
    Cage(Cage),
    /// AdamW with [`Correction::feedback`].
    Feedback(Feedback),
}

/// CAGE's options; see [`Correction`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cage {
    /// The strength at the end; 10 by default.
    pub lambda: f64,
    /// The part of the steps that have none; 0.8 by default.
    pub silence: f64,
    /// Whether the correction joins the gradient.
    pub coupled: bool,
    /// Whether it has its full strength at once when the silence ends.
    pub constant: bool,
}

impl Default for Cage {
    /// What the authors' README and training script have.
    fn default() -> Self {
        let Correction { lambda, silence, coupled, constant, .. } = Correction::cage(1);
        Self { lambda, silence, coupled, constant }
    }
}

/// Error feedback's options; see [`Correction::feedback`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feedback {
    /// The strength; 1 by default, which is what CAGE's defaults come to on average over all steps.
    pub lambda: f64,
}

impl Default for Feedback {
    fn default() -> Self {
        Self { lambda: 1.0 }
    }
}

/// Spellings of all optimizers, with their options, for messages and help.
pub const SPELLINGS: &str =
    "adamw, cage[:lambda=L][:silence=S][:coupled][:constant], feedback[:lambda=L] (L above 0, S from 0 to below 1)";

impl Optimizer {
    /// The correction that it adds to AdamW in a run of so many steps.
    #[must_use]
    pub fn correction(&self, steps: u32) -> Option<Correction> {
        match *self {
            Self::AdamW => None,
            Self::Cage(Cage { lambda, silence, coupled, constant }) => {
                Some(Correction { lambda, silence, steps, coupled, constant })
            }
            Self::Feedback(Feedback { lambda }) => Some(Correction { steps, ..Correction::feedback(lambda) }),
        }
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AdamW => f.write_str("adamw"),
            Self::Cage(Cage { lambda, silence, coupled, constant }) => {
                f.write_str("cage")?;
                let default = Cage::default();
                if lambda.to_bits() != default.lambda.to_bits() {
                    write!(f, ":lambda={lambda}")?;
                }
                if silence.to_bits() != default.silence.to_bits() {
                    write!(f, ":silence={silence}")?;
                }
                let flags = [(coupled, ":coupled"), (constant, ":constant")];
                flags.into_iter().filter(|(set, _)| *set).try_for_each(|(_, name)| f.write_str(name))
            }
            Self::Feedback(feedback) if feedback == Feedback::default() => f.write_str("feedback"),
            Self::Feedback(Feedback { lambda }) => write!(f, "feedback:lambda={lambda}"),
        }
    }
}

impl FromStr for Optimizer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::invalid("--optimizer", format!("one of {SPELLINGS}"), format!("`{text}`"));
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let (mut lambda, mut silence, mut coupled, mut constant) = (None, None, None, None);
        for option in parts {
            // Each at most once.
            let fits = match option.split_once('=') {
                Some(("lambda", value)) => number(value, |l| l > 0.0).is_some_and(|l| lambda.replace(l).is_none()),
                Some(("silence", value)) => {
                    number(value, |s| (0.0..1.0).contains(&s)).is_some_and(|s| silence.replace(s).is_none())
                }
                None if option == "coupled" => coupled.replace(()).is_none(),
                None if option == "constant" => constant.replace(()).is_none(),
                _ => false,
            };
            if !fits {
                return Err(unknown());
            }
        }
        match (name, lambda, silence, coupled, constant) {
            ("adamw", None, None, None, None) => Ok(Self::AdamW),
            ("cage", ..) => {
                let default = Cage::default();
                Ok(Self::Cage(Cage {
                    lambda: lambda.unwrap_or(default.lambda),
                    silence: silence.unwrap_or(default.silence),
                    coupled: coupled.is_some(),
                    constant: constant.is_some(),
                }))
            }
            ("feedback", _, None, None, None) => {
                Ok(Self::Feedback(Feedback { lambda: lambda.unwrap_or(Feedback::default().lambda) }))
            }
            _ => Err(unknown()),
        }
    }
}

/// A number that f32 holds and `fits` takes.
fn number(text: &str, fits: impl Fn(f64) -> bool) -> Option<f64> {
    // Adding zero makes one of both zeros, so that they are spelled alike.
    text.parse().ok().map(|value: f64| value + 0.0).filter(|value| (*value as f32).is_finite() && fits(*value))
}

impl Serialize for Optimizer {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Optimizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_optimizer_is_what_it_is_spelled() {
        let cage = Cage::default();
        assert_eq!((cage.lambda, cage.silence, cage.coupled, cage.constant), (10.0, 0.8, false, false));
        for (text, shortest, optimizer) in [
            ("adamw", "adamw", Optimizer::AdamW),
            ("cage", "cage", Optimizer::Cage(cage)),
            ("cage:silence=0.8:lambda=10", "cage", Optimizer::Cage(cage)),
            ("cage:lambda=2.5", "cage:lambda=2.5", Optimizer::Cage(Cage { lambda: 2.5, ..cage })),
            (
                "cage:constant:silence=0:coupled",
                "cage:silence=0:coupled:constant",
                Optimizer::Cage(Cage { silence: 0.0, coupled: true, constant: true, ..cage }),
            ),
            ("feedback", "feedback", Optimizer::Feedback(Feedback { lambda: 1.0 })),
            ("feedback:lambda=0.1", "feedback:lambda=0.1", Optimizer::Feedback(Feedback { lambda: 0.1 })),
        ] {
            assert_eq!(text.parse::<Optimizer>().unwrap(), optimizer, "{text}");
            assert_eq!(optimizer.to_string(), shortest);
            let json = serde_json::to_string(&optimizer).unwrap();
            assert_eq!(serde_json::from_str::<Optimizer>(&json).unwrap(), optimizer);
        }
        for text in [
            "",
            "sgd",
            "AdamW",
            "adamw:lambda=1",
            "cage:lambda",
            "cage:lambda=0",
            "cage:lambda=-1",
            "cage:lambda=1e39",
            "cage:lambda=nan",
            "cage:silence=1",
            "cage:silence=-0.1",
            "cage:0.5",
            "cage:coupled:coupled",
            "cage:lambda=1:lambda=1",
            "cage:",
            "feedback:silence=0.5",
            "feedback:coupled",
            "feedback:2",
        ] {
            let error = text.parse::<Optimizer>().unwrap_err();
            assert!(!error.is_failure());
            assert_eq!(error.to_string(), format!("--optimizer: expected one of {SPELLINGS}, found `{text}`"));
        }
    }

    #[test]
    fn feedback_is_on_average_what_cage_is() {
        // Over the last 0.2 of the steps lambda grows from 0 to 10.
        let Cage { lambda, silence, .. } = Cage::default();
        assert!((lambda * (1.0 - silence) / 2.0 - Feedback::default().lambda).abs() < 1e-12);
    }
}
