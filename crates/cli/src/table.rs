//! Plain aligned tables for terminals, and the same rows as Markdown for the docs.

use std::fmt;

/// Rows of text under a heading.
#[derive(Debug, Clone)]
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new(heads: &[&str]) -> Table {
        Table { heads: heads.iter().map(|h| h.to_string()).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = line(&self.heads);
        text.push_str(&format!("|{}\n", "---|".repeat(self.heads.len())));
        self.rows.iter().for_each(|r| text.push_str(&line(r)));
        text
    }
}

/// True for cells that read better flush right.
fn is_number(cell: &str) -> bool {
    let digits = cell.trim_end_matches(['%', 'x', 'k', 'M', 'G']);
    digits.parse::<f64>().is_ok()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.heads.len();
        let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
        let all = || std::iter::once(&self.heads).chain(&self.rows);
        let width: Vec<usize> =
            (0..columns).map(|i| all().map(|r| cell(r, i).chars().count()).max().unwrap_or(0)).collect();
        let right: Vec<bool> = (0..columns)
            .map(|i| {
                !self.rows.is_empty()
                    && self.rows.iter().all(|r| cell(r, i).is_empty() || is_number(&cell(r, i)))
            })
            .collect();
        for row in all() {
            let mut line = String::new();
            for i in 0..columns {
                let text = cell(row, i);
                let pad = " ".repeat(width[i] - text.chars().count());
                let (before, after) = if right[i] { (pad.as_str(), "") } else { ("", pad.as_str()) };
                line.push_str(&format!("{before}{text}{after}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// A number of bytes in the unit that suits it.
pub fn bytes(n: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", n as f64 / *size as f64),
        None => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut t = Table::new(&["name", "count"]);
        t.row(["a", "1"]).row(["longer", "1234"]);
        assert_eq!(t.to_string(), "name    count\na           1\nlonger   1234\n");
        assert_eq!(t.markdown(), "| name | count |\n|---|---|\n| a | 1 |\n| longer | 1234 |\n");
    }

    #[test]
    fn sizes() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
        assert_eq!(bytes(12), "12 bytes");
        assert_eq!(bytes(3 << 19), "1.50 MiB");
    }
}
