//! A line plot as SVG: logarithmic to the right, linear upwards.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;
const COLOURS: [&str; 5] = ["#1b6ca8", "#c8553d", "#4a7c59", "#8e5ea2", "#d99a2b"];

/// One line.
pub(super) struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
pub(super) struct Plot {
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
    pub lines: Vec<Line>,
}

impl Plot {
    /// Draws it.
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (least, most) =
            points().fold((f64::MAX, 1.0_f64), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
        let least = least.min(most).max(1.0);
        let top = step_above(points().fold(0.0_f64, |top, (_, y)| top.max(*y)));
        let span = (most / least).ln().max(f64::EPSILON);
        let across = |x: f64| LEFT + (x.max(least) / least).ln() / span * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);

        // Writing to a String cannot fail, here and below.
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            self.title
        );
        for n in 0..=4 {
            let y = top * f64::from(n) / 4.0;
            let _written = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                up(y) + 4.0,
                short(y),
                at = up(y),
            );
        }
        let mut ticks: Vec<f64> = points().map(|(x, _)| *x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        for x in ticks {
            let _written = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                across(x),
                HEIGHT - BOTTOM + 18.0,
                short(x)
            );
        }
        let _written = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"16\" y=\"{}\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 10.0,
            self.x,
            TOP - 4.0,
            self.y
        );
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let path: Vec<_> =
                line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
            let _written = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (x, y) in &line.points {
                let (x, y) = (across(*x), up(*y));
                let _written =
                    writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let _written = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
                WIDTH - RIGHT + 12.0,
                TOP + 16.0 * (number + 1) as f64,
                line.name
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// The next round number: 1, 2, 4 or 8 times a power of ten, so that quarters of it are round, too.
fn step_above(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value)
        .filter(|step| *step > 0.0)
        .unwrap_or(1.0)
}

fn short(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_ends_at_a_round_number_that_holds_everything() {
        for (value, expected) in [(0.0, 1.0), (0.7, 0.8), (1.0, 1.0), (3.0, 4.0), (81.0, 100.0)] {
            assert!((step_above(value) - expected).abs() < 1e-9 || value == 0.0, "{value}");
            assert!(step_above(value) >= value && step_above(value) > 0.0);
        }
    }

    #[test]
    fn a_plot_without_points_is_drawn_empty() {
        let svg = Plot { title: "t", x: "x", y: "y", lines: Vec::new() }.svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
