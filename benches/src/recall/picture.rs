//! The picture: queries per second and latency over recall.
//!
//! Recall stands on a scale of nines, as percentiles do in `--plot` of jobs: what is missing to 1 is what an index is chosen
//! by. A recall of 1 stands where the queries can't tell it from less ([`Curve::recall_max`]).

use anyhow::{Result, anyhow, bail};
use heliostat_fio::plot::{COLOURS, GRID, INK, nines, si};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::curve::{Curve, Point};

const SIZE: (u32, u32) = (960, 900);

/// Where recall is named on its scale, in percent.
const MARKS: [f64; 10] = [0.0, 50.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line of a panel.
struct Line {
    label: String,
    colour: RGBAColor,
    /// Recall on the scale of nines, and the value over it.
    points: Vec<(f64, f64)>,
    /// What stands at each point; may be shorter.
    names: Vec<String>,
}

/// SVG.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn draw(curves: &[Curve]) -> Result<String> {
    if curves.iter().all(|curve| curve.points.is_empty()) {
        bail!("nothing to draw: no parameter was measured");
    }
    let mut text = String::new();
    draw_panels(&mut text, curves).map_err(|error| anyhow!("drawing: {error}"))?;
    Ok(text)
}

fn draw_panels(text: &mut String, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let coloured = || curves.iter().zip(COLOURS.iter().cycle());
    let speed = coloured().map(|(curve, colour)| Line {
        names: names(curve),
        ..line(curve, curve.label.clone(), colour.to_rgba(), |point| point.queries_per_second)
    });
    let in_flight = curves.iter().map(|curve| curve.in_flight).collect::<Vec<_>>();
    let depth = match in_flight.iter().all(|depth| *depth == in_flight[0]) {
        true => format!(" ({} requests under way)", in_flight[0]),
        false => String::new(),
    };
    let title = format!("Queries per second over recall{depth}");
    draw_panel(&upper, &title, &speed.collect::<Vec<_>>(), SeriesLabelPosition::LowerLeft, &|value| grouped(*value))?;
    let latency = coloured().flat_map(|(curve, colour)| {
        let of = |name: &str, share: f64, value: fn(&Point) -> f64| {
            line(curve, format!("{} {name}", curve.label), colour.mix(share), value)
        };
        [of("p50", 1.0, |point| point.p50_us), of("p99", 0.45, |point| point.p99_us)]
    });
    let format = |us: &f64| format!("{}s", si((us * 1e3).round() as u64));
    draw_panel(
        &lower,
        "Latency of single requests over recall",
        &latency.collect::<Vec<_>>(),
        SeriesLabelPosition::UpperLeft,
        &format,
    )?;
    root.present()?;
    Ok(())
}

fn line(curve: &Curve, label: String, colour: RGBAColor, value: impl Fn(&Point) -> f64) -> Line {
    let place = |point: &Point| (nines(100.0 * point.recall.min(curve.recall_max())), value(point).max(1e-3));
    let mut points: Vec<(f64, f64)> = curve.points.iter().map(place).collect();
    points.retain(|(_, value)| value.is_finite());
    Line { label, colour, points, names: Vec::new() }
}

/// What stands at the points: the whole parameter at the first of a kind, then its number.
fn names(curve: &Curve) -> Vec<String> {
    let mut before = "";
    let mut all = Vec::new();
    for point in &curve.points {
        let (kind, value) = point.parameter.split_once('=').unwrap_or((&point.parameter, &point.parameter));
        all.push(if kind == before { value.to_string() } else { point.parameter.clone() });
        before = kind;
    }
    all
}

/// `12,300`; numbers below ten with what they need.
fn grouped(value: f64) -> String {
    if value < 10.0 {
        return format!("{}", (value * 100.0).round() / 100.0);
    }
    let digits = format!("{value:.0}");
    let group = |(place, digit): (usize, char)| {
        let comma = place > 0 && (digits.len() - place).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(group).collect()
}

fn draw_panel(
    area: &Area<'_>,
    title: &str,
    lines: &[Line],
    legend: SeriesLabelPosition,
    format: &dyn Fn(&f64) -> String,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let fold = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((left, right), (low, high)) = (fold(|point| point.0), fold(|point| point.1));
    // From the mark before the first point, so that there always is one.
    let start = MARKS.into_iter().map(nines).filter(|mark| *mark <= left).fold(0.0, f64::max);
    let end = right.max(start + 0.5) + 0.15;
    let (low, high) = (low / 1.6, high * 1.6);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20).into_font().color(&INK))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(start..end, (low..high).log_scale())?;
    let marks: Vec<f64> = MARKS.into_iter().filter(|mark| (start..=end).contains(&nines(*mark))).collect();
    for mark in &marks {
        chart.draw_series(LineSeries::new([(nines(*mark), low), (nines(*mark), high)], GRID.stroke_width(1)))?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(GRID.mix(0.4))
        .y_label_formatter(&|value| format(value))
        .draw()?;
    let (plot, style) = (chart.plotting_area(), ("sans-serif", 13).into_font().color(&INK));
    for mark in &marks {
        let (x, y) = plot.map_coordinate(&(nines(*mark), low));
        let (left, top) = area.get_base_pixel();
        let text = format!("{mark}%");
        area.draw(&Text::new(text.clone(), (x - left - 4 * text.len() as i32, y - top + 8), style.clone()))?;
    }
    for line in lines {
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(&line.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        let name = |(point, name): (&(f64, f64), &String)| {
            EmptyElement::at(*point) + Text::new(name.clone(), (5, -14), ("sans-serif", 11).into_font().color(&colour))
        };
        chart.draw_series(line.points.iter().zip(&line.names).map(name))?;
    }
    chart
        .configure_series_labels()
        .position(legend)
        .margin(12)
        .legend_area_size(26)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::curve::tests::curve;
    use super::*;

    #[test]
    fn a_picture_has_both_panels_and_every_curve_and_parameter() {
        let (one, other) = (curve("ivf<4"), curve("graph"));
        let text = draw(&[one.clone(), other]).unwrap();
        for part in [
            "Queries per second over recall (16 requests",
            "Latency of single",
            "ivf&lt;4",
            "graph p99",
            "probes=1",
            "90%",
        ] {
            assert!(text.contains(part), "{part}");
        }
        // A recall of exactly 1 has a place, too.
        let mut perfect = one;
        perfect.points.iter_mut().for_each(|point| point.recall = 1.0);
        assert!(draw(&[perfect.clone()]).unwrap().contains("99.9%"));
        perfect.points.clear();
        assert!(draw(&[perfect]).is_err());
    }

    #[test]
    fn parameters_are_named_once_and_then_by_their_number() {
        let mut curve = curve("a");
        curve.points[3].parameter = "exact".into();
        assert_eq!(names(&curve), ["probes=1", "2", "4", "exact"]);
        assert_eq!(
            (grouped(1_234_567.0), grouped(999.0), grouped(0.5)),
            ("1,234,567".into(), "999".into(), "0.5".into())
        );
    }
}
