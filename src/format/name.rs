//! How formats are spelled.

use super::{Format, Grid, Minifloat, Power, Rule, Span, Store, Ties};
use crate::{Error, Result};
use std::fmt;

/// Every name, with the field's defaults for it.
const NAMES: &[(&str, Format)] = &[
    ("int2", Format::int(2)),
    ("int3", Format::int(3)),
    ("int4", Format::int(4)),
    ("int5", Format::int(5)),
    ("int6", Format::int(6)),
    ("int7", Format::int(7)),
    ("int8", Format::int(8)),
    ("nf4", Format::NF4),
    ("nf3", table(Grid::Nf3, 128, Store::F16, Ties::Zero)),
    ("fp4", Format::FP4),
    ("e2m1", E2M1),
    ("mxfp4", Format::MXFP4),
    ("mxfp6_e2m3", microscaling(Grid::Float(Minifloat::E2M3), Power::Floor)),
    ("mxfp6_e3m2", microscaling(Grid::Float(Minifloat::E3M2), Power::Floor)),
    ("mxfp8_e4m3", MXFP8_E4M3),
    ("mxfp8_e5m2", microscaling(Grid::Float(Minifloat::E5M2), Power::Floor)),
    ("mxint8", MXINT8),
    ("mxint4", microscaling(Grid::Int { bits: 4, full: false }, Power::RoundUp)),
    ("nvfp4", Format::NVFP4),
    ("nvint4", format(Grid::Int { bits: 4, full: false }, Span::Group(16), Store::E4M3)),
    ("binary", Format::BINARY),
    ("ternary", TERNARY),
];

/// Beside the names with their defaults: options that change how codes or scales are read.
const OPTIONS: &[Format] = &[
    Format::gaussian_row(2),
    Format::gaussian_row(3),
    Format::int(4).scaled(Span::Row, Store::F32),
    Format::gaussian_row(4),
    Format::GGML_INT4,
    Format::int(5).scaled(Span::Row, Store::F32),
    Format::gaussian_row(6),
    Format::asymmetric(7),
    Format::int(8).scaled(Span::Row, Store::F32),
    Format::gaussian_row(8),
    Format::asymmetric(8),
    Format::int(8).scaled(Span::Tensor, Store::F32),
    Format::asymmetric(2),
    Format::asymmetric(3),
    Format::asymmetric(4),
    Format::asymmetric(5).scaled(Span::Row, Store::F16),
    Format { store: Store::Double, exact: true, ..Format::NF4 },
    Format::NF4.scaled(Span::Row, Store::F32),
    Format { store: Store::Double, exact: true, ..Format::FP4 },
    Format::FP4.scaled(Span::Row, Store::F32),
    Format { rule: Rule::Gaussian, ..E2M1 },
    Format { store: Store::E8M0(Power::RoundUp), ..Format::MXFP4 },
    Format { rule: Rule::Gaussian, ..Format::MXFP4 },
    Format { store: Store::E8M0(Power::Even), ..MXFP8_E4M3 },
    Format { store: Store::E8M0(Power::RoundUp), ..MXINT8 },
    Format::BINARY.scaled(Span::Group(64), Store::F16),
    TERNARY.scaled(Span::Row, Store::F32),
];

const E2M1: Format = format(Grid::Float(Minifloat::E2M1), Span::Row, Store::F32);
const MXFP8_E4M3: Format = microscaling(Grid::Float(Minifloat::E4M3), Power::Floor);
const MXINT8: Format = microscaling(Grid::Int { bits: 8, full: false }, Power::Floor);
const TERNARY: Format =
    Format { rule: Rule::AbsMean, ..format(Grid::Int { bits: 2, full: false }, Span::Tensor, Store::F32) };

const fn format(grid: Grid, span: Span, store: Store) -> Format {
    Format { grid, span, store, rule: Rule::AbsMax, ties: Ties::Even, exact: false }
}

const fn table(grid: Grid, group: u32, store: Store, ties: Ties) -> Format {
    Format { ties, ..format(grid, Span::Group(group), store) }
}

const fn microscaling(grid: Grid, power: Power) -> Format {
    format(grid, Span::Group(32), Store::E8M0(power))
}

/// Formats that tables elsewhere name: as constants they cannot be misspelt.
impl Format {
    pub(crate) const NF4: Self = table(Grid::Nf4, 64, Store::F32, Ties::Down);
    pub(crate) const FP4: Self = table(Grid::Fp4, 64, Store::F32, Ties::Zero);
    pub(crate) const MXFP4: Self = microscaling(Grid::Float(Minifloat::E2M1), Power::Floor);
    pub(crate) const NVFP4: Self = format(Grid::Float(Minifloat::E2M1), Span::Group(16), Store::E4M3);
    pub(crate) const BINARY: Self =
        Self { rule: Rule::AbsMean, ties: Ties::Up, ..format(Grid::Centred { bits: 1 }, Span::Row, Store::F32) };
    /// `int4:g32:full:signed:exact:half-up`, ggml's Q4_0.
    pub(crate) const GGML_INT4: Self = Self {
        grid: Grid::Int { bits: 4, full: true },
        rule: Rule::SignedMax,
        exact: true,
        ties: Ties::Up,
        ..Self::int(4).scaled(Span::Group(32), Store::F16)
    };

    /// `int{bits}`.
    pub(crate) const fn int(bits: u32) -> Self {
        format(Grid::Int { bits, full: false }, Span::Group(128), Store::F16)
    }

    /// `int{bits}:asym`.
    pub(crate) const fn asymmetric(bits: u32) -> Self {
        Self { grid: Grid::ZeroPoint { bits }, rule: Rule::MinMax, ..Self::int(bits) }
    }

    /// `int{bits}:centred:row:f32:mse`.
    pub(crate) const fn gaussian_row(bits: u32) -> Self {
        let grid = Grid::Centred { bits };
        Self { grid, rule: Rule::Gaussian, ..Self::int(bits).scaled(Span::Row, Store::F32) }
    }

    /// With other scales.
    pub(crate) const fn scaled(self, span: Span, store: Store) -> Self {
        Self { span, store, ..self }
    }
}

impl Format {
    /// Every name with its defaults.
    pub fn named() -> impl ExactSizeIterator<Item = (&'static str, Self)> {
        NAMES.iter().copied()
    }

    /// Every kind of format at least once: the names with their defaults, and those options that change how codes or scales are read.
    #[must_use]
    pub fn all() -> Vec<Self> {
        NAMES.iter().map(|(_, format)| *format).chain(OPTIONS.iter().copied()).collect()
    }

    /// The name without options.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.grid {
            Grid::Centred { bits: 1 } => "binary",
            Grid::Int { bits: 2, .. } if self.rule == Rule::AbsMean => "ternary",
            Grid::Int { bits, .. } => match (self.store, bits) {
                (Store::E8M0(_), 4) => "mxint4",
                (Store::E8M0(_), _) => "mxint8",
                (Store::E4M3 | Store::Ue4m3, _) => "nvint4",
                _ => INTS[bits as usize],
            },
            Grid::Centred { bits } | Grid::ZeroPoint { bits } => INTS[bits as usize],
            Grid::Float(float) => match (float, self.store) {
                (Minifloat::E2M1, Store::E8M0(_)) => "mxfp4",
                (Minifloat::E2M1, Store::E4M3 | Store::Ue4m3) => "nvfp4",
                (Minifloat::E2M1, _) => "e2m1",
                (Minifloat::E2M3, _) => "mxfp6_e2m3",
                (Minifloat::E3M2, _) => "mxfp6_e3m2",
                (Minifloat::E4M3, _) => "mxfp8_e4m3",
                (Minifloat::E5M2, _) => "mxfp8_e5m2",
            },
            Grid::Nf4 => "nf4",
            Grid::Fp4 => "fp4",
            Grid::Nf3 => "nf3",
        }
    }

    fn defaults(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

const INTS: [&str; 9] = ["int0", "int1", "int2", "int3", "int4", "int5", "int6", "int7", "int8"];

pub(super) fn write(format: &Format, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let name = format.name();
    f.write_str(name)?;
    let Some(base) = Format::defaults(name) else { return Err(fmt::Error) };
    if format.span != base.span {
        match format.span {
            Span::Tensor => f.write_str(":tensor")?,
            Span::Row => f.write_str(":row")?,
            Span::Group(n) => write!(f, ":g{n}")?,
        }
    }
    if format.store != base.store {
        f.write_str(match format.store {
            Store::F32 => ":f32",
            Store::F16 => ":f16",
            Store::Double => ":dq",
            Store::E8M0(Power::Floor) => ":floor",
            Store::E8M0(Power::RoundUp) => ":roundup",
            Store::E8M0(Power::Ceil) => ":ceil",
            Store::E8M0(Power::Even) => ":even",
            Store::E4M3 => ":e4m3",
            Store::Ue4m3 => ":ue4m3",
        })?;
    }
    match (format.grid, base.grid) {
        (Grid::Int { full: true, .. }, _) => f.write_str(":full")?,
        (Grid::Centred { bits }, _) if bits > 1 => f.write_str(":centred")?,
        (Grid::ZeroPoint { .. }, _) => f.write_str(":asym")?,
        _ => {}
    }
    // Zero points come with their rule.
    if format.rule != base.rule && format.rule != Rule::MinMax {
        f.write_str(match format.rule {
            Rule::AbsMax | Rule::MinMax => ":absmax",
            Rule::SignedMax => ":signed",
            Rule::AbsMean => ":absmean",
            Rule::Gaussian => ":mse",
        })?;
    }
    if format.exact && format.store != Store::Double {
        f.write_str(":exact")?;
    }
    if format.ties != base.ties {
        f.write_str(match format.ties {
            Ties::Even => ":half-even",
            Ties::Up => ":half-up",
            Ties::Down => ":half-down",
            Ties::Zero => ":half-zero",
            Ties::Away => ":half-away",
        })?;
    }
    Ok(())
}

pub(super) fn parse(text: &str) -> Result<Format> {
    read(text).map_err(|refused| match refused {
        Refused::Text(error) => error,
        Refused::Option(name, option) => {
            let all = accepted(name).join(", ").replace("gN", "g16, g32, ..");
            Error::invalid(format!("format `{text}`"), format!("{name} with options of {all}"), format!("`{option}`"))
        }
    })
}

/// Why a text is no format.
enum Refused {
    /// Whatever is told as it is.
    Text(Error),
    /// An option that the name does not take: name and option.
    Option(&'static str, String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Text(error)
    }
}

fn read(text: &str) -> Result<Format, Refused> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let Some(mut format) = Format::defaults(name) else {
        let names: Vec<_> = NAMES.iter().map(|(n, _)| *n).collect();
        let expected = format!("one of {}", names.join(", "));
        return Err(Error::invalid(format!("format `{text}`"), expected, format!("`{name}`")).into());
    };
    let base = format;
    let integer = matches!(base.grid, Grid::Int { .. }) && matches!(base.store, Store::F16);
    let scaled_by_float = matches!(base.store, Store::F32 | Store::F16);
    // Each kind of option at most once, so that no two contradict each other.
    let mut given: Vec<&str> = Vec::new();
    for option in parts {
        let kind = apply(&mut format, option, integer, scaled_by_float).map_err(|expected| match expected {
            Some(expected) => Error::invalid(format!("format `{text}`"), expected, format!("`{option}`")).into(),
            None => Refused::Option(base.name(), option.to_owned()),
        })?;
        if given.contains(&kind) {
            return Err(Error::invalid(
                format!("format `{text}`"),
                format!("one option for the {kind}"),
                format!("`{option}` as another"),
            )
            .into());
        }
        given.push(kind);
    }
    // When all options are known, so that their order does not matter.
    if let Grid::ZeroPoint { .. } = format.grid {
        if given.contains(&RULE) {
            let got = "`asym` and a rule for scales around zero";
            return Err(Error::invalid(format!("format `{text}`"), "`asym` without another rule", got).into());
        }
        format.rule = Rule::MinMax;
    }
    check(&format, base, text)?;
    Ok(format)
}

/// The kind of option that [`Rule`] is.
const RULE: &str = "rule for scales";

/// Applies one option and says what kind it is of. The error is what was expected, none where the name does not take the option.
fn apply(format: &mut Format, option: &str, integer: bool, floats: bool) -> Result<&'static str, Option<&'static str>> {
    let grid = format.grid;
    match option {
        "tensor" | "row" if floats => format.span = if option == "row" { Span::Row } else { Span::Tensor },
        "f32" | "f16" if floats => format.store = if option == "f32" { Store::F32 } else { Store::F16 },
        "dq" if matches!(grid, Grid::Nf4 | Grid::Fp4) => {
            format.store = Store::Double;
            format.exact = true; // as its inventors do it
        }
        "exact" if floats && grid != Grid::Nf3 => format.exact = true,
        "full" | "centred" | "asym" if integer => {
            let bits = grid.bits();
            format.grid = match option {
                "full" => Grid::Int { bits, full: true },
                "centred" => Grid::Centred { bits },
                _ => Grid::ZeroPoint { bits },
            };
        }
        "absmax" | "mse" if matches!(format.store, Store::E8M0(_)) => {
            format.rule = if option == "mse" { Rule::Gaussian } else { Rule::AbsMax };
        }
        "absmax" | "mse" | "absmean" | "signed" if floats => {
            format.rule = match option {
                "absmax" => Rule::AbsMax,
                "mse" => Rule::Gaussian,
                "absmean" => Rule::AbsMean,
                _ => Rule::SignedMax,
            };
        }
        "floor" | "roundup" | "ceil" | "even" if matches!(format.store, Store::E8M0(_)) => {
            format.store = Store::E8M0(match option {
                "floor" => Power::Floor,
                "roundup" => Power::RoundUp,
                "ceil" => Power::Ceil,
                _ => Power::Even,
            });
        }
        "ue4m3" if format.store == Store::E4M3 => format.store = Store::Ue4m3,
        "half-even" | "half-up" | "half-down" | "half-zero" | "half-away" => {
            format.ties = match option {
                "half-even" => Ties::Even,
                "half-up" => Ties::Up,
                "half-down" => Ties::Down,
                "half-zero" => Ties::Zero,
                _ => Ties::Away,
            };
        }
        _ => match option.strip_prefix('g').and_then(|n| n.parse::<u32>().ok()) {
            Some(n) if floats && n >= 16 && n.is_power_of_two() && n <= 1 << 20 => format.span = Span::Group(n),
            Some(_) if floats => return Err(Some("a group of 16, 32, 64, .. up to 1048576 elements")),
            _ => return Err(None),
        },
    }
    Ok(match option {
        "tensor" | "row" => "span of a scale",
        "f32" | "f16" | "dq" | "floor" | "roundup" | "ceil" | "even" | "ue4m3" => "storage of scales",
        "full" | "centred" | "asym" => "grid",
        "absmax" | "mse" | "absmean" | "signed" => RULE,
        "exact" => "scale that codes are chosen by",
        _ if option.starts_with("half") => "ties",
        _ => "span of a scale",
    })
}

/// Every option, and what it says; `gN` stands for groups of any size.
const CHOICES: [(&str, &str); 24] = [
    ("tensor", "one scale for the whole tensor"),
    ("row", "a scale per row"),
    ("gN", "a scale per `N` neighbouring elements of a row: 16, 32, 64, .. 1048576"),
    ("f32", "scales in f32"),
    ("f16", "scales in f16"),
    ("dq", "scales in 8 bits, double-quantized as QLoRA does it; codes as with `exact`"),
    ("floor", "scales of a power of two: of the largest magnitude's exponent, beyond which values saturate"),
    ("roundup", "scales of a power of two: the least with which nothing saturates"),
    ("ceil", "scales of a power of two: of the largest magnitude, rounded up to a power of two"),
    ("even", "scales of a power of two: of the largest magnitude, rounded to the grid's mantissa"),
    ("ue4m3", "scales in E4M3 without one of the tensor, as in ggml's NVFP4"),
    ("full", "the lowest integer, too"),
    ("centred", "half-integers around zero"),
    ("asym", "integers with a zero point per scale"),
    ("absmax", "scales from the largest magnitude"),
    ("mse", "scales of the least squared error for normal data"),
    ("absmean", "scales from the mean magnitude"),
    ("signed", "scales from the element of largest magnitude with its sign"),
    ("exact", "codes by scales before these are rounded to what is stored"),
    ("half-even", "values half-way between two codes: to the even one"),
    ("half-up", "to the larger value"),
    ("half-down", "to the smaller value"),
    ("half-zero", "to the value nearer to zero"),
    ("half-away", "to the value farther from zero"),
];

/// The options that a name takes, by themselves or with one other: what [`check`] accepts and nothing else.
fn accepted(name: &str) -> Vec<&'static str> {
    // A size of groups that is nobody's default, and a valid one.
    let spelled = |option: &'static str| if option == "gN" { "g512" } else { option };
    let taken = |options: &[&str]| read(&format!("{name}:{}", options.join(":"))).is_ok();
    let all = || CHOICES.iter().map(|(option, _)| *option);
    all()
        .filter(|option| {
            let option = spelled(option);
            taken(&[option]) || all().any(|other| taken(&[option, spelled(other)]))
        })
        .collect()
}

/// The table of options for `docs/formats.md`: what each says, and the names that take it.
#[must_use]
pub fn options_table() -> String {
    let names: Vec<(&str, Vec<&str>)> = NAMES.iter().map(|(name, _)| (*name, accepted(name))).collect();
    let mut text = String::from("| option | says | taken by |\n|---|---|---|\n");
    for (option, meaning) in CHOICES {
        let list = |with: bool| {
            let names = names.iter().filter(|(_, options)| options.contains(&option) == with);
            names.map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>()
        };
        let (with, without) = (list(true), list(false));
        let by = match without.len() {
            0 => "all".to_owned(),
            n if n < with.len().min(6) => format!("all but {}", without.join(", ")),
            _ => with.join(", "),
        };
        text += &format!("| `{option}` | {meaning} | {by} |\n");
    }
    text
}

/// Refuses combinations of options that have no meaning.
fn check(format: &Format, base: Format, text: &str) -> Result<()> {
    let fail = |expected: &str, got: &str| Err(Error::invalid(format!("format `{text}`"), expected, got));
    match (format.rule, format.grid) {
        (Rule::Gaussian, Grid::Nf4 | Grid::Fp4 | Grid::Nf3 | Grid::Int { full: true, .. }) => {
            fail("`mse` with integers, e2m1, mxfp4, binary or ternary", "a grid without a clip for normal data")
        }
        (Rule::Gaussian, grid) if matches!(format.store, Store::E8M0(_)) => match (grid, format.store) {
            (Grid::Float(Minifloat::E2M1), Store::E8M0(Power::Floor)) => Ok(()),
            (Grid::Float(Minifloat::E2M1), _) => {
                fail("`mse` with the power of two at or below its scale", "another rounding of scales")
            }
            _ => fail("`mse` with mxfp4 among the microscaling formats", "a grid without a clip for normal data"),
        },
        (Rule::AbsMean, _) if base.rule != Rule::AbsMean => fail("`absmean` with binary or ternary", "another grid"),
        (Rule::SignedMax, Grid::Int { full: true, .. }) => Ok(()),
        (Rule::SignedMax, _) => fail("`signed` together with `full`", "`signed` alone"),
        (_, Grid::ZeroPoint { .. }) if format.exact => fail("`exact` with a grid around zero", "`asym`"),
        (Rule::AbsMax, _) if base.rule == Rule::AbsMean && matches!(base.grid, Grid::Int { .. }) => {
            // Two-bit integers with absmax scales have a name already.
            fail("`int2` for two-bit integers by their largest magnitude", "`ternary:absmax`")
        }
        (Rule::Gaussian, _) if base.rule == Rule::AbsMean && matches!(base.grid, Grid::Int { .. }) => {
            fail("`int2:mse` for two-bit integers by their mean square", "`ternary:mse`")
        }
        _ if format.exact && matches!(format.store, Store::F32) => {
            fail("`exact` where scales are stored in f16", "scales that are not rounded")
        }
        _ if matches!(format.store, Store::Double) && !matches!(format.span, Span::Group(_)) => {
            fail("`dq` with groups", "one scale per row or tensor")
        }
        _ => match (format.grid, format.ties) {
            (Grid::Nf4 | Grid::Fp4 | Grid::Nf3, Ties::Even) => {
                fail("ties of tables to go `half-up`, `half-down`, `half-zero` or `half-away`", "`half-even`")
            }
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_options_come_back_as_they_were_written() {
        for format in Format::all() {
            let text = format.to_string();
            assert_eq!(text.parse::<Format>().unwrap(), format, "{text}");
        }
        for text in [
            "int4:row:f32:centred:mse",
            "nf4:dq",
            "mxfp4:roundup",
            "int3:asym",
            "binary:g64",
            "int4:full:signed:half-up:exact",
            "nvfp4:ue4m3:half-zero",
            "nvint4:ue4m3",
        ] {
            let format: Format = text.parse().unwrap();
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        }
    }

    #[test]
    fn what_is_listed_is_what_its_spelling_says() {
        let listed = [
            "int2:centred:row:f32:mse",
            "int3:centred:row:f32:mse",
            "int4:row:f32",
            "int4:centred:row:f32:mse",
            "int4:g32:full:signed:exact:half-up",
            "int5:row:f32",
            "int6:centred:row:f32:mse",
            "int7:asym",
            "int8:row:f32",
            "int8:centred:row:f32:mse",
            "int8:asym",
            "int8:tensor:f32",
            "int2:asym",
            "int3:asym",
            "int4:asym",
            "int5:asym:row",
            "nf4:dq",
            "nf4:row",
            "fp4:dq",
            "fp4:row",
            "e2m1:mse",
            "mxfp4:roundup",
            "mxfp4:mse",
            "mxfp8_e4m3:even",
            "mxint8:roundup",
            "binary:g64:f16",
            "ternary:row",
        ];
        let all: Vec<Format> = NAMES.iter().map(|(name, _)| *name).chain(listed).map(|f| f.parse().unwrap()).collect();
        assert_eq!(Format::all(), all);
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }

    /// Every name with every sequence of up to three options, each of them once.
    #[test]
    fn what_is_taken_comes_back_and_the_order_of_options_does_not_matter() {
        let named = CHOICES.iter().map(|(option, _)| *option).filter(|option| *option != "gN");
        let options: Vec<&str> = named.chain(["g16", "g64", "g256"]).collect();
        // Options in ascending order of their numbers, and what the orders of them are taken as.
        let mut sets: Vec<Vec<usize>> = vec![Vec::new()];
        for (from, length) in [(0, 1), (1, 2), (2, 3)] {
            let shorter: Vec<_> = sets.iter().filter(|set| set.len() == from).cloned().collect();
            sets.extend(shorter.iter().flat_map(|set| {
                let next = set.last().map_or(0, |last| last + 1);
                (next..options.len()).map(move |option| [&set[..], &[option]].concat())
            }));
            assert!(sets.iter().all(|set| set.len() <= length));
        }
        let orders: [&[&[usize]]; 4] = [
            &[&[]],
            &[&[0]],
            &[&[0, 1], &[1, 0]],
            &[&[0, 1, 2], &[0, 2, 1], &[1, 0, 2], &[1, 2, 0], &[2, 0, 1], &[2, 1, 0]],
        ];
        let mut taken = 0;
        for (name, _) in NAMES {
            let mut with: Vec<&str> = Vec::new();
            for set in &sets {
                let texts = orders[set.len()]
                    .iter()
                    .map(|order| order.iter().fold((*name).to_owned(), |text, i| text + ":" + options[set[*i]]));
                let read: Vec<(String, Option<Format>)> = texts.map(|text| (text.clone(), read(&text).ok())).collect();
                assert!(read.iter().all(|(_, format)| *format == read[0].1), "{read:?}");
                let Some(format) = read[0].1 else { continue };
                let text = format.to_string();
                assert_eq!(text.parse::<Format>().ok(), Some(format), "{} is displayed as {text}", read[0].0);
                taken += read.len();
                with.extend(set.iter().map(|i| options[*i]));
            }
            // An option is offered where it is taken in whatever company, and only there.
            let offered = accepted(name);
            for (option, _) in CHOICES {
                let same = |other: &&str| *other == if option == "gN" { "g64" } else { option };
                assert_eq!(offered.contains(&option), with.iter().any(same), "{name}:{option}");
            }
        }
        assert!(taken > 5000, "{taken}");
    }

    #[test]
    fn what_is_offered_instead_of_an_option_is_taken() {
        let offered = |text: &str| text.parse::<Format>().unwrap_err().to_string();
        for (text, options, not) in [
            ("nf4:bogus", "dq, absmax, exact, half-up", "half-even"),
            ("nf3:mse:bogus", "row, g16, g32, .., f32, f16, absmax, half-up", "mse"),
            ("ternary:bogus", "f16, absmean, exact, half-even", "mse,"),
            ("mxfp4:bogus", "floor, roundup, ceil, even, absmax, mse, half-even", "row"),
            ("nvint4:row", "ue4m3, half-even", "tensor"),
            ("int4:dq", "full, centred, asym, absmax, mse, signed, exact", "absmean"),
        ] {
            let message = offered(text);
            let (_, list) = message.split_once("with options of ").unwrap();
            assert!(list.contains(options) && !list.contains(not), "{text}: {message}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in [
            "int9",
            "",
            "int4:",
            "int4:g24",
            "int4:g8",
            "mxfp4:row",
            "nf4:centred",
            "int4:dq",
            "int4:signed",
            "int4:asym:mse",
            "int4:mse:asym",
            "int4:signed:asym",
            "int4:absmean:asym",
            "int4:absmax:asym",
            "int4:asym:exact",
            "int4:exact:asym",
            "nf4:mse",
            "nf4:dq:row",
            "int4:row:tensor",
            "int4:f32:f16",
            "binary:full",
            "ternary:absmax",
            "nf4:half-even",
            "mxfp4:f16",
            "mxfp4:mse:roundup",
            "mxfp8_e4m3:mse",
            "mxint4:mse",
            "int4:bogus",
        ] {
            let error = text.parse::<Format>().unwrap_err().to_string();
            assert!(error.contains(&format!("format `{text}`")), "{text}: {error}");
        }
    }
}
