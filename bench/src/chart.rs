//! A chart of bars on a logarithmic scale, as SVG.

/// One bar: what it stands for, how long, and whether it is ours.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub is_ours: bool,
}

/// Bars that share a heading.
pub struct Group {
    pub heading: String,
    pub bars: Vec<Bar>,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 90.0;
const LINE: f64 = 24.0;
const OURS: &str = "#1a7f5a";
const OTHERS: &str = "#9aa5b1";

/// Draws groups of bars, all on one logarithmic scale of `unit`.
pub fn draw(title: &str, unit: &str, groups: &[Group]) -> String {
    let values = || groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value);
    let positive = || values().filter(|value| *value > 0.0);
    let least = positive().fold(f64::INFINITY, f64::min).log10().floor();
    let most = positive().fold(f64::NEG_INFINITY, f64::max).log10().ceil();
    let span = (most - least).max(1.0);
    let along = |value: f64| (WIDTH - LEFT - RIGHT) * ((value.log10() - least) / span).clamp(0.0, 1.0);

    let lines: usize = groups.iter().map(|group| group.bars.len() + 1).sum();
    let bottom = 50.0 + LINE * lines as f64;
    let mut body = String::new();
    let mut decade = least;
    while decade <= most {
        let (x, label) = (LEFT + along(10_f64.powf(decade)), amount(10_f64.powf(decade)));
        body += &format!(
            "<line x1='{x:.1}' y1='44' x2='{x:.1}' y2='{bottom:.1}' stroke='#dde2e7'/>\
             <text x='{x:.1}' y='{:.1}' text-anchor='middle' class='axis'>{label} {unit}</text>\n",
            bottom + 16.0
        );
        decade += 1.0;
    }
    let mut y = 50.0;
    for Group { heading, bars } in groups {
        body += &format!(
            "<text x='12' y='{:.1}' class='heading'>{}</text>\n",
            y + 16.0,
            escaped(heading)
        );
        y += LINE;
        for bar in bars {
            body += &drawn(bar, y, along(bar.value.max(f64::MIN_POSITIVE)));
            y += LINE;
        }
    }
    let height = bottom + 30.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0}' role='img'>\n\
         <style>text {{ font: 13px sans-serif; fill: #1f2933 }} .axis {{ font-size: 11px; fill: #616e7c }} \
         .heading {{ font-weight: bold }}</style>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='12' y='26' style='font-size: 16px; font-weight: bold'>{}</text>\n{body}</svg>\n",
        escaped(title)
    )
}

fn drawn(bar: &Bar, y: f64, length: f64) -> String {
    let colour = if bar.is_ours { OURS } else { OTHERS };
    let (name, value) = (escaped(&bar.name), amount(bar.value));
    let (beside, after, line) = (LEFT - 8.0, LEFT + length + 6.0, y + 15.0);
    let (top, width) = (y + 3.0, length.max(1.0));
    format!(
        "<text x='{beside:.1}' y='{line:.1}' text-anchor='end'>{name}</text>\
         <rect x='{LEFT}' y='{top:.1}' width='{width:.1}' height='16' fill='{colour}'/>\
         <text x='{after:.1}' y='{line:.1}'>{value}</text>\n"
    )
}

fn amount(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ten_times_as_long_is_one_decade_further() {
        let bar = |name: &str, value| Bar {
            name: name.to_owned(),
            value,
            is_ours: false,
        };
        let group = Group {
            heading: "a < b".to_owned(),
            bars: vec![bar("ten", 10.0), bar("hundred", 100.0), bar("one", 1.0)],
        };
        let chart = draw("title", "ms", &[group]);
        let widths: Vec<&str> = chart
            .split("width='")
            .skip(2)
            .filter_map(|rest| rest.split('\'').next())
            .collect();
        assert_eq!(widths, ["220.0", "440.0", "1.0"]);
        assert!(chart.contains("a &lt; b"));
    }
}
