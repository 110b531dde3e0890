//! `walsh bench`: each kernel, format and shape against what the adapter copies and multiplies at most.

use super::{context, put, say};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use walsh::bench::{
    Case, Ceilings, LARGE, Row, Shape, Size, TINY, cases, header, measure, of_format, shaped, shapes_of, sizes,
};
use walsh::format::Format;
use walsh::io::convert::matches as glob;
use walsh::{Context, Error, Result};

/// Flags of `walsh bench`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub struct Args {
    /// Only kernels whose name contains this, or matches it as a whole where it has * or ? [repeatable]
    #[arg(long, value_name = "PATTERN")]
    kernel: Vec<String>,
    /// Only formats of weights that contain or match this, or a format with options, such as nf4:dq [repeatable]
    #[arg(long, value_name = "PATTERN")]
    format: Vec<String>,
    /// Instead of a model's shapes: MxNxK of products, ROWSxCOLSxBLOCK of Walsh-Hadamard transforms, ROWSxCOLS of quantize and dequantize
    /// [repeatable]
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<String>,
    /// Seconds for all cases together, after the ceilings
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Part of the adapter's name, or #N
    #[arg(long)]
    adapter: Option<String>,
    /// Use no kernels above this tier: baseline, subgroup or coop
    #[arg(long)]
    max_tier: Option<String>,
    /// Print one JSON object per case on standard output instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let seconds = args.seconds;
    if !(seconds > 0.0 && seconds <= 1e6) {
        return Err(Error::invalid("--seconds", "a number above 0 and up to 1000000", seconds.to_string()));
    }
    // Every size has the same kernels and formats, so bad flags are told before a device is made.
    select(args, &[TINY])?;
    let context = context(args.adapter.as_deref(), args.max_tier.as_deref())?;
    let cases = available(&context, select(args, sizes(&context))?)?;
    let head = header(std::slice::from_ref(&context), include_str!("../../Cargo.lock"));
    let ceilings = Ceilings::measure(&context)?;
    let head = format!("{head}ceilings {}\n", describe(&ceilings));
    let table = Table::new(&cases);
    if args.json {
        say(head.trim_end());
    } else if !put(&format!("{head}\n{}", table.head()))? {
        return Ok(());
    }
    time(&context, &cases, &ceilings, Duration::from_secs_f64(seconds), |row| {
        put(&if args.json { json(row)? } else { table.line(row) })
    })
}

/// Times the cases and hands on each row, until `emit` says that nobody listens.
fn time(
    context: &Context,
    cases: &[Case],
    ceilings: &Ceilings,
    budget: Duration,
    emit: impl Fn(&Row) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + budget;
    let bar = bar(cases.len());
    let (mut rows, mut left_out, mut refused) = (0, 0, None);
    for (case, waiting) in cases.iter().zip((1..=cases.len()).rev()) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() && rows > 0 {
            left_out += 1;
            bar.suspend(|| say(&format!("not measured: {case}: the time given by --seconds was used up")));
            continue;
        }
        bar.set_message(case.to_string());
        match measure(context, case, now + left.div_f64(waiting as f64)) {
            Ok(measured) => {
                rows += 1;
                let row = Row::new(context, case, measured, ceilings);
                if !bar.suspend(|| emit(&row))? {
                    return Ok(());
                }
            }
            Err(error) if error.is_failure() => return Err(error),
            Err(error) => {
                bar.suspend(|| say(&format!("not measured: {case}: {error}")));
                refused = Some(error);
            }
        }
        bar.inc(1);
    }
    if left_out > 0 {
        let (all, seconds) = (cases.len(), budget.as_secs_f64());
        bar.suspend(|| say(&format!("{left_out} of {all} cases left out because of --seconds {seconds}")));
    }
    match refused {
        Some(error) if rows == 0 => Err(error),
        _ => Ok(()),
    }
}

/// The cases that the flags ask for.
fn select(args: &Args, sizes: &[Size]) -> Result<Vec<Case>> {
    let shapes: Vec<Shape> = args.shape.iter().map(|text| shape(text)).collect::<Result<_>>()?;
    let mut selected: Vec<Case> = shapes.iter().flat_map(|shape| shaped(*shape)).collect();
    if shapes.is_empty() {
        selected = cases(sizes);
    }
    let kernels: Vec<Pattern> = args.kernel.iter().map(|text| Pattern::of(text)).collect();
    let mut formats = Vec::new();
    for text in &args.format {
        let pattern = Pattern::of(text);
        let known = selected.iter().any(|case| pattern.matches(&case.format));
        formats.push(match text.parse::<Format>() {
            // One format with its options is not all whose spelling it is a part of; and a name may be one that the table lacks.
            Ok(format) if text.contains(':') || !known => {
                let added: Vec<Case> = of_format(format, sizes, &shapes);
                selected.extend(without(added, &selected));
                Pattern::Whole(format.to_string())
            }
            // A format with options that is none: which part of it is at fault, the parser knows.
            Err(Error::Invalid { what, expected, got })
                if text.contains(':') && !known && !text.contains(['*', '?']) =>
            {
                return Err(Error::invalid(format!("--format: {what}"), expected, got));
            }
            _ => pattern,
        });
    }
    if !shapes.is_empty() {
        fits(&selected, &kernels, &args.shape)?;
    }
    narrow(&mut selected, "--kernel", &kernels, |case| case.kernel)?;
    narrow(&mut selected, "--format", &formats, |case| &case.format)?;
    Ok(selected)
}

/// Refuses patterns of kernels that are there, but not at the caller's shapes: the shapes are at fault, not the patterns.
fn fits(selected: &[Case], kernels: &[Pattern], shapes: &[String]) -> Result<()> {
    let among = |cases: &[Case], pattern: &Pattern| cases.iter().any(|case| pattern.matches(case.kernel));
    for pattern in kernels.iter().filter(|pattern| !pattern.text().is_empty() && !among(selected, pattern)) {
        let all = cases(&[TINY, LARGE]);
        let named: BTreeSet<&str> = all.iter().map(|case| case.kernel).filter(|name| pattern.matches(name)).collect();
        if named.is_empty() {
            continue;
        }
        let taken: BTreeSet<&str> = named.iter().filter_map(|name| shapes_of(name)).collect();
        let shaped = |name: &&&str| taken.is_empty() || shapes_of(name).is_some();
        let names = named.iter().filter(shaped).copied().collect::<Vec<_>>().join(", ");
        let expected = if taken.is_empty() {
            format!("none with --kernel {} ({names}), for which there are a model's shapes only", pattern.text())
        } else {
            let taken = taken.into_iter().collect::<Vec<_>>().join(" or ");
            format!("a shape for --kernel {} ({names}): {taken}", pattern.text())
        };
        let found: Vec<String> = shapes.iter().map(|shape| format!("`{shape}`")).collect();
        return Err(Error::invalid("--shape", expected, found.join(", ")));
    }
    Ok(())
}

/// Those of `cases` that are not among `others`.
fn without(mut cases: Vec<Case>, others: &[Case]) -> Vec<Case> {
    let key = |case: &Case| (case.kernel, case.shape, case.format.clone(), case.activations.clone());
    let taken: BTreeSet<_> = others.iter().map(key).collect();
    cases.retain(|case| !taken.contains(&key(case)));
    cases
}

fn shape(text: &str) -> Result<Shape> {
    let sizes: Option<Vec<usize>> =
        text.split(['x', 'X']).map(|part| part.parse().ok().filter(|n| (1..=1 << 20).contains(n))).collect();
    // Larger ones fit no device, and their products no integer.
    match sizes.as_deref() {
        Some(&[m, n, k]) if (m * n).max(m * k).max(n * k) <= 1 << 30 => Ok(Shape::Three([m, n, k])),
        Some(&[rows, cols]) if rows * cols <= 1 << 30 => Ok(Shape::Two([rows, cols])),
        _ => Err(Error::invalid(
            "--shape",
            "MxNxK, such as 256x4096x4096, ROWSxCOLSxBLOCK or ROWSxCOLS, each number from 1 to 1048576 and matrices of at most 2^30 elements",
            format!("`{text}`"),
        )),
    }
}

/// What a flag says of names.
#[derive(Debug)]
enum Pattern {
    /// That they contain this.
    Part(String),
    /// That they match this, which has * or ?.
    Glob(String),
    /// That they are this.
    Whole(String),
}

impl Pattern {
    fn of(text: &str) -> Self {
        if text.contains(['*', '?']) { Self::Glob(text.to_owned()) } else { Self::Part(text.to_owned()) }
    }

    fn text(&self) -> &str {
        let (Self::Part(text) | Self::Glob(text) | Self::Whole(text)) = self;
        text
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Part(part) => name.contains(part),
            Self::Glob(pattern) => glob(pattern, name),
            Self::Whole(whole) => name == whole,
        }
    }
}

/// Keeps the cases whose name matches one of the patterns; each must match some.
fn narrow(cases: &mut Vec<Case>, flag: &str, patterns: &[Pattern], name: fn(&Case) -> &str) -> Result<()> {
    let matched =
        |pattern: &&Pattern| !pattern.text().is_empty() && cases.iter().any(|case| pattern.matches(name(case)));
    if let Some(pattern) = patterns.iter().find(|pattern| !matched(pattern)) {
        let names: Vec<&str> = cases.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect();
        let expected = format!("a part of, or a pattern with * or ? for, one of {}", names.join(", "));
        return Err(Error::invalid(flag, expected, format!("`{}`", pattern.text())));
    }
    cases.retain(|case| patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name(case))));
    Ok(())
}

/// Those of `cases` that the context can run; the others are reported.
fn available(context: &Context, mut cases: Vec<Case>) -> Result<Vec<Case>> {
    let mut lacking = None;
    cases.retain(|case| match case.missing(context) {
        Some(why) => {
            say(&format!("not measured: {case}: {why}"));
            lacking = Some(why);
            false
        }
        None => true,
    });
    match lacking {
        Some(why) if cases.is_empty() => Err(Error::Unsupported { what: "any of the selected cases".to_owned(), why }),
        _ => Ok(cases),
    }
}

fn describe(ceilings: &Ceilings) -> String {
    let mut text = format!(
        "copy {} GB/s, multiply-add {} TFLOP/s in f32",
        digits(ceilings.copy * 1e-9),
        digits(ceilings.multiply * 1e-12)
    );
    if let Some(coop) = ceilings.multiply_coop {
        text.push_str(&format!(", {} by cooperative matrices in f16", digits(coop * 1e-12)));
    }
    text
}

fn json(row: &Row) -> Result<String> {
    serde_json::to_string(row).map(|line| line + "\n").map_err(|e| Error::invalid("--json", "numbers", e.to_string()))
}

/// A bar on a terminal, nothing elsewhere.
fn bar(cases: usize) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(cases as u64), target).with_finish(ProgressFinish::AndClear);
    // The template is constant; with a bad one the default bar would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len}  {msg}  {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// About four digits.
fn digits(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        1.0.. => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Columns that fit what they will hold: kernel, format and activations; those of numbers have fixed widths.
struct Table([usize; 3]);

impl Table {
    fn new(cases: &[Case]) -> Self {
        let widest = |title: &str, name: fn(&Case) -> &str| {
            cases.iter().map(|case| name(case).len()).max().unwrap_or_default().max(title.len())
        };
        Self([
            widest("kernel", |case| case.kernel),
            widest("format", |case| &case.format),
            widest("activations", |case| &case.activations),
        ])
    }

    fn head(&self) -> String {
        let numbers = ["m", "n", "k", "us", "GB/s", "TFLOP/s", "of copy", "of multiply"].map(str::to_owned);
        self.join(["kernel", "format", "activations", "tier"], numbers)
    }

    fn line(&self, row: &Row) -> String {
        let part = |k: usize| if k == 0 { String::new() } else { k.to_string() };
        let rate = |rate: Option<f64>| rate.map_or(String::new(), digits);
        let share = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1}%", share * 100.0));
        let Row { kernel, format, activations, tier, .. } = row;
        let numbers = [
            row.m.to_string(),
            row.n.to_string(),
            part(row.k),
            digits(row.us),
            rate(row.gb_per_s),
            rate(row.tflop_per_s),
            share(row.share_of_copy),
            share(row.share_of_multiply),
        ];
        self.join([kernel, format, activations, tier], numbers)
    }

    fn join(&self, [kernel, format, activations, tier]: [&str; 4], numbers: [String; 8]) -> String {
        let [a, b, c] = self.0;
        let mut line = format!("{kernel:<a$}  {format:<b$}  {activations:<c$}  {tier:<8}");
        for (number, width) in numbers.iter().zip([8, 8, 6, 9, 8, 8, 8, 12]) {
            line.push_str(&format!(" {number:>width$}"));
        }
        line.trim_end().to_owned() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_parts_or_globs_of_the_whole() {
        for (pattern, name, expected) in [
            ("mat", "matmul_nt", true),
            ("", "matmul_nt", true),
            ("rope", "matmul_nt", false),
            ("mat*", "matmul_nt", true),
            ("mat*nt", "matmul_nt", true),
            ("*mul*", "matmul_nt", true),
            ("mat?", "matmul_nt", false),
            ("matmul_n?", "matmul_nt", true),
            ("matmul_nt?", "matmul_nt", false),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(Pattern::of(pattern).matches(name), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn shapes_are_two_or_three_positive_numbers() {
        assert_eq!(shape("1x4096X65536").unwrap(), Shape::Three([1, 4096, 65536]));
        assert_eq!(shape("5x70").unwrap(), Shape::Two([5, 70]));
        for text in ["", "4096", "1x2x3x4", "32769x32768", "0x1x1", "1xax1", "1x2x", "-1x2x3", "2000000x1x1"] {
            assert!(shape(text).is_err(), "{text}");
        }
    }
}
