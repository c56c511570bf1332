//! The text forms of a pool's numbers, read by a strict parser, and the page that defines them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use remuda::PoolInfo;

use crate::support::{isolated, pool};

/// One family of series.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: Option<String>,
    help: bool,
    /// Name, labels, value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads OpenMetrics text as its specification asks; panics at what it forbids.
fn parse(text: &str) -> BTreeMap<String, Family> {
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
            other => panic!("{other}?"),
        };
        assert!(allowed.contains(&suffix), "{name} in a {}", family.kind);
        assert!(value >= 0.0);
        family.samples.push((name.to_owned(), labels, value));
    }
    families
}

/// `{name="value",...} number`, with escapes.
fn parse_labels(text: &str) -> (BTreeMap<String, String>, f64) {
    let mut labels = BTreeMap::new();
    let mut rest = text.strip_prefix('{').expect("every series has labels");
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

fn info() -> PoolInfo {
    let pool = pool().name("a \"name\"\\ of\nthree").min_idle(1).max_sessions(2).warm_import("json");
    let pool = pool.start().unwrap();
    let mut session = pool.acquire().unwrap();
    session.execute("1").unwrap();
    session.execute("1 / 0").unwrap();
    session.discard();
    assert!(pool.acquire_timeout(Duration::from_secs(60)).is_ok());
    pool.info()
}

isolated! {
    fn the_text_is_open_metrics_and_says_what_info_says() {
        let info = info();
        let families = parse(&info.open_metrics());
        let value = |family: &str, wanted: &[(&str, &str)]| {
            let samples = &families.get(family).unwrap_or_else(|| panic!("no {family}")).samples;
            let fits = |labels: &BTreeMap<String, String>| {
                labels["pool"] == info.name && wanted.iter().all(|(name, value)| labels[*name] == *value)
            };
            let found: Vec<f64> =
                samples.iter().filter(|(_, labels, _)| fits(labels)).map(|(_, _, value)| *value).collect();
            assert_eq!(found.len(), 1, "{family} {wanted:?}: {samples:?}");
            found[0]
        };
        let near = |left: f64, right: f64| (left - right).abs() < 1e-9;
        assert!(near(value("remuda_pool_sessions_limit", &[("bound", "max")]), 2.0));
        let hits = value("remuda_pool_acquires", &[("outcome", "hit")]);
        let misses = value("remuda_pool_acquires", &[("outcome", "miss")]);
        assert!(near(hits + misses, 2.0));
        assert!(near(value("remuda_executions", &[("outcome", "completed")]), 1.0));
        assert!(near(value("remuda_executions", &[("outcome", "failed")]), 1.0));
        assert!(near(value("remuda_pool_sessions_removed", &[("reason", "discarded")]), 1.0));
        assert!(near(value("remuda_pool_sessions_removed", &[("reason", "dead")]), 0.0), "from the start, with zero");
        assert!(near(value("remuda_pool_breaker_state", &[("state", "closed")]), 1.0));
        assert!(near(value("remuda_pool_warm_import_failures", &[("module", "json")]), 0.0));
        for (name, family) in &families {
            assert!(family.help, "{name} has no help");
            let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit));
            assert_eq!(family.unit.as_deref(), unit, "{name}");
            if family.kind == "histogram" {
                histogram_adds_up(name, family);
            }
        }
    }
}

fn histogram_adds_up(name: &str, family: &Family) {
    let of = |suffix: &str| {
        let name = format!("{name}{suffix}");
        family.samples.iter().filter(move |sample| sample.0 == name).collect::<Vec<_>>()
    };
    let buckets = of("_bucket");
    let bounds: Vec<f64> = buckets.iter().map(|(_, labels, _)| labels["le"].parse().unwrap()).collect();
    assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {bounds:?}");
    assert_eq!(bounds.last(), Some(&f64::INFINITY));
    assert!(buckets.windows(2).all(|pair| pair[0].2 <= pair[1].2), "{name}: buckets add up");
    assert!((buckets.last().unwrap().2 - of("_count")[0].2).abs() < 1e-9);
    assert_eq!(of("_sum").len(), 1);
}

isolated! {
    fn two_pools_stand_in_one_text_and_the_classic_form_has_no_end_mark() {
        let one = info();
        let two = pool().name("two").min_idle(0).start().unwrap().info();
        let families = parse(&PoolInfo::open_metrics_of(&[one.clone(), two.clone()]));
        let pools: BTreeSet<&String> =
            families["remuda_pool_waiters"].samples.iter().map(|(_, labels, _)| &labels["pool"]).collect();
        assert_eq!(pools, BTreeSet::from([&one.name, &two.name]));
        let classic = PoolInfo::prometheus_of(&[one, two]);
        assert!(classic.contains("# TYPE remuda_pool_acquires_total counter\n"), "{classic}");
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"));
    }
}

isolated! {
    fn the_guide_and_the_alerts_name_what_there_is() {
        let families = parse(&info().open_metrics());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let sampled = |family: &Family| if family.kind == "counter" { "_total" } else { "" };
        let guide = fs::read_to_string(root.join("guide/metrics.md")).unwrap();
        for (name, family) in &families {
            let full = format!("`{name}{}`", sampled(family));
            assert!(guide.contains(&full), "docs/guide/metrics.md does not define {full}");
        }
        // The family that is there with a limit only.
        assert!(families.contains_key("remuda_pool_memory_limit_bytes"));
        let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
        for page in ["guide/metrics.md", "guide/sizing.md", "alerts/remuda-pool.rules.yml"] {
            let text = fs::read_to_string(root.join(page)).unwrap();
            let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            for word in words.filter(|word| word.starts_with("remuda_pool_") || word.starts_with("remuda_exec")) {
                let known = suffixes.iter().filter_map(|suffix| word.strip_suffix(suffix)).any(|name| families.contains_key(name));
                assert!(known, "{page} speaks of {word}, which is not there");
            }
        }
    }
}
