//! Loss curves as SVG: of a run, and of the rows of a comparison.

use super::compare::Row;
use super::diagnostics::LayerDiagnostics;
use super::files;
use super::metrics::Record;
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The name of a run's file.
pub const FILE: &str = "loss.svg";
/// The name of the file with a run's diagnostics.
pub const DIAGNOSTICS_FILE: &str = "diagnostics.svg";
/// The name of a comparison's file.
pub const COMPARISON_FILE: &str = "compare.svg";

const TRAIN: RGBColor = RGBColor(0x5B, 0x8D, 0xC9);
const VALIDATION: RGBColor = RGBColor(0xC0, 0x39, 0x2B);
const FLOOR: RGBColor = RGBColor(0x4A, 0x4A, 0x4A);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
const FRAME: RGBColor = RGBColor(0xBB, 0xBB, 0xBB);
/// Of the rows of a comparison, in turn.
const ROWS: [RGBColor; 8] = [
    RGBColor(0x22, 0x22, 0x22),
    RGBColor(0xC0, 0x39, 0x2B),
    RGBColor(0x2E, 0x6F, 0xB7),
    RGBColor(0x2E, 0x8B, 0x57),
    RGBColor(0xD3, 0x84, 0x1E),
    RGBColor(0x7D, 0x4F, 0xA3),
    RGBColor(0x1A, 0x94, 0x94),
    RGBColor(0xB0, 0x5A, 0x8C),
];

/// Width of a drawing and height of its curves, in pixels.
const SIZE: (u32, u32) = (900, 500);
/// Height and, about, width of a letter of labels, in pixels.
const LETTER: (u32, u32) = (14, 7);
/// Room for the names of rows, at least and at most; what they need beyond the least widens the drawing.
const NAMES: (u32, u32) = (260, 600);
/// Height of a row below the curves of a comparison, and of what is around those rows.
const ROW: u32 = 24;
const AROUND_ROWS: u32 = 80;

/// Draws the losses of `records` over the steps, and the entropy floor if it is known, into the SVG file `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn loss_curve(path: &Path, title: &str, records: &[Record], floor: Option<f64>) -> Result<()> {
    let series = |value: fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "step numbers are below 2^32")]
        records.iter().filter_map(|r| value(r).filter(|v| v.is_finite()).map(|v| (r.step as f64, v))).collect()
    };
    let lines = [
        Line { label: "training".to_owned(), color: TRAIN, width: 1, marks: 0, points: series(|r| r.train_loss) },
        Line { label: "validation".to_owned(), color: VALIDATION, width: 2, marks: 3, points: series(|r| r.val_loss) },
    ];
    drawing(path, SIZE, |area| curves(area, title, "loss (nats per token)", &lines, floor, Key::Above))
}

/// Draws the diagnostics of `records` over the steps into the SVG file `path`, one below the other where there are any: the layers' distances to
/// the grid, errors of inputs, masked shares of weights and inputs, cosines of gradients with those of full precision. A line for each layer,
/// or of more than eight the mean, the least and the greatest.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn diagnostics(path: &Path, title: &str, records: &[Record]) -> Result<()> {
    type Value = fn(&LayerDiagnostics) -> Option<f64>;
    let panels: [(&str, Value); 5] = [
        ("distance to the grid |W - Q(W)| / |W|", |l| l.grid_distance),
        ("error of inputs |X - Q(X)|^2 / |X|^2", |l| l.input_error),
        ("masked share of weights", |l| l.masked_weights),
        ("masked share of inputs", |l| l.masked_inputs),
        ("cosine with full precision", |l| l.cosine),
    ];
    // What a method does not have is left out.
    let panels = panels.map(|(what, value)| (what, layers(records, value)));
    let mut panels: Vec<_> = panels.into_iter().filter(|(_, lines)| !lines.is_empty()).collect();
    if panels.is_empty() {
        panels.push(("no layers", Vec::new()));
    }
    let height = u32::try_from(panels.len()).unwrap_or(1) * SIZE.1;
    drawing(path, (SIZE.0, height), |area| {
        for (area, (what, lines)) in area.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            curves(area, title, what, lines, None, Key::Beside)?;
        }
        Ok(())
    })
}

/// The lines of a number that layers have.
fn layers(records: &[Record], value: impl Fn(&LayerDiagnostics) -> Option<f64>) -> Vec<Line> {
    let mut by_layer: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    let mut by_step: Vec<(f64, Vec<f64>)> = Vec::new();
    for record in records {
        #[expect(clippy::cast_precision_loss, reason = "step numbers are below 2^32")]
        let step = record.step as f64;
        let mut values = Vec::new();
        for (name, layer) in record.diagnostics.iter().flatten() {
            if let Some(value) = value(layer) {
                by_layer.entry(name).or_default().push((step, value));
                values.push(value);
            }
        }
        if !values.is_empty() {
            by_step.push((step, values));
        }
    }
    let line = |(label, points), color, width| Line { label, color, width, marks: 2, points };
    if by_layer.len() <= ROWS.len() {
        let lines = by_layer.into_iter().map(|(name, points)| (name.replace("transformer.", ""), points));
        return lines.zip(ROWS).map(|(named, color)| line(named, color, 2)).collect();
    }
    let fold = |fold: fn(&[f64]) -> f64| by_step.iter().map(|(step, values)| (*step, fold(values))).collect();
    #[expect(clippy::cast_precision_loss, reason = "a number of layers")]
    let mean: Vec<_> = fold(|values| values.iter().sum::<f64>() / values.len() as f64);
    let least: Vec<_> = fold(|values| values.iter().copied().fold(f64::INFINITY, f64::min));
    let greatest: Vec<_> = fold(|values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let count = by_layer.len();
    vec![
        line((format!("mean of {count} layers"), mean), ROWS[0], 2),
        line(("least".to_owned(), least), ROWS[1], 1),
        line(("greatest".to_owned(), greatest), ROWS[2], 1),
    ]
}

/// Draws a comparison into the SVG file `path`: the mean validation loss of each row over the steps; below, the mean of its best losses
/// with the standard deviation over its seeds; and the entropy floor if it is known.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn comparison(path: &Path, title: &str, rows: &[Row], floor: Option<f64>) -> Result<()> {
    let what = "validation loss (nats per token)";
    let several_budgets = rows.iter().any(|row| row.steps != rows[0].steps);
    let label = |row: &Row| {
        if several_budgets { format!("{}, {} steps", row.label(), row.steps) } else { row.label() }
    };
    #[expect(clippy::cast_precision_loss, reason = "step numbers are below 2^32")]
    let points = |row: &Row| row.curve.iter().map(|e| (e.step as f64, e.loss)).collect();
    let lines: Vec<Line> = rows
        .iter()
        .zip(colors(rows.len()))
        .map(|(row, color)| Line { label: label(row), color, width: 2, marks: 3, points: points(row) })
        .collect();
    let best: Vec<_> =
        rows.iter().map(|row| Some((row.best_val_loss_mean?, row.best_val_loss_spread.unwrap_or_default()))).collect();
    if rows.len() < 2 {
        // Nothing to compare.
        return drawing(path, SIZE, |area| curves(area, title, what, &lines, floor, Key::Above));
    }
    // Many labels would cover the curves; below, each stands beside a dot of its colour.
    let key = if lines.len() > ROWS.len() { Key::Elsewhere } else { Key::Above };
    let letters = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0);
    let names = u32::try_from(letters).unwrap_or(u32::MAX).saturating_mul(LETTER.1).clamp(NAMES.0, NAMES.1);
    let height = u32::try_from(rows.len()).unwrap_or(u32::MAX).saturating_mul(ROW).saturating_add(AROUND_ROWS);
    drawing(path, (SIZE.0 + names - NAMES.0, SIZE.1.saturating_add(height)), |area| {
        let (above, below) = area.split_vertically(SIZE.1);
        curves(&above, title, what, &lines, floor, key)?;
        dots(&below, &lines, &best, names)
    })
}

/// A colour for each of so many rows: of more than eight, the first one's and hues all around, light and dark in turn.
fn colors(count: usize) -> Vec<RGBColor> {
    if count <= ROWS.len() {
        return ROWS[..count].to_vec();
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of rows")]
    let hue = |i: usize| HSLColor(i as f64 / (count - 1) as f64, 0.7, if i.is_multiple_of(2) { 0.32 } else { 0.5 });
    let rgb = |color: HSLColor| color.to_backend_color().rgb;
    let hues = (0..count - 1).map(|i| rgb(hue(i))).map(|(r, g, b)| RGBColor(r, g, b));
    [ROWS[0]].into_iter().chain(hues).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a white area of that size, and writes the file.
fn drawing(path: &Path, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<(), String>) -> Result<()> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    area.fill(&WHITE)
        .map_err(|e| e.to_string())
        .and_then(|()| draw(&area))
        .and_then(|()| area.present().map_err(|e| e.to_string()))
        .map_err(|e| Error::file(path, "a drawing", e))?;
    drop(area);
    files::replace_with(path, svg.as_bytes())
}

/// A loss over the steps.
struct Line {
    label: String,
    color: RGBColor,
    width: u32,
    /// Radius of the dots at its points.
    marks: u32,
    points: Vec<(f64, f64)>,
}

/// The axis on which losses have room.
fn range(losses: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = losses.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    // A single value has room too.
    let margin = if low < high { (high - low) * 0.06 } else { 0.5 };
    // Losses and the like do not fall below zero, and neither does their axis.
    (if low < 0.0 { low - margin } else { (low - margin).max(0.0) })..high + margin
}

/// Where the labels of lines stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    /// In the upper right corner, where losses are not.
    Above,
    /// There, in a part of the axis beyond the last step.
    Beside,
    /// In another chart.
    Elsewhere,
}

fn curves(
    area: &Area<'_>,
    title: &str,
    what: &str,
    lines: &[Line],
    floor: Option<f64>,
    key: Key,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let points = || lines.iter().flat_map(|line| &line.points);
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            0.0..last * if key == Key::Beside { 1.25 } else { 1.0 },
            range(points().map(|p| p.1).chain(floor)),
        )
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(what)
        .x_labels(8)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(("sans-serif", LETTER.0))
        .axis_desc_style(("sans-serif", 16))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(|e| text(&e))?;
    let sample = |color: RGBColor| move |(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(2));
    for line in lines {
        let style = line.color.stroke_width(line.width);
        let drawn = chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(line.marks))
            .map_err(|e| text(&e))?;
        if key != Key::Elsewhere {
            drawn.label(&line.label).legend(sample(line.color));
        }
    }
    if let Some(floor) = floor {
        chart
            .draw_series(DashedLineSeries::new([(0.0, floor), (last, floor)], 6, 4, FLOOR.stroke_width(1)))
            .map_err(|e| text(&e))?
            .label(format!("entropy floor {floor:.3}"))
            .legend(sample(FLOOR));
    }
    if key == Key::Elsewhere && floor.is_none() {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", LETTER.0))
        .background_style(WHITE)
        .border_style(FRAME)
        .draw()
        .map_err(|e| text(&e))
}

/// A row per line from the top: mean and spread where it has them.
fn dots(area: &Area<'_>, lines: &[Line], best: &[Option<(f64, f64)>], names: u32) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let ends = best.iter().flatten().flat_map(|(mean, spread)| [mean - spread, mean + spread]);
    let place = |number: usize| SegmentValue::CenterOf(lines.len().saturating_sub(number + 1));
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(at) if *at < lines.len() => lines[lines.len() - at - 1].label.clone(),
        _ => String::new(),
    };
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(names)
        .build_cartesian_2d(range(ends), (0..lines.len().saturating_sub(1)).into_segmented())
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .x_desc("best validation loss (mean and standard deviation over seeds)")
        .x_labels(8)
        .x_label_formatter(&|x| format!("{x:.3}"))
        .y_labels(lines.len())
        .y_label_formatter(&name)
        .label_style(("sans-serif", LETTER.0))
        .axis_desc_style(("sans-serif", 16))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(|e| text(&e))?;
    for (number, (line, best)) in lines.iter().zip(best).enumerate() {
        let Some((mean, spread)) = *best else { continue };
        let bar = [mean - spread, mean + spread].map(|loss| (loss, place(number)));
        chart.draw_series([PathElement::new(bar, line.color.stroke_width(2))]).map_err(|e| text(&e))?;
        chart.draw_series([Circle::new((mean, place(number)), 5, line.color.filled())]).map_err(|e| text(&e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let record = |step, train, val| Record { step, train_loss: train, val_loss: val, ..Record::default() };
        let many: Vec<Record> = (1..200)
            .map(|s| record(s * 10, Some(1.0 + 30.0 / s as f64), (s % 25 == 0).then_some(1.1 + 30.0 / s as f64)))
            .collect();
        for (records, floor) in
            [(&many[..], Some(0.98)), (&many[..], None), (&[], None), (&[record(1, Some(f64::NAN), None)], Some(1.0))]
        {
            loss_curve(&path, "a <title> & more", records, floor).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for label in ["step", "loss (nats per token)", "training", "validation", "&lt;title&gt; &amp; more"] {
                assert!(svg.contains(label), "{label}");
            }
            assert_eq!(svg.contains("entropy floor"), floor.is_some());
        }
    }

    #[test]
    fn draws_a_line_for_each_layer_or_the_range_of_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIAGNOSTICS_FILE);
        let layer = |v: f64| LayerDiagnostics {
            grid_distance: Some(v),
            input_error: Some(v * v),
            masked_weights: Some(0.1 * v),
            masked_inputs: Some(0.2 * v),
            cosine: Some(0.5 - v),
            ..Default::default()
        };
        let record = |step: u64, layers: u64| {
            let layers = (0..layers).map(|n| (format!("transformer.h.{n}.mlp"), layer((n + step) as f64 / 20.0)));
            Record { step, diagnostics: Some(layers.collect()), ..Record::default() }
        };
        let panels = [
            "distance to the grid",
            "error of inputs",
            "masked share of weights",
            "masked share of inputs",
            "cosine with full precision",
        ];
        for (layers, labels, lines) in [(8, ["h.0.mlp", "h.7.mlp"], 8), (9, ["mean of 9 layers", "least"], 3)] {
            diagnostics(&path, "title", &[record(1, layers), Record::default(), record(5, layers)]).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            for label in panels.into_iter().chain(labels) {
                assert!(svg.contains(label), "{label}");
            }
            assert_eq!(svg.matches("<circle").count(), 5 * 2 * lines, "two points of each in all panels");
        }
        diagnostics(&path, "title", &[record(1, 0)]).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("no layers"));
        // What layers do not have has no panel.
        let layer = LayerDiagnostics { cosine: Some(0.5), ..Default::default() };
        let record =
            |step: u64| Record { step, diagnostics: Some([("h".to_owned(), layer)].into()), ..Record::default() };
        diagnostics(&path, "title", &[record(1), record(5)]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert_eq!(panels.map(|panel| svg.contains(panel)), [false, false, false, false, true], "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn draws_rows_with_what_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(COMPARISON_FILE);
        let row = |weights: Option<&str>, steps, mean, spread| Row {
            method: if weights.is_some() { crate::qat::Method::Ste(crate::qat::Ste) } else { crate::qat::Method::None },
            optimizer: crate::optim::Optimizer::AdamW,
            weights: weights.map(|name| name.parse().unwrap()),
            activations: None,
            hadamard: None,
            lr: 1e-3,
            steps,
            seeds: vec![1, 2],
            best_val_loss_mean: mean,
            best_val_loss_spread: spread,
            gap_to_full: None,
            gap_to_floor: None,
            bits_per_weight: 4.0,
            ms_per_step: None,
            peak_gpu_bytes: None,
            curve: mean.iter().map(|&loss| crate::train::Evaluation { step: steps, loss }).collect(),
        };
        let all: Vec<Row> = crate::format::Format::named()
            .map(|(name, format)| row(Some(name), 100, Some(1.0 + 1.0 / f64::from(format.bits())), Some(0.01)))
            .collect();
        let few = [row(None, 100, Some(1.5), None), row(Some("int4"), 200, None, None)];
        for (rows, floor) in [(&all[..], Some(0.9)), (&few[..], None), (&few[..1], None), (&[], None)] {
            comparison(&path, "title", rows, floor).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            // On curves and below, where there is more than one; the names of many stand below alone.
            let parts = rows.len().min(2);
            let named = if rows.len() > ROWS.len() { 1 } else { parts };
            for row in rows {
                let steps = if rows.len() == 2 { format!(", {} steps", row.steps) } else { String::new() };
                let label = row.label() + &steps;
                assert_eq!(svg.matches(&format!("\n{label}\n")).count(), named, "{label}: {svg}");
            }
            let dots = rows.iter().filter(|row| row.best_val_loss_mean.is_some()).count();
            assert_eq!(svg.matches("<circle").count(), parts * dots, "on curves and below");
            assert_eq!(svg.contains("entropy floor"), floor.is_some());
        }
    }
}
