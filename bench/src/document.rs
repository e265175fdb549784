//! Tables, and the parts of a page that a bench writes.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::figures::Figures;

/// A Markdown table.
pub struct Table {
    text: String,
}

impl Table {
    pub fn headed(columns: &[&str]) -> Self {
        let rule = vec!["---"; columns.len()].join("|");
        Self {
            text: format!("| {} |\n|{rule}|\n", columns.join(" | ")),
        }
    }

    /// A row of its own cells.
    pub fn row<C: AsRef<str>>(&mut self, cells: &[C]) {
        let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
        self.text += &format!("| {} |\n", cells.join(" | "));
    }

    /// A row of n, min, p50, p95 and max.
    pub fn figures(&mut self, name: &str, figures: &Figures) {
        let mut cells = vec![name.to_owned(), figures.count().to_string()];
        cells.extend([0.0, 0.5, 0.95, 1.0].map(|share| short(figures.quantile(share))));
        self.row(&cells);
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

/// The columns that [`Table::figures`] fills.
pub fn distribution(what: &str) -> [&str; 6] {
    [what, "n", "min", "p50", "p95", "max"]
}

/// Three digits that count, as far as there are decimals at all.
pub fn short(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// 10000 as 10,000.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Puts `text` between the lines `<!-- PART: begin -->` and `<!-- PART: end -->` of a page.
///
/// # Errors
/// A page without them.
pub fn replace_part(page: &Path, part: &str, text: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let new = with_part(&old, part, text)
        .with_context(|| format!("{} has no lines `<!-- {part}: begin|end -->`", page.display()))?;
    fs::write(page, new).with_context(|| format!("writing {}", page.display()))
}

fn with_part(page: &str, part: &str, text: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {part}: begin -->\n"),
        format!("<!-- {part}: end -->"),
    );
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    let mut new = String::new();
    write!(new, "{before}{begin}{}\n{end}{after}", text.trim_end()).ok()?;
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_part_of_a_page_is_replaced() {
        let page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n";
        assert_eq!(
            with_part(page, "x", "new\n").unwrap(),
            "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n"
        );
        assert_eq!(with_part(page, "z", "new"), None);
    }

    #[test]
    fn figures_are_as_precise_as_they_are_worth() {
        let shown = [0.123, 1.0, 9.996, 99.94, 99.96, 12_345.6].map(short);
        assert_eq!(shown, ["0.12", "1.00", "10.0", "99.9", "100", "12346"]);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 100, 1_000, 10_000, 1_234_567].map(grouped),
            ["0", "100", "1,000", "10,000", "1,234,567"]
        );
    }
}
