//! The loss curve as SVG.

use super::files;
use super::metrics::Record;
use crate::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

/// The file's name.
pub const FILE: &str = "loss.svg";

const TRAIN: RGBColor = RGBColor(0x5B, 0x8D, 0xC9);
const VALIDATION: RGBColor = RGBColor(0xC0, 0x39, 0x2B);
const FLOOR: RGBColor = RGBColor(0x4A, 0x4A, 0x4A);

/// Draws the losses of `records` over the steps, and the entropy floor if it is known, into the SVG file `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn loss_curve(path: &Path, title: &str, records: &[Record], floor: Option<f64>) -> Result<()> {
    let series = |value: fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "step numbers are below 2^32")]
        records.iter().filter_map(|r| value(r).filter(|v| v.is_finite()).map(|v| (r.step as f64, v))).collect()
    };
    let (train, validation) = (series(|r| r.train_loss), series(|r| r.val_loss));
    let values = || train.iter().chain(&validation).map(|p| p.1).chain(floor);
    let last = train.iter().chain(&validation).map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if low < high { (low, high) } else { (0.0, 1.0) };
    let margin = (high - low) * 0.06;

    let mut svg = String::new();
    draw(&mut svg, title, (0.0, last), ((low - margin).max(0.0), high + margin), &train, &validation, floor)
        .map_err(|e| Error::file(path, "a drawing", e))?;
    files::replace_with(path, svg.as_bytes())
}

fn draw(
    svg: &mut String,
    title: &str,
    steps: (f64, f64),
    losses: (f64, f64),
    train: &[(f64, f64)],
    validation: &[(f64, f64)],
    floor: Option<f64>,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let area = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| text(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(steps.0..steps.1, losses.0..losses.1)
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_labels(8)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .bold_line_style(RGBColor(0xDD, 0xDD, 0xDD))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(|e| text(&e))?;
    let key = |color: RGBColor| move |(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(2));
    chart
        .draw_series(LineSeries::new(train.iter().copied(), TRAIN.stroke_width(1)))
        .map_err(|e| text(&e))?
        .label("training")
        .legend(key(TRAIN));
    chart
        .draw_series(LineSeries::new(validation.iter().copied(), VALIDATION.stroke_width(2)).point_size(3))
        .map_err(|e| text(&e))?
        .label("validation")
        .legend(key(VALIDATION));
    if let Some(floor) = floor {
        chart
            .draw_series(DashedLineSeries::new([(steps.0, floor), (steps.1, floor)], 6, 4, FLOOR.stroke_width(1)))
            .map_err(|e| text(&e))?
            .label(format!("entropy floor {floor:.3}"))
            .legend(key(FLOOR));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .border_style(RGBColor(0xBB, 0xBB, 0xBB))
        .draw()
        .map_err(|e| text(&e))?;
    area.present().map_err(|e| text(&e))
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
}
