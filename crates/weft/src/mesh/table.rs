//! Columns for people.

/// Rows under a heading, columns two spaces apart; numbers (`right`) to the right.
pub(super) fn render(heading: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|text| text.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heading: Vec<String> = heading.iter().map(|text| (*text).to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match right {
                true => line.extend([&pad, cell.as_str()]),
                false => line.extend([cell.as_str(), &pad]),
            }
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `12.3`, `-` for none.
pub(super) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// `99.95%`, `-` for none.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["bcd".into(), "100".into()]];
        assert_eq!(render(&["X", "N"], &[false, true], &rows), "X      N\na      1\nbcd  100\n");
        assert_eq!((number(None), percent(Some(0.5))), ("-".into(), "50.00%".into()));
    }
}
