//! Line charts as SVG. The crates for that draw far more than lines, by way of far more code; what is here is enough.

use super::{digits, spread::Spread};
use std::fmt::Write;

/// Width of the picture.
const WIDTH: f64 = 760.0;
/// Height of a panel's axes, without what is written around them.
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const ABOVE: f64 = 40.0;
const BELOW: f64 = 50.0;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 18.0;
/// Ticks of an axis, about.
const TICKS: f64 = 6.0;
/// Of the lines, in turn; told apart by the colour-blind (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// A pair of axes with lines. Both axes begin at 0: half of the height is half of the speed.
pub(super) struct Panel {
    /// What stands above.
    pub(super) title: &'static str,
    /// One or more, each of one point or more.
    pub(super) lines: Vec<Line>,
}

/// A line of a panel.
pub(super) struct Line {
    /// What the legend calls it.
    pub(super) name: String,
    /// Where each value lies, and the value: a mark at its median, with a bar over its range.
    pub(super) points: Vec<(f64, Spread)>,
}

/// The panels, one below the other.
pub(super) fn svg(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(Panel::height).sum();
    let mut out = String::new();
    let mut add = |text: String| out += &text;
    add(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    ));
    let mut top = 0.0;
    for panel in panels {
        add(format!("<g transform=\"translate(0 {top})\">\n{}</g>\n", panel.svg()));
        top += panel.height();
    }
    add("</svg>\n".to_owned());
    out
}

impl Panel {
    fn height(&self) -> f64 {
        ABOVE + HEIGHT + BELOW + LEGEND_LINE * self.lines.len() as f64
    }

    fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (x_axis, y_axis) = (
            Axis::up_to(points().map(|point| point.0).fold(0.0, f64::max)),
            Axis::up_to(points().map(|point| point.1.max).fold(0.0, f64::max)),
        );
        let x = |value: f64| LEFT + x_axis.share(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| ABOVE + (1.0 - y_axis.share(value)) * HEIGHT;
        let mut out =
            format!("<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n", escaped(self.title));
        let (bottom, right) = (ABOVE + HEIGHT, WIDTH - RIGHT);
        for tick in x_axis.ticks() {
            let (at, text, below) = (x(tick), digits_of_tick(tick), bottom + 18.0);
            out += &line([at, bottom, at, ABOVE], "#e0e0e0", 1.0);
            out += &format!("<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{text}</text>\n");
        }
        for tick in y_axis.ticks() {
            let (at, text, before) = (y(tick), digits_of_tick(tick), LEFT - 8.0);
            out += &line([LEFT, at, right, at], "#e0e0e0", 1.0);
            let middle = at + 4.0;
            out += &format!("<text x=\"{before}\" y=\"{middle:.1}\" text-anchor=\"end\">{text}</text>\n");
        }
        out += &line([LEFT, bottom, right, bottom], "black", 1.0);
        out += &line([LEFT, bottom, LEFT, ABOVE], "black", 1.0);
        let middle = f64::midpoint(LEFT, right);
        let below = bottom + 36.0;
        out += &format!(
            "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">tokens cached before</text>\n"
        );
        for (index, (series, colour)) in self.lines.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
            out += &series.svg(&x, &y, colour);
            let at = bottom + BELOW + LEGEND_LINE * (index as f64 + 0.5);
            out += &line([LEFT, at, LEFT + 24.0, at], colour, 2.0);
            let (start, base) = (LEFT + 32.0, at + 4.0);
            out += &format!("<text x=\"{start}\" y=\"{base}\">{}</text>\n", escaped(&series.name));
        }
        out
    }
}

impl Line {
    fn svg(&self, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64, colour: &str) -> String {
        let mut path = String::new();
        let mut out = String::new();
        for &(at, Spread { median, min, max }) in &self.points {
            write!(path, "{:.1},{:.1} ", x(at), y(median)).expect("a String takes all that is written to it");
            out += &line([x(at), y(min), x(at), y(max)], colour, 1.0);
            out += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>\n",
                x(at),
                y(median),
                digits(median)
            );
        }
        let path = path.trim_end();
        out + &format!("<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n")
    }
}

/// An axis from 0 to a round number.
#[derive(Debug, PartialEq)]
struct Axis {
    step: f64,
    steps: u32,
}

impl Axis {
    /// Whose ticks are 1, 2 or 5 times a power of ten apart.
    fn up_to(largest: f64) -> Self {
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let rough = largest / TICKS;
        let power = 10.0_f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
        let step = factor * power;
        Self { step, steps: (largest / step).ceil() as u32 }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=self.steps).map(|tick| f64::from(tick) * self.step)
    }

    /// Where a value lies between the ends.
    fn share(&self, value: f64) -> f64 {
        value / (self.step * f64::from(self.steps))
    }
}

/// A round number, without digits that say nothing.
fn digits_of_tick(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line([x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n"
    )
}

/// Text between tags. What no XML document may hold, control characters, is left out.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let ends = |largest| {
            let axis = Axis::up_to(largest);
            (axis.step, axis.ticks().last().unwrap())
        };
        assert_eq!(ends(4096.0), (1000.0, 5000.0));
        assert_eq!(ends(64.0), (20.0, 80.0));
        assert_eq!(ends(1.0), (0.2, 1.0));
        assert_eq!(ends(0.0), ends(1.0));
        assert_eq!(Axis::up_to(100.0).share(50.0), 0.5);
        assert_eq!([0.0, 0.2, 1000.0, 2.5].map(digits_of_tick), ["0", "0.2", "1000", "2.5"]);
    }

    #[test]
    fn every_line_has_its_points_and_its_place_in_the_legend() {
        let point = |at, value| (at, Spread { median: value, min: value - 1.0, max: value + 1.0 });
        let lines = ["a < b & c", "second"]
            .map(|name| Line { name: name.to_owned(), points: vec![point(0.0, 60.0), point(4096.0, 40.0)] });
        let panel = Panel { title: "decode", lines: lines.into() };
        let text = svg(&[panel]);
        assert_eq!((text.matches("<polyline").count(), text.matches("<circle").count()), (2, 4));
        assert!(text.contains("a &lt; b &amp; c") && text.contains(">4000</text>"), "{text}");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }
}
