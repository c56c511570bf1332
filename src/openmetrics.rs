//! Numbers as text for Prometheus and its kin: how families of series are written, whatever they count.
//!
//! Two forms: OpenMetrics 1.0 and the classic format 0.0.4. Names and labels are the callers'; here
//! they get their suffixes, their unit and their escapes.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use crate::histogram::HistogramSnapshot;

/// Which text it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The classic format, 0.0.4.
    Prometheus,
}

/// What the series of a family are.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Gauge,
    Counter,
    Histogram,
    Summary,
    /// What does not change, as labels of a one.
    #[cfg(feature = "server")]
    Info,
}

impl Kind {
    /// What the samples of one number are called beyond their family.
    fn suffix(self) -> &'static str {
        match self {
            Kind::Counter => "_total",
            #[cfg(feature = "server")]
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram | Kind::Summary => "",
        }
    }
}

/// The text so far.
pub(crate) struct Text {
    out: String,
    form: Form,
}

/// One family of series, while it is written.
pub(crate) struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    kind: Kind,
}

/// Labels of a series: names and values.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    pub(crate) fn new(form: Form) -> Text {
        Text { out: String::new(), form }
    }

    /// The whole text.
    pub(crate) fn finish(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    /// Begins a family; its name without a suffix, but with its unit.
    pub(crate) fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> Family<'_> {
        let open = self.form == Form::OpenMetrics;
        // The classic form calls a family as its samples are called.
        let suffix = if open { "" } else { kind.suffix() };
        let word = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
            #[cfg(feature = "server")]
            Kind::Info if open => "info",
            #[cfg(feature = "server")]
            Kind::Info => "gauge",
        };
        let _ = writeln!(self.out, "# TYPE {name}{suffix} {word}");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
        if let Some(unit) = unit.filter(|_| open) {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}");
        Family { text: self, name, kind }
    }
}

impl Family<'_> {
    /// A series that is one number.
    pub(crate) fn value(&mut self, labels: Labels<'_>, value: impl Display) {
        self.sample(self.kind.suffix(), labels, value);
    }

    pub(crate) fn sample(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        let out = &mut self.text.out;
        let _ = write!(out, "{}{suffix}", self.name);
        let mut before = '{';
        for (label, value) in labels {
            let _ = write!(out, "{before}{label}=\"{}\"", escaped(value));
            before = ',';
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(out, "{end} {value}");
    }

    pub(crate) fn histogram(&mut self, labels: Labels<'_>, histogram: &HistogramSnapshot) {
        for bucket in &histogram.buckets {
            self.bucket(labels, &float(bucket.at_most), bucket.count);
        }
        self.bucket(labels, "+Inf", histogram.count);
        self.sample("_sum", labels, float(histogram.sum));
        self.sample("_count", labels, histogram.count);
    }

    fn bucket(&mut self, labels: Labels<'_>, at_most: &str, count: u64) {
        self.sample("_bucket", &[labels, &[("le", at_most)]].concat(), count);
    }
}

/// Seconds, written as a float also where they are whole.
pub(crate) fn float(time: Duration) -> String {
    let text = time.as_secs_f64().to_string();
    if text.contains('.') { text } else { text + ".0" }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn whole_seconds_are_floats_too() {
        assert_eq!(float(Duration::from_secs(100)), "100.0");
        assert_eq!(float(Duration::from_micros(2)), "0.000002");
    }

    #[test]
    fn a_series_without_labels_has_no_braces() {
        let mut text = Text::new(Form::Prometheus);
        let mut family = text.family(Kind::Counter, "a", "Help.");
        family.value(&[], 1);
        family.value(&[("b", "c"), ("d", "e")], 2);
        let expected =
            "# TYPE a_total counter\n# HELP a_total Help.\na_total 1\na_total{b=\"c\",d=\"e\"} 2\n";
        assert_eq!(text.finish(), expected);
    }
}
