//! What is printed.

use std::time::Duration;

/// Lines of a name and a figure.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<(String, String)>,
}

impl Report {
    /// One more line; it is shown at once on standard error, since the whole takes minutes.
    pub fn line(&mut self, name: impl Into<String>, figure: impl Into<String>) {
        let (name, figure) = (name.into(), figure.into());
        eprintln!("... {name}: {figure}");
        self.lines.push((name, figure));
    }

    /// A distribution: half, 99 of 100, and all of the values are at most this long.
    pub fn distribution(&mut self, name: &str, mut values: Vec<Duration>) {
        values.sort_unstable();
        let at = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        let figures = format!("{} / {} / {}", ms(at(50)), ms(at(99)), ms(at(100)));
        self.line(format!("{name} (p50 / p99 / max of {})", values.len()), figures);
    }

    /// Prints all of it as a table.
    pub fn print(&self) {
        println!("\n| end to end | |\n| --- | --- |");
        for (name, figure) in &self.lines {
            println!("| {name} | {figure} |");
        }
    }
}

/// In milliseconds, as a person reads it.
pub fn ms(length: Duration) -> String {
    format!("{:.2} ms", length.as_secs_f64() * 1e3)
}

/// In seconds.
pub fn seconds(length: Duration) -> String {
    format!("{:.2} s", length.as_secs_f64())
}

/// How many threads wanted a processor in the last minute: others may be at work on the machine.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").expect("the kernel tells its load");
    text.split(' ').next().unwrap_or_default().to_owned()
}
