//! The text forms of a pool's numbers, read by a strict parser, and the page that defines them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use remuda::PoolInfo;

use crate::metrics_text::{names_only_what_there_is, parse};
use crate::support::{installed, isolated, pool};

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
            family.is_complete(name);
            assert!(family.samples.iter().all(|(_, labels, _)| labels.contains_key("pool")), "{name}");
        }
    }
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
        let guide = fs::read_to_string(root.join("guide/metrics.md")).unwrap();
        for (name, family) in &families {
            let full = format!("`{}`", family.sampled(name));
            assert!(guide.contains(&full), "docs/guide/metrics.md does not define {full}");
        }
        // The family that is there with a limit only.
        assert!(families.contains_key("remuda_pool_memory_limit_bytes"));
        for page in ["guide/metrics.md", "guide/sizing.md", "alerts/remuda-pool.rules.yml"] {
            names_only_what_there_is(&root.join(page), &["remuda_pool_", "remuda_exec"], &families);
        }
    }
}

isolated! {
    fn the_alert_rules_are_what_prometheus_reads() {
        if !installed("promtool") {
            return;
        }
        for rules in ["remuda-pool.rules.yml", "remuda-tracker.rules.yml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts").join(rules);
            let output = Command::new("promtool").args(["check", "rules"]).arg(path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
