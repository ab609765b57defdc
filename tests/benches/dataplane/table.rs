//! The results as Markdown tables, which are read as they are in a terminal.

use std::collections::BTreeSet;

use crate::cluster::{Change, Size, grouped};
use crate::results::{Column, Results};
use crate::sample::Sample;
use crate::shapes::Shape;

/// Fewer runs than this are shown, so that nobody takes one run for a median.
const ENOUGH_RUNS: usize = 5;

/// Everything.
pub fn report(results: &Results) -> String {
    let columns = Column::ALL.into_iter().map(|column| of_column(results, column));
    let rest = [shares(results), latency(results), throughput(results)];
    columns.chain(rest).collect::<Vec<_>>().join("\n")
}

/// One measurement: a row for each size, a column for each shape that has it.
fn of_column(results: &Results, column: Column) -> String {
    let sizes: BTreeSet<Size> = results.cells.keys().map(|(size, _)| *size).collect();
    let shapes = || Shape::ALL.into_iter().filter(|shape| column.applies_to(*shape));
    let mut table = vec![vec![column.name().to_owned()]];
    table[0].extend(shapes().map(|shape| shape.name().to_owned()));
    for size in sizes {
        let ours = results.cell(size, Shape::Engine, column).and_then(Sample::median);
        let mut row = vec![size.to_string()];
        for shape in shapes() {
            row.push(match results.cell(size, shape, column) {
                Some(sample) => cell(column, shape, sample, ours),
                None => "not run".to_owned(),
            });
        }
        table.push(row);
    }
    markdown(&table)
}

/// The median, for a small change of the engine the 99th percentile too, and how many times ours that is.
fn cell(column: Column, shape: Shape, sample: &Sample, ours: Option<f64>) -> String {
    let shown = |value: f64| if column.is_memory() { memory(value) } else { time(value) };
    let mut text = sample.median().map(shown).unwrap_or_default();
    let small = [Change::OneEndpoint, Change::ServiceAdded, Change::ServiceRemoved].map(Column::Change);
    if shape == Shape::Engine && small.contains(&column) {
        text += &sample
            .quantile(990)
            .map(|p99| format!(", p99 {}", shown(p99)))
            .unwrap_or_default();
    }
    let mut notes = Vec::new();
    if let (Some(median), Some(ours)) = (sample.median(), ours)
        && shape != Shape::Engine
        && ours > 0.0
    {
        notes.push(ratio(median / ours));
    }
    match sample.runs() {
        // One process is enough for the loader's memory of ours: it is the same to the page.
        runs if runs < ENOUGH_RUNS && column != Column::LoaderMemory => notes.push(plural(runs, "run")),
        _ => {}
    }
    if notes.is_empty() {
        text
    } else {
        format!("{text} ({})", notes.join(", "))
    }
}

/// Where the engine's full load goes.
fn shares(results: &Results) -> String {
    let head = [
        "nftfleet's full load",
        "elements",
        "in user space",
        "in the kernel",
        "kernel's share",
        "elements a second",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for (size, shares) in &results.shares {
        let (Some(whole), Some(kernel)) = (shares.whole.median(), shares.kernel.median()) else {
            continue;
        };
        let elements = u32::try_from(shares.elements).expect("fewer than four billion elements");
        let rate = f64::from(elements) / whole;
        table.push(vec![
            size.to_string(),
            grouped(elements),
            time((whole - kernel).max(0.0)),
            time(kernel),
            format!("{:.0} %", 100.0 * kernel / whole),
            format!("{:.2} million", rate / 1e6),
        ]);
    }
    markdown(&table)
}

/// First packets, with ratios to one DNAT rule.
fn latency(results: &Results) -> String {
    let head = [
        "TCP connect, µs",
        "Service",
        "p1",
        "p50",
        "p99",
        "p99.9",
        "p50 to one rule",
        "p99 to one rule",
        "connections",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let one_rule = results
        .latency
        .iter()
        .find(|latency| latency.subject == "one DNAT rule");
    let against = |per_mille| one_rule.and_then(|latency| latency.connect.quantile(per_mille));
    for latency in &results.latency {
        let micros = |per_mille| latency.connect.quantile(per_mille).map_or(0.0, |seconds| seconds * 1e6);
        let mut row = vec![latency.subject.clone(), latency.service.to_owned()];
        row.extend([10, 500, 990, 999].map(|per_mille| format!("{:.1}", micros(per_mille))));
        row.extend([500, 990].map(|per_mille| {
            let value = latency.connect.quantile(per_mille);
            let both = value.zip(against(per_mille));
            both.map(|(value, one)| format!("{:.2}", value / one))
                .unwrap_or_default()
        }));
        row.push(grouped(u32::try_from(latency.connect.runs()).expect("few connections")));
        table.push(row);
    }
    markdown(&table)
}

/// Established flows.
fn throughput(results: &Results) -> String {
    let head = ["established TCP stream", "Gbit/s", "to no rules", "streams"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let first = results.throughput.first().and_then(|none| none.rate.median());
    for throughput in &results.throughput {
        let Some(rate) = throughput.rate.median() else { continue };
        table.push(vec![
            throughput.subject.clone(),
            format!("{:.1}", rate * 8.0 / 1e9),
            first.map(|first| format!("{:.2}", rate / first)).unwrap_or_default(),
            throughput.rate.runs().to_string(),
        ]);
    }
    markdown(&table)
}

/// Seconds with three digits that mean something.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

fn memory(kib: f64) -> String {
    match kib {
        k if k >= 10.0 * 1024.0 => format!("{:.0} MiB", k / 1024.0),
        k => format!("{:.1} MiB", k / 1024.0),
    }
}

fn ratio(times: f64) -> String {
    if times >= 10.0 {
        format!("{times:.0}x")
    } else {
        format!("{times:.1}x")
    }
}

fn plural(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// A table whose first row is its head, in columns of even width.
fn markdown(table: &[Vec<String>]) -> String {
    let width = |column: usize| {
        table
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
    let (head, rows) = table.split_first().expect("a table with a head");
    line(head) + &line(&rule) + &rows.iter().map(line).collect::<String>()
}
