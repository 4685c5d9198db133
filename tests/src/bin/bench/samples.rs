//! Measured times and the tables they are printed in.

use std::io::Write;
use std::time::{Duration, Instant};

/// Runs something and says how long it took.
pub fn time<T>(body: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = body();
    (start.elapsed(), value)
}

/// Times of one thing, measured again and again.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The median in milliseconds.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    /// Each of these less its partner of the same round: what one thing takes beside another.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one.saturating_sub(*other)).collect())
    }

    /// `median (least–most)` in milliseconds.
    pub fn cell(&self) -> String {
        let sorted = self.sorted();
        format!("{:.2} ({:.2}–{:.2})", self.median(), sorted[0], sorted[sorted.len() - 1])
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted: Vec<f64> = self.0.iter().map(|sample| sample.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// A line of text.
pub fn say(line: &str) {
    // A reader that went away is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A Markdown table, printed row by row.
pub fn table(title: &str, columns: &[&str]) {
    say(&format!("\n### {title}\n"));
    row(columns);
    row(&vec!["---"; columns.len()]);
}

/// A row of it.
pub fn row(cells: &[impl AsRef<str>]) {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    say(&format!("| {} |", cells.join(" | ")));
}
