//! Rows of values, as text for people and as comma-separated values for programs.

/// A table. The first column holds names, all others numbers.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row of as many values as there are columns.
    pub(crate) fn row(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.header.len(), "a value a column");
        self.rows.push(row);
    }

    /// Columns of equal width: names to the left, numbers to the right.
    pub(crate) fn text(&self) -> String {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for row in all() {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (value, width) in row.iter().zip(&widths).skip(1) {
                line += &format!("  {value:>width$}");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// As RFC 4180 has it, with line ends as they are here.
    pub(crate) fn csv(&self) -> String {
        let mut text = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let fields: Vec<String> = row.iter().map(|value| quoted(value)).collect();
            text += &fields.join(",");
            text.push('\n');
        }
        text
    }
}

fn quoted(value: &str) -> String {
    if value.contains([',', '"', '\n']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_as_text_and_as_values() {
        let mut table = Table::new(["name", "tokens/s"]);
        table.row(vec!["decode".to_owned(), "9.5".to_owned()]);
        table.row(vec!["a \"b\", c".to_owned(), String::new()]);
        assert_eq!(table.text(), "name      tokens/s\ndecode         9.5\na \"b\", c\n");
        assert_eq!(table.csv(), "name,tokens/s\ndecode,9.5\n\"a \"\"b\"\", c\",\n");
    }
}
