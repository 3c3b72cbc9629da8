//! Aligned text tables, and values written on one line.

use std::io::{self, Write};

/// The most characters of one cell of a table.
const CELL_CHARS_MAX: usize = 60;

/// Line feeds and other control characters become visible, so that the text stays on one line.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            other if other.is_control() => line.extend(other.escape_unicode()),
            other => line.push(other),
        }
    }
    line
}

/// A table of text whose columns line up.
pub struct TextTable {
    header: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these columns; `true` aligns to the right.
    pub fn new(columns: impl IntoIterator<Item = (String, bool)>) -> Self {
        let (header, right) = columns.into_iter().map(|(name, right)| (one_line(&name), right)).unzip();
        TextTable { header, right, rows: Vec::new() }
    }

    /// Adds a row; long cells are cut.
    pub fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| {
            let cell = one_line(&cell);
            if cell.chars().count() > CELL_CHARS_MAX {
                cell.chars().take(CELL_CHARS_MAX - 3).chain("...".chars()).collect()
            } else {
                cell
            }
        });
        self.rows.push(cells.collect());
    }

    /// Writes the table.
    pub fn write(&self, output: &mut dyn Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            let mut text = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                if column > 0 {
                    text.push_str("  ");
                }
                if self.right[column] {
                    text.push_str(&padding);
                    text.push_str(cell);
                } else {
                    text.push_str(cell);
                    text.push_str(&padding);
                }
            }
            writeln!(output, "{}", text.trim_end())
        };
        line(&self.header)?;
        line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

/// Writes `name  value` lines with the values lined up.
pub fn write_properties(output: &mut dyn Write, properties: &[(&str, String)]) -> io::Result<()> {
    let width = properties.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in properties {
        writeln!(output, "{name:<width$}  {}", one_line(value))?;
    }
    Ok(())
}

/// Splits `a, sum(b, c) as "x,y"` at the commas between items: not those in parentheses, brackets or quotes.
pub fn split_list(text: &str) -> Vec<String> {
    let (mut items, mut item) = (Vec::new(), String::new());
    let (mut depth, mut quote) = (0i32, None);
    for character in text.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth -= 1,
            (None, ',') if depth == 0 => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            _ => {}
        }
        item.push(character);
    }
    items.push(item);
    items.into_iter().map(|item| item.trim().to_string()).filter(|item| !item.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_stay_on_their_lines() {
        let mut table = TextTable::new([("name".to_string(), false), ("rows".to_string(), true)]);
        table.push(["a".to_string(), "1".to_string()]);
        table.push(["two\nlines".to_string(), "12,345".to_string()]);
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        let expected = "name          rows\n----------  ------\na                1\ntwo\\nlines  12,345\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn lists_split_at_commas_between_items_only() {
        assert_eq!(split_list("a, b"), ["a", "b"]);
        assert_eq!(
            split_list("substring(a, 1, 2) as x,'p,q', \"c,d\""),
            ["substring(a, 1, 2) as x", "'p,q'", "\"c,d\""]
        );
        assert_eq!(split_list("'it''s, ok', b"), ["'it''s, ok'", "b"]);
        assert!(split_list(" , ").is_empty());
    }
}
