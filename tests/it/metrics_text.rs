//! Text for Prometheus and its kin, read by a strict parser.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One family of series.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) unit: Option<String>,
    help: bool,
    /// Name, labels, value.
    pub(crate) samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads OpenMetrics text as its specification asks; panics at what it forbids.
pub(crate) fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with("# EOF\n"), "no end: {}", &text[text.len().saturating_sub(80)..]);
    let body = text.strip_suffix("# EOF\n").unwrap();
    assert!(!body.contains("# EOF"), "one end only");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        assert!(!line.is_empty(), "an empty line");
        if let Some(comment) = line.strip_prefix("# ") {
            let (word, rest) = comment.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            if word == "TYPE" {
                assert!(!families.contains_key(name), "{name} stands in two places");
                name.clone_into(&mut current);
            }
            assert_eq!(name, current, "what belongs to a family stands with it");
            let family = families.entry(current.clone()).or_default();
            match word {
                "TYPE" => value.clone_into(&mut family.kind),
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{value}")), "{name} ends with its unit {value}");
                    family.unit = Some(value.to_owned());
                }
                "HELP" => family.help = true,
                other => panic!("{other}?"),
            }
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let (labels, value) = parse_labels(rest);
        assert!(seen.insert((name.to_owned(), labels.clone())), "twice: {line}");
        let suffix = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{name} in {current}"));
        let family = families.get_mut(&current).unwrap();
        let allowed: &[&str] = match family.kind.as_str() {
            "gauge" => &[""],
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["_sum", "_count"],
            "info" => &["_info"],
            other => panic!("{other}?"),
        };
        assert!(allowed.contains(&suffix), "{name} in a {}", family.kind);
        assert!(value >= 0.0);
        family.samples.push((name.to_owned(), labels, value));
    }
    families
}

/// `{name="value",...} number`, with escapes, or the number alone.
fn parse_labels(text: &str) -> (BTreeMap<String, String>, f64) {
    let mut labels = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return (labels, text.strip_prefix(' ').expect("a value").parse().unwrap());
    };
    loop {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{name}");
        let (mut value, mut characters) = (String::new(), after.char_indices());
        let end = loop {
            match characters.next().expect("the value ends") {
                (at, '"') => break at,
                (_, '\\') => match characters.next().unwrap().1 {
                    'n' => value.push('\n'),
                    escaped @ ('\\' | '"') => value.push(escaped),
                    other => panic!("\\{other}"),
                },
                (_, other) => value.push(other),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} twice");
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, rest.strip_prefix("} ").unwrap().parse().unwrap()),
        }
    }
}

impl Family {
    /// It has its help and its unit, and histograms add up.
    pub(crate) fn is_complete(&self, name: &str) {
        assert!(self.help, "{name} has no help");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit));
        assert_eq!(self.unit.as_deref(), unit, "{name}");
        if self.kind == "histogram" {
            self.adds_up(name);
        }
    }

    /// What its samples are called, as far as there is one name.
    pub(crate) fn sampled(&self, name: &str) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        format!("{name}{suffix}")
    }

    /// Each of its histograms.
    fn adds_up(&self, name: &str) {
        let without_bound = |labels: &BTreeMap<String, String>| {
            let mut labels = labels.clone();
            labels.remove("le");
            labels
        };
        let series: BTreeSet<_> = self.samples.iter().map(|(_, labels, _)| without_bound(labels)).collect();
        for labels in series {
            let of = |suffix: &str| {
                let name = format!("{name}{suffix}");
                let fits = |sample: &&(String, BTreeMap<String, String>, f64)| {
                    sample.0 == name && without_bound(&sample.1) == labels
                };
                self.samples.iter().filter(fits).collect::<Vec<_>>()
            };
            let buckets = of("_bucket");
            let bounds: Vec<f64> =
                buckets.iter().map(|(_, labels, _)| labels["le"].parse().unwrap()).collect();
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {bounds:?}");
            assert_eq!(bounds.last(), Some(&f64::INFINITY));
            assert!(buckets.windows(2).all(|pair| pair[0].2 <= pair[1].2), "{name}: buckets add up");
            assert!((buckets.last().unwrap().2 - of("_count")[0].2).abs() < 1e-9);
            assert_eq!(of("_sum").len(), 1);
        }
    }
}

/// Fails if a page names a series with such a beginning that is not there.
pub(crate) fn names_only_what_there_is(
    page: &Path,
    beginnings: &[&str],
    families: &BTreeMap<String, Family>,
) {
    let suffixes = ["", "_total", "_info", "_bucket", "_sum", "_count"];
    let text = fs::read_to_string(page).unwrap();
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    for word in words.filter(|word| beginnings.iter().any(|beginning| word.starts_with(beginning))) {
        let mut names = suffixes.iter().filter_map(|suffix| word.strip_suffix(suffix));
        assert!(
            names.any(|name| families.contains_key(name)),
            "{} speaks of {word}, which is not there",
            page.display()
        );
    }
}
