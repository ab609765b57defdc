//! The plot: time by number of Services, both axes logarithmic, as SVG.

use std::fmt::Write as _;

use crate::cluster::{Change, grouped};
use crate::results::{Column, Results};
use crate::sample::Sample;
use crate::shapes::Shape;
use crate::table::time;

/// The clusters of the plot are those with so many endpoints in a Service.
const ENDPOINTS: u32 = 10;

/// One half of the plot: its heading and what it shows.
const PANELS: [(&str, Column); 2] = [
    ("Full load", Column::FullLoad),
    ("One endpoint changed", Column::Change(Change::OneEndpoint)),
];

/// A panel's field, in SVG's units.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 280.0;
/// Where the first one begins.
const LEFT: f64 = 70.0;
const TOP: f64 = 56.0;
/// From one field to the next.
const GAP: f64 = 80.0;

/// The card on which all is drawn: white, so that it is read on any page.
const CARD: (f64, f64) = (LEFT + 2.0 * WIDTH + GAP + 30.0, TOP + HEIGHT + 130.0);

/// A shape's colour. All are dark enough for white, and told apart in grey by their lines' dashes.
const fn stroke(shape: Shape) -> (&'static str, &'static str, f64) {
    match shape {
        Shape::KubeProxyChains => ("#7a1f0e", "2 4", 2.0),
        Shape::KubeProxyMaps => ("#c8501e", "7 4", 2.0),
        Shape::IptablesNft => ("#7d3fb0", "1 3", 2.0),
        Shape::IptablesLegacy => ("#2f5fc4", "10 3 2 3", 2.0),
        Shape::OursText => ("#3f9d72", "4 2", 2.0),
        Shape::Engine => ("#00613a", "none", 3.0),
    }
}

/// The plot.
pub fn svg(results: &Results) -> String {
    let (width, height) = CARD;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#fff\" stroke=\"#bbb\"/>\n"
    );
    let mut left = LEFT;
    for (title, column) in PANELS {
        panel(&mut svg, left, title, &lines(results, column));
        left += WIDTH + GAP;
    }
    legend(&mut svg);
    svg + "</svg>\n"
}

/// A shape's points: Services and seconds.
type Line = (Shape, Vec<(f64, f64)>);

fn lines(results: &Results, column: Column) -> Vec<Line> {
    let points = |shape: Shape| {
        let of_shape = results
            .cells
            .keys()
            .filter(|(size, s)| *s == shape && size.endpoints == ENDPOINTS);
        let point = of_shape.filter_map(|(size, _)| {
            let median = results.cell(*size, shape, column).and_then(Sample::median)?;
            Some((f64::from(size.services), median))
        });
        (shape, point.collect::<Vec<_>>())
    };
    Shape::ALL
        .into_iter()
        .map(points)
        .filter(|(_, points)| !points.is_empty())
        .collect()
}

/// From values to places along an axis.
struct Axis {
    lowest: f64,
    decades: f64,
    start: f64,
    length: f64,
}

impl Axis {
    /// From the whole decade below the smallest value to that above the largest.
    fn new(values: impl Iterator<Item = f64> + Clone, start: f64, length: f64) -> Self {
        let lowest = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
        let highest = values.fold(0.0, f64::max).log10().ceil();
        Self {
            lowest,
            decades: (highest - lowest).max(1.0),
            start,
            length,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + self.length * (value.log10() - self.lowest) / self.decades
    }

    /// 1, 10, 100 ... as far as they are on the axis.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (lowest, highest) = (self.lowest, self.lowest + self.decades);
        (0..40_i32)
            .map(f64::from)
            .map(move |n| lowest + n)
            .take_while(move |n| *n <= highest + 0.5)
            .map(|n| 10_f64.powf(n))
    }
}

fn panel(svg: &mut String, left: f64, title: &str, lines: &[Line]) {
    let bottom = TOP + HEIGHT;
    let points = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    if points().next().is_none() {
        return;
    }
    let x = Axis::new(points().map(|(services, _)| services), left, WIDTH);
    let y = Axis::new(points().map(|(_, seconds)| seconds), bottom, -HEIGHT);
    let middle = left + WIDTH / 2.0;
    put(
        svg,
        format_args!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"15\" font-weight=\"bold\">{title}</text>",
            TOP - 20.0
        ),
    );
    for tick in y.ticks() {
        let at = y.at(tick);
        put(
            svg,
            format_args!(
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>",
                left + WIDTH
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                round_time(tick)
            ),
        );
    }
    for tick in x.ticks() {
        let at = x.at(tick);
        put(
            svg,
            format_args!("<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>"),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                count(tick)
            ),
        );
    }
    put(
        svg,
        format_args!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">Services with {ENDPOINTS} endpoints each</text>",
            bottom + 36.0
        ),
    );
    for (shape, points) in lines {
        let (colour, dashes, width) = stroke(*shape);
        let path: Vec<String> = points
            .iter()
            .map(|(services, seconds)| format!("{:.1},{:.1}", x.at(*services), y.at(*seconds)))
            .collect();
        put(
            svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\"/>",
                path.join(" ")
            ),
        );
        for (services, seconds) in points {
            put(
                svg,
                format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {}</title></circle>",
                    x.at(*services),
                    y.at(*seconds),
                    shape.name(),
                    time(*seconds)
                ),
            );
        }
    }
}

/// Below both panels, in two rows.
fn legend(svg: &mut String) {
    for (place, shape) in (0_u8..).zip(Shape::ALL) {
        let (colour, dashes, width) = stroke(shape);
        let x = LEFT + f64::from(place % 3) * 250.0;
        let y = TOP + HEIGHT + 72.0 + f64::from(place / 3) * 24.0;
        put(
            svg,
            format_args!(
                "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\"/>",
                x + 36.0
            ),
        );
        put(
            svg,
            format_args!("<text x=\"{}\" y=\"{}\">{}</text>", x + 44.0, y + 4.0, shape.name()),
        );
    }
}

/// A power of ten seconds.
fn round_time(seconds: f64) -> String {
    match seconds {
        s if s > 0.9 => format!("{s:.0} s"),
        s if s > 0.0009 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// A power of ten Services.
fn count(services: f64) -> String {
    let digits = format!("{services:.0}");
    digits.parse().map(grouped).unwrap_or(digits)
}

fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("a String takes every line");
}
