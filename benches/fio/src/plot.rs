//! `--plot OUT.svg`: latency percentiles, and throughput over time, from JSON reports (of this program, or of fio).
//!
//! Pure but for writing the file. The upper panel has percentiles on a scale of nines (50, 90, 99, 99.9, ...), which
//! gives the tail the room that it has in people's lives, over latency on a logarithmic scale; the lower one bandwidth by
//! the samples that the reports carry. Colours are those of Okabe and Ito, which the colour-blind can tell apart.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

/// Of lines, in order.
pub const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
];
const SIZE: (u32, u32) = (960, 840);
/// Of text and axes.
pub const INK: RGBColor = RGBColor(60, 60, 60);
/// Of lines behind the data.
pub const GRID: RGBColor = RGBColor(225, 225, 225);

/// One job and direction of one report.
struct Line {
    label: String,
    /// Percentile, microseconds.
    percentiles: Vec<(f64, f64)>,
    /// Seconds, bytes per second.
    throughput: Vec<(f64, f64)>,
}

/// Draws the reports into one picture; with more than one their jobs are marked A, B, ...
pub(crate) fn draw(path: &Path, reports: &[Value]) -> Result<(), String> {
    let mut lines = Vec::new();
    for (index, report) in reports.iter().enumerate() {
        let mark = if reports.len() > 1 { format!("{}: ", (b'A' + index as u8) as char) } else { String::new() };
        lines.extend(lines_of(report, &mark));
    }
    lines.retain(|line| !line.percentiles.is_empty() || line.throughput.len() > 1);
    if lines.is_empty() {
        return Err("nothing to draw: the reports have neither percentiles nor samples".into());
    }
    let mut text = String::new();
    draw_lines(&mut text, &lines).map_err(|error| error.to_string())?;
    std::fs::write(path, text).map_err(|error| error.to_string())
}

fn lines_of(report: &Value, mark: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for job in report["jobs"].as_array().into_iter().flatten() {
        for direction in ["read", "write"] {
            let of = &job[direction];
            if of["total_ios"].as_u64().unwrap_or(0) == 0 {
                continue;
            }
            let of_kind = |kind: &str| of[kind]["percentile"].as_object().map(|list| (kind.replace("_ns", ""), list));
            let (kind, list) = match ["lat_ns", "clat_ns"].into_iter().find_map(of_kind) {
                Some((kind, list)) => (kind, Some(list)),
                None => (String::new(), None),
            };
            let mut percentiles: Vec<(f64, f64)> = list
                .into_iter()
                .flatten()
                .filter_map(|(percent, ns)| Some((percent.parse().ok()?, (ns.as_f64()? / 1e3).max(1e-3))))
                .collect();
            percentiles.sort_by(|a, b| a.0.total_cmp(&b.0));
            let samples = &job["heliostat"]["samples"][direction];
            let list = |name: &str| samples[name].as_array().into_iter().flatten().filter_map(Value::as_f64);
            let throughput = list("end_ms").zip(list("bw")).map(|(ms, kib)| (ms / 1e3, kib * 1024.0)).collect();
            let name = job["jobname"].as_str().unwrap_or("?");
            let kind = if kind.is_empty() { kind } else { format!(" ({kind})") };
            lines.push(Line { label: format!("{mark}{name} {direction}{kind}"), percentiles, throughput });
        }
    }
    lines
}

/// Where a percentile stands on the scale of nines: 0 at 0, 1 at 90, 2 at 99.
pub fn nines(percent: f64) -> f64 {
    -(1.0 - percent.min(99.9999) / 100.0).log10()
}

fn draw_lines(text: &mut String, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let has_time = lines.iter().any(|line| line.throughput.len() > 1);
    let (upper, lower) = if has_time { root.split_vertically(SIZE.1 * 11 / 20) } else { (root.clone(), root.clone()) };
    draw_percentiles(&upper, lines)?;
    if has_time {
        draw_throughput(&lower, lines)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_percentiles(area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.percentiles);
    let highest = points().map(|point| point.0).fold(99.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let (low, high) = if low > high { (1.0, 10.0) } else { (low / 1.5, high * 1.5) };
    let end = nines(highest) + 0.1;
    let mut chart = ChartBuilder::on(area)
        .caption("Latency percentiles", ("sans-serif", 20).into_font().color(&INK))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..end, (low..high).log_scale())?;
    let marks: Vec<f64> =
        [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999].into_iter().filter(|mark| *mark <= highest).collect();
    // The grid of the x axis is drawn by hand: at the percentiles that people name.
    for mark in &marks {
        chart.draw_series(LineSeries::new([(nines(*mark), low), (nines(*mark), high)], GRID.stroke_width(1)))?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("latency")
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(GRID.mix(0.4))
        .y_label_formatter(&|us| format!("{}s", si((us / 1e6 * 1e9).round() as u64)))
        .draw()?;
    let (plot, style) = (chart.plotting_area(), ("sans-serif", 13).into_font().color(&INK));
    for mark in &marks {
        let (x, y) = plot.map_coordinate(&(nines(*mark), low));
        let (left, top) = area.get_base_pixel();
        let text = format!("{mark}%");
        area.draw(&Text::new(text.clone(), (x - left - 4 * text.len() as i32, y - top + 8), style.clone()))?;
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.percentiles.iter().map(|(percent, us)| (nines(*percent), *us));
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(&line.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(12)
        .legend_area_size(26)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    Ok(())
}

fn draw_throughput(area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.throughput);
    let end = points().map(|point| point.0).fold(0.1, f64::max);
    let most = points().map(|point| point.1).fold(1.0, f64::max);
    // In units of which there are a few, so that the marks are round numbers.
    let units = [(1.0, "B/s"), (1024.0, "KiB/s"), (1_048_576.0, "MiB/s"), (1_073_741_824.0, "GiB/s")];
    let (unit_bytes, unit) = units.into_iter().rev().find(|(bytes, _)| most >= *bytes).unwrap_or(units[0]);
    let mut chart = ChartBuilder::on(area)
        .caption("Throughput over time", ("sans-serif", 20).into_font().color(&INK))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.1 / unit_bytes)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("seconds")
        .y_desc(format!("bandwidth ({unit})"))
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .y_labels(6)
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let points = line.throughput.iter().map(|(seconds, bytes)| (*seconds, bytes / unit_bytes));
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        if line.throughput.len() <= 60 {
            chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    Ok(())
}

/// Nanoseconds with the prefix of a second's part.
pub fn si(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => (ns as f64, "n"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µ"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "m"),
        _ => (ns as f64 / 1e9, ""),
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Value {
        json!({"jobs": [{"jobname": "a<b", "read": {
            "total_ios": 5, "clat_ns": {"percentile": {"50.000000": 90_000, "99.000000": 300_000, "5.000000": 50_000}},
        }, "heliostat": {"samples": {"read": {"end_ms": [500, 1000], "bw": [1000, 2000]}}}}]})
    }

    #[test]
    fn a_picture_has_both_panels_and_a_line_per_job() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        draw(&path, &[report(), report()]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for part in
            ["Latency percentiles", "Throughput over time", "A: a&lt;b read (clat)", "B: a&lt;b read (clat)", "99%"]
        {
            assert!(text.contains(part), "{part}");
        }
        assert!(draw(&path, &[json!({})]).unwrap_err().contains("nothing to draw"));
    }

    #[test]
    fn percentiles_stand_where_their_nines_are() {
        assert!((nines(90.0) - 1.0).abs() < 1e-9 && (nines(99.9) - 3.0).abs() < 1e-9);
        assert!(nines(100.0).is_finite());
        assert_eq!((si(90_000), si(1_500_000)), ("90 µ".into(), "1.5 m".into()));
    }
}
