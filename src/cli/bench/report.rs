//! What a benchmark prints: rows of named cells as an aligned table, JSON or CSV.
//!
//! A row is written once and read three ways, so that no output can tell less than another: a table shows
//! numbers rounded for people, JSON and CSV carry them whole.

use serde_json::{Map, Value, json};

/// How the rows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON object: `rows` and `notes`.
    Json,
    /// Comma-separated values with a header line.
    Csv,
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A number, and how many decimals a person wants of it.
    Number(f64, usize),
    /// A number of bytes.
    Bytes(u64),
    /// Named milliseconds.
    Stages(Vec<(String, f64)>),
    /// Nothing to tell.
    Empty,
}

impl Cell {
    /// Makes a cell of words.
    pub(crate) fn text(text: &impl ToString) -> Self {
        Self::Text(text.to_string())
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(n) => n.to_string(),
            Self::Number(x, _) if x.is_nan() => "-".to_owned(),
            Self::Number(x, decimals) => format!("{x:.decimals$}"),
            Self::Bytes(bytes) => exact(*bytes),
            Self::Stages(stages) => {
                let one = |(name, ms): &(String, f64)| {
                    let decimals = usize::from(*ms < 10.0);
                    format!("{name} {ms:.decimals$}")
                };
                stages.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            Self::Empty => "-".to_owned(),
        }
    }

    fn is_number(&self) -> bool {
        !matches!(self, Self::Text(_) | Self::Stages(_))
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(n) | Self::Bytes(n) => json!(n),
            Self::Number(x, _) if x.is_finite() => json!(x),
            Self::Number(..) | Self::Empty => Value::Null,
            Self::Stages(stages) => {
                let stages = stages.iter().map(|(name, ms)| (name.clone(), json!(ms)));
                Value::Object(stages.collect())
            }
        }
    }

    fn csv(&self) -> String {
        let text = match (self, self.value()) {
            (_, Value::Null) => String::new(),
            (Self::Stages(_), _) => self.shown(),
            (_, Value::String(text)) => text,
            (_, value) => value.to_string(),
        };
        if text.contains([',', '"', '\n', '\r']) {
            return format!("\"{}\"", text.replace('"', "\"\""));
        }
        text
    }
}

/// Returns a size in the unit that divides it: `256MiB`, `1493277704B`.
pub(crate) fn exact(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// The rows of one benchmark and what has to be said about them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Report {
    /// Starts a report with the names of its columns.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row, one cell a column.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "a row has one cell a column");
        self.rows.push(cells);
    }

    /// Adds a sentence that is told once.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Returns the report in a form, line ends included.
    pub(crate) fn text(&self, form: Form) -> String {
        match form {
            Form::Table => self.table(),
            Form::Json => format!("{}\n", self.json()),
            Form::Csv => self.csv(),
        }
    }

    fn table(&self) -> String {
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let right = |column: usize| {
            !self.rows.is_empty() && self.rows.iter().all(|row| row[column].is_number())
        };
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let gap = " ".repeat(widths[column] - cell.chars().count());
                let (before, after) =
                    if right(column) { (gap, String::new()) } else { (String::new(), gap) };
                let lead = if column == 0 { "" } else { "  " };
                line.extend([lead, &before, cell, &after]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(&mut self.columns.iter().copied());
        for row in &shown {
            line(&mut row.iter().map(String::as_str));
        }
        for note in &self.notes {
            text.extend(["note: ", note, "\n"]);
        }
        text
    }

    fn json(&self) -> Value {
        let object = |row: &Vec<Cell>| {
            let names = self.columns.iter().map(|name| (*name).to_owned());
            Value::Object(names.zip(row.iter().map(Cell::value)).collect::<Map<_, _>>())
        };
        json!({ "rows": self.rows.iter().map(object).collect::<Vec<_>>(), "notes": self.notes })
    }

    fn csv(&self) -> String {
        let mut text = format!("{}\n", self.columns.join(","));
        for row in &self.rows {
            text.push_str(&row.iter().map(Cell::csv).collect::<Vec<_>>().join(","));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(&["what", "bytes", "rate", "stages"]);
        let stages = vec![("plan".to_owned(), 1.25), ("write".to_owned(), 210.0)];
        report.row(vec![
            Cell::text(&"save, \"all\""),
            Cell::Bytes(4 << 20),
            Cell::Number(1234.567, 1),
            Cell::Stages(stages),
        ]);
        report.row(vec![
            Cell::text(&"x"),
            Cell::Bytes(1001),
            Cell::Number(f64::NAN, 1),
            Cell::Empty,
        ]);
        report.note("once");
        report.note("once");
        report
    }

    fn printed(form: Form) -> String {
        report().text(form)
    }

    #[test]
    fn a_table_is_aligned_numbers_to_the_right() {
        let wanted = "what         bytes    rate  stages\n\
                      save, \"all\"   4MiB  1234.6  plan 1.2, write 210\n\
                      x            1001B       -  -\n\
                      note: once\n";
        assert_eq!(printed(Form::Table), wanted);
    }

    #[test]
    fn json_and_csv_carry_whole_numbers() {
        let value: Value = serde_json::from_str(&printed(Form::Json)).unwrap();
        assert_eq!(value["rows"][0]["rate"], 1234.567);
        assert_eq!(value["rows"][0]["stages"]["write"], 210.0);
        assert_eq!(value["rows"][1]["rate"], Value::Null);
        assert_eq!(value["notes"], json!(["once"]));
        let wanted = "what,bytes,rate,stages\n\
                      \"save, \"\"all\"\"\",4194304,1234.567,\"plan 1.2, write 210\"\n\
                      x,1001,,\n";
        assert_eq!(printed(Form::Csv), wanted);
    }
}
