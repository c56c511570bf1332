//! Rows of figures, their targets, and the two forms they are printed in.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::measure::Samples;

/// One figure, beside what the same run measured for its floor.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) n: usize,
    pub(super) floor: Option<f64>,
    pub(super) ratio: Option<f64>,
    /// What else the table says of it.
    pub(super) note: Option<String>,
}

/// What a row has to reach.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    P50AtMost(f64),
    P50AtLeast(f64),
    P99AtMost(f64),
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

impl Row {
    /// Median and 99th percentile of samples; beside the floor's median, if there is a floor.
    pub(super) fn of(name: &'static str, unit: &'static str, ours: &Samples, floor: Option<&Samples>) -> Row {
        let mut row = Row::empty(name, unit);
        row.p50 = ours.quantile(0.5);
        row.p99 = ours.quantile(0.99);
        row.n = ours.len();
        row.floor = floor.and_then(|floor| floor.quantile(0.5));
        row.ratio = row.p50.zip(row.floor).map(|(ours, floor)| ours / floor);
        row
    }

    /// A figure without a distribution, such as a rate.
    pub(super) fn figure(name: &'static str, unit: &'static str, value: f64, n: usize) -> Row {
        Row { p50: Some(value), n, ..Row::empty(name, unit) }
    }

    /// A row of nulls: what could not be measured.
    pub(super) fn empty(name: &'static str, unit: &'static str) -> Row {
        Row { name, unit, p50: None, p99: None, n: 0, floor: None, ratio: None, note: None }
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Row {
        self.note = Some(note.into());
        self
    }

    fn json(&self, suite: &str) -> Value {
        json!({
            "suite": suite, "name": self.name, "unit": self.unit, "p50": rounded(self.p50),
            "p99": rounded(self.p99), "n": self.n, "floor": rounded(self.floor), "ratio": rounded(self.ratio),
        })
    }
}

impl Target {
    fn is_met(self, row: &Row) -> Option<bool> {
        match self {
            Target::P50AtMost(limit) => row.p50.map(|p50| p50 <= limit),
            Target::P50AtLeast(limit) => row.p50.map(|p50| p50 >= limit),
            Target::P99AtMost(limit) => row.p99.map(|p99| p99 <= limit),
            Target::RatioAtMost(limit) => row.ratio.map(|ratio| ratio <= limit),
            Target::RatioAtLeast(limit) => row.ratio.map(|ratio| ratio >= limit),
        }
    }

    fn words(self) -> String {
        match self {
            Target::P50AtMost(limit) => format!("p50 ≤ {limit}"),
            Target::P50AtLeast(limit) => format!("p50 ≥ {limit}"),
            Target::P99AtMost(limit) => format!("p99 ≤ {limit}"),
            Target::RatioAtMost(limit) => format!("≤ {limit} ×"),
            Target::RatioAtLeast(limit) => format!("≥ {limit} ×"),
        }
    }
}

/// The target of a row: `docs/performance.md` lists them.
fn target(suite: &str, name: &str) -> Option<Target> {
    use Target::{P50AtLeast, P50AtMost, P99AtMost, RatioAtLeast, RatioAtMost};
    #[expect(clippy::match_same_arms, reason = "in the order of the tables")]
    Some(match (suite, name) {
        ("session", "execute_roundtrip") => RatioAtMost(1.2),
        ("session", "execute_roundtrip_cached") => RatioAtMost(1.8),
        ("session", "cold_ready") => RatioAtMost(1.1),
        ("session", "cold_first_answer") => RatioAtMost(1.4),
        ("session", "interrupt_busy_loop") => P50AtMost(500.0),
        ("session", "output_100mib") => RatioAtLeast(1.0),
        ("session", "idle_death_to_flag") => P99AtMost(2.0),
        ("session", "idle_session_host_bytes") => P50AtMost(32.0 * 1024.0),
        ("session", "host_killed_to_gone") => P50AtMost(100.0),
        ("session", "ignoring_code_replaced") => P50AtMost(10.0),
        ("pool", "acquire_release") => P50AtMost(50.0),
        ("pool", "contended_16x8" | "acquire_release_1000_idle") => RatioAtMost(1.2),
        ("pool", "fairness_16x8") => P50AtMost(1.05),
        ("pool", "handoff" | "timeout_overshoot") | ("scope", "kill_to_ended") => RatioAtMost(1.5),
        ("pool", "throughput_16x8") => RatioAtLeast(0.8),
        ("pool", "throughput_16x8_reset") => RatioAtLeast(0.5),
        ("scope", "kill_to_ended_uninterruptible") => P50AtMost(20.0),
        ("scope", "map_overhead") => P50AtMost(10.0),
        ("template", "ready_bare" | "ready_numpy" | "ready_pandas") => RatioAtMost(1.3),
        ("template", "cold_pandas_over_template") => P50AtLeast(80.0),
        ("template", "fresh_cycles") => P50AtLeast(500.0),
        ("template", "uss_bare_kib") => P50AtMost(1024.0),
        ("template", "uss_pandas_kib") => P50AtMost(2048.0),
        ("tracker", "kill_to_callback_1000" | "list_page_1m" | "restart_1m") => P50AtMost(5.0),
        ("tracker", "rss_1m_mib") => P50AtMost(400.0),
        ("tracker", "heartbeats") => RatioAtLeast(0.7),
        ("tracker", "parked_polls_10k_bytes") => P50AtMost(4096.0),
        _ => return None,
    })
}

/// One JSON object, without a line end.
pub(super) fn json_line(suite: &str, row: &Row) -> String {
    row.json(suite).to_string()
}

/// The head of the table.
pub(super) fn table_head() -> String {
    format!(
        "{:<30} {:>7} {:>11} {:>11} {:>8} {:>11} {:>7}  {}",
        "row", "unit", "p50", "p99", "n", "floor", "ratio", "target"
    )
}

/// One line of the table.
pub(super) fn table_line(suite: &str, row: &Row) -> String {
    let mut line = format!(
        "{:<30} {:>7} {:>11} {:>11} {:>8} {:>11} {:>7}",
        row.name,
        row.unit,
        human(row.p50),
        human(row.p99),
        row.n,
        human(row.floor),
        row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
    );
    if let Some(target) = target(suite, row.name) {
        let met = match target.is_met(row) {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let _ = write!(line, "  {} {met}", target.words());
    }
    if let Some(note) = &row.note {
        let _ = write!(line, " ({note})");
    }
    line
}

/// Four significant digits or whole numbers: more would be noise.
fn rounded(value: Option<f64>) -> Option<f64> {
    value.map(|value| if value.abs() >= 1000.0 { value.round() } else { (value * 1000.0).round() / 1000.0 })
}

fn human(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_eight_documented_keys() {
        let row = Row::empty("handoff", "µs").json("pool");
        let keys: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["floor", "n", "name", "p50", "p99", "ratio", "suite", "unit"]);
        assert!(row["p50"].is_null());
    }

    #[test]
    fn a_ratio_below_its_target_is_marked() {
        let row = Row { ratio: Some(0.7), p50: Some(1.0), ..Row::empty("throughput_16x8", "ops/s") };
        assert!(table_line("pool", &row).contains("MISSED"));
    }
}
