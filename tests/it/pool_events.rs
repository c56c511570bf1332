//! What a pool tells: to its listener, and to the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use log::kv::{Error as KvError, Key, Value, VisitSource};
use remuda::{Error, PoolConfig, PoolEvent, Removal, Reuse, StartCause, StartWay};

use crate::support::{GENEROUS, ScratchDir, isolated, poll, pool, python};

/// What a listener heard, in order.
type Heard = Arc<Mutex<Vec<PoolEvent>>>;

fn listening(config: PoolConfig) -> (PoolConfig, Heard) {
    let heard = Heard::default();
    let ears = Arc::clone(&heard);
    (config.listener(move |event| ears.lock().unwrap().push(event.clone())), heard)
}

/// The events' names, as in JSON.
fn names(heard: &Heard) -> Vec<String> {
    let heard = heard.lock().unwrap();
    heard.iter().map(|event| serde_json::json!(event)["event"].as_str().unwrap().to_owned()).collect()
}

isolated! {
    fn a_listener_hears_of_a_session_from_its_start_to_its_end() {
        let (config, heard) = listening(pool().min_idle(1).max_sessions(1));
        let pool = config.start().unwrap();
        let session = pool.acquire().unwrap();
        let (id, pid) = (session.id(), session.pid());
        drop(session);
        // Returns once everything is told.
        pool.shutdown(GENEROUS);
        let heard = heard.lock().unwrap();
        let [PoolEvent::Created { session: first, pid: first_pid, time, way, cause, .. }, middle @ .., last] = &heard[..]
        else {
            panic!("{heard:?}")
        };
        assert_eq!((*first, *first_pid, *way, *cause), (id, pid, StartWay::Cold, StartCause::Warmup));
        assert!(*time > Duration::ZERO);
        assert!(middle.iter().any(|event| matches!(event, PoolEvent::Closed)), "{heard:?}");
        match last {
            PoolEvent::Removed { session, reason: Removal::Shutdown, post_mortem, .. } => {
                assert_eq!((*session, post_mortem.pid), (id, pid));
            }
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn a_session_that_dies_is_restarted_and_then_removed_with_its_post_mortem() {
        let (config, heard) = listening(pool().min_idle(1).max_sessions(2));
        let pool = config.start().unwrap();
        let mut session = pool.acquire().unwrap();
        let id = session.id();
        session.execute("import os; os._exit(3)").unwrap();
        drop(session);
        poll(|| names(&heard).contains(&"removed".to_owned()), || format!("{heard:?}"));
        let all = heard.lock().unwrap().clone();
        let restarted = all.iter().position(
            |event| matches!(event, PoolEvent::Restarted { session, reason: Removal::Dead, .. } if *session == id),
        );
        let removed = all.iter().position(|event| match event {
            PoolEvent::Removed { session, post_mortem, .. } => {
                assert_eq!(post_mortem.exit.to_string(), "exit code 3");
                *session == id
            }
            _ => false,
        });
        assert!(restarted.is_some() && restarted < removed, "{all:?}");
    }
}

isolated! {
    fn a_spent_budget_is_told_as_recycling() {
        let (config, heard) = listening(pool().min_idle(1).max_sessions(1).recycle_after_executions(1));
        let pool = config.reuse(Reuse::Keep).start().unwrap();
        let mut first = pool.acquire().unwrap();
        first.execute("1").unwrap();
        thread::scope(|threads| {
            let second = threads.spawn(|| drop(pool.acquire().unwrap()));
            // Before the start that it waits for is wanted.
            poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
            drop(first);
            second.join().unwrap();
        });
        pool.shutdown(GENEROUS);
        let all = heard.lock().unwrap();
        let recycled = all.iter().filter(|event| matches!(event, PoolEvent::Recycled { reason: Removal::Recycled, .. }));
        assert_eq!(recycled.count(), 1, "{all:?}");
        let demanded = all.iter().filter(|event| matches!(event, PoolEvent::Created { cause: StartCause::Demand, .. }));
        assert_eq!(demanded.count(), 1, "the second user waited for the new process: {all:?}");
    }
}

isolated! {
    fn failing_starts_open_the_breaker_and_a_good_one_closes_it() {
        let directory = ScratchDir::new();
        let flag = directory.path().join("flag");
        let code = format!("import os\nif not os.path.exists({:?}): raise RuntimeError('not yet')", flag.display());
        let (config, heard) = listening(pool().min_idle(1).max_sessions(1).pre_warm_on_start(false));
        let pool = config.warmup_code(code.replace('"', "'")).start().unwrap();
        assert!(matches!(pool.acquire(), Err(Error::StartFailing { .. })));
        directory.write("flag", "");
        poll(|| names(&heard).contains(&"breaker_closed".to_owned()), || format!("{heard:?}"));
        pool.shutdown(GENEROUS);
        let all = names(&heard);
        let at = |name: &str| all.iter().position(|event| event == name).unwrap_or_else(|| panic!("no {name}: {all:?}"));
        assert!(at("start_failed") < at("breaker_opened"), "{all:?}");
        assert!(at("breaker_opened") < at("breaker_half_open"), "{all:?}");
        assert!(at("breaker_half_open") < at("created") && at("created") < at("breaker_closed"), "{all:?}");
        assert!(at("refused") < at("breaker_closed"), "{all:?}");
        match &heard.lock().unwrap()[at("breaker_opened")] {
            PoolEvent::BreakerOpened { failures: 1, cause, .. } => assert!(cause.contains("not yet"), "{cause}"),
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn a_template_is_told_of_once_and_its_sessions_say_where_they_come_from() {
        let (config, heard) = listening(pool().template(true).warm_import("json").min_idle(3).max_sessions(3));
        let pool = config.start().unwrap();
        let info = pool.info();
        pool.shutdown(GENEROUS);
        let all = heard.lock().unwrap();
        let templates = all.iter().filter_map(|event| match event {
            PoolEvent::TemplateStarted { pid, .. } => Some(*pid),
            _ => None,
        });
        assert_eq!(templates.collect::<Vec<_>>(), [info.template.as_ref().unwrap().pid.unwrap()], "{all:?}");
        let forked = all.iter().filter(|event| matches!(event, PoolEvent::Created { way: StartWay::Template, .. }));
        assert_eq!(forked.count(), 3, "{all:?}");
        assert_eq!((info.warm_imports.len(), info.warm_imports[0].imports), (1, 1), "the template's, once");
    }
}

isolated! {
    fn a_template_that_cannot_be_one_is_told_with_its_reason() {
        let code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()";
        let (config, heard) = listening(pool().template(true).warmup_code(code).min_idle(2).max_sessions(2));
        config.start().unwrap().shutdown(GENEROUS);
        let all = heard.lock().unwrap();
        let fallen: Vec<&PoolEvent> =
            all.iter().filter(|event| matches!(event, PoolEvent::TemplateFellBack { .. })).collect();
        let [PoolEvent::TemplateFellBack { cause, .. }] = fallen[..] else { panic!("{all:?}") };
        assert!(cause.contains("thread"), "{cause}");
    }
}

isolated! {
    fn a_time_out_is_told_but_not_that_of_callers_that_try_once() {
        let (config, heard) = listening(pool().min_idle(1).max_sessions(1));
        let pool = config.start().unwrap();
        let held = pool.acquire().unwrap();
        assert!(pool.try_acquire().is_err());
        assert!(pool.acquire_timeout(Duration::from_millis(5)).is_err());
        drop(held);
        pool.shutdown(GENEROUS);
        assert_eq!(names(&heard).iter().filter(|name| *name == "acquire_timed_out").count(), 1);
    }
}

isolated! {
    fn a_slow_listener_delays_nobody_and_loses_events_that_are_counted() {
        let (enter, entered) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let heard = Arc::new(AtomicUsize::new(0));
        let ears = Arc::clone(&heard);
        let pool = pool().min_idle(1).max_sessions(1).listener(move |_| {
            enter.send(()).unwrap();
            // Once nobody holds the gate any more, all go through.
            let _ = gate.lock().unwrap().recv();
            ears.fetch_add(1, Ordering::SeqCst);
        });
        let pool = pool.start().unwrap();
        entered.recv().unwrap();
        let held = pool.acquire().unwrap();
        for _ in 0..1_100 {
            assert!(pool.acquire_timeout(Duration::from_nanos(1)).is_err());
        }
        let dropped = pool.info().events_dropped;
        assert_eq!(dropped, 1_100 - 1_024, "1024 wait, one is being told");
        drop(held);
        drop(go);
        pool.shutdown(GENEROUS);
        let dropped = pool.info().events_dropped;
        assert!(heard.load(Ordering::SeqCst) >= 1_025, "what was queued is told: {dropped} dropped");
    }
}

isolated! {
    fn a_listener_that_panics_hears_of_the_next_event_all_the_same() {
        let heard = Arc::new(AtomicUsize::new(0));
        let ears = Arc::clone(&heard);
        let pool = pool().min_idle(2).listener(move |_| {
            ears.fetch_add(1, Ordering::SeqCst);
            panic!("on purpose");
        });
        let pool = pool.start().unwrap();
        drop(pool.acquire().unwrap());
        pool.shutdown(GENEROUS);
        assert!(heard.load(Ordering::SeqCst) >= 5, "two created, closed, two removed");
    }
}

isolated! {
    fn a_listener_may_end_its_pool() {
        let (hand, handle) = mpsc::channel::<remuda::SessionPool>();
        let handle = Mutex::new(handle);
        let (tell, told) = mpsc::channel();
        let pool = pool().min_idle(1).max_sessions(1).listener(move |event| {
            if matches!(event, PoolEvent::AcquireTimedOut { .. }) {
                handle.lock().unwrap().recv().unwrap().terminate();
            }
            if matches!(event, PoolEvent::Removed { .. }) {
                let _ = tell.send(());
            }
        });
        let pool = pool.start().unwrap();
        let held = pool.acquire().unwrap();
        hand.send(pool.clone()).unwrap();
        assert!(pool.acquire_timeout(Duration::from_millis(1)).is_err());
        poll(|| !pool.is_open(), || "the pool is open".to_owned());
        drop(held);
        told.recv_timeout(GENEROUS).expect("the end of the session is told");
    }
}

/// One log line: its level, message and keys.
#[derive(Clone, Debug)]
struct Line {
    level: log::Level,
    message: String,
    keys: BTreeMap<String, String>,
}

/// What is said under one target.
struct Log(&'static str, Mutex<Vec<Line>>);

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with(self.0)
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Keys(BTreeMap<String, String>);
        impl<'kvs> VisitSource<'kvs> for Keys {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
                self.0.insert(key.to_string(), value.to_string());
                Ok(())
            }
        }
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut keys = Keys(BTreeMap::new());
        record.key_values().visit(&mut keys).unwrap();
        let line = Line { level: record.level(), message: record.args().to_string(), keys: keys.0 };
        self.1.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

impl Log {
    fn install(target: &'static str) -> &'static Log {
        let log: &'static Log = Box::leak(Box::new(Log(target, Mutex::default())));
        log::set_logger(log).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        log
    }

    fn lines(&self, message: &str) -> Vec<Line> {
        self.1.lock().unwrap().iter().filter(|line| line.message == message).cloned().collect()
    }

    fn one(&self, message: &str) -> Line {
        let lines = self.lines(message);
        assert!(!lines.is_empty(), "no line says {message:?}: {:#?}", self.1.lock().unwrap());
        lines[0].clone()
    }
}

isolated! {
    fn what_sessions_log_has_constant_messages_and_key_values_too() {
        let log = Log::install("remuda::session");
        let mut session = python().warm_import("no_such_module").start().unwrap();
        let (id, pid) = (session.id().to_string(), session.pid().to_string());
        let failed = log.one("a warm import failed");
        assert_eq!(failed.level, log::Level::Warn);
        assert_eq!([&failed.keys["session"], &failed.keys["module"]], [&id, "no_such_module"]);
        assert!(failed.keys["error"].contains("ModuleNotFoundError"), "{failed:?}");
        let started = log.one("session started");
        assert!(started.keys["elapsed_ms"].parse::<f64>().unwrap() > 0.0);
        session.execute("import os; os._exit(3)").unwrap();
        let died = log.one("session died");
        assert_eq!([&died.keys["session"], &died.keys["pid"], &died.keys["exit"]], [&id, &pid, "exit code 3"]);
    }
}

/// Whoever says this stops there for a while.
struct Stops {
    message: &'static str,
    before: Barrier,
    after: Barrier,
}

impl log::Log for Stops {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string() == self.message {
            self.before.wait();
            self.after.wait();
        }
    }

    fn flush(&self) {}
}

fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().any(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
}

isolated! {
    fn of_two_who_end_a_pool_the_second_does_not_keep_the_end_from_the_listener() {
        let stops = Stops { message: "pool closed", before: Barrier::new(2), after: Barrier::new(2) };
        let stops: &'static Stops = Box::leak(Box::new(stops));
        log::set_logger(stops).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        let (config, heard) = listening(pool().min_idle(0).max_sessions(1));
        let pool = config.start().unwrap();
        thread::scope(|threads| {
            threads.spawn(|| pool.terminate());
            stops.before.wait();
            threads.spawn(|| pool.terminate());
            // Whoever comes second need not wait for the first one to end the telling.
            poll(|| !has_thread("remuda-events"), || "the telling does not end".to_owned());
            stops.after.wait();
        });
        assert_eq!(names(&heard), ["closed"]);
    }
}

isolated! {
    fn log_lines_have_constant_messages_and_key_values() {
        let log = Log::install("remuda::pool");
        let pool = pool().name("scores").min_idle(1).max_sessions(3).recycle_after_executions(2);
        let pool = pool.session_timeout(Duration::from_millis(1)).start().unwrap();
        // Warm-up and creation.
        assert_eq!(log.one("starting a session").keys["pool"], "scores");
        let mut session = pool.acquire().unwrap();
        let (id, pid) = (session.id().to_string(), session.pid().to_string());
        let created = log.one("session created");
        assert_eq!(created.level, log::Level::Info);
        assert_eq!([&created.keys["pool"], &created.keys["session"], &created.keys["pid"]], ["scores", &id, &pid]);
        assert_eq!([&created.keys["way"], &created.keys["cause"]], ["cold", "warmup"]);
        assert!(created.keys["elapsed_ms"].parse::<f64>().unwrap() > 0.0);
        // Recycling and removal.
        session.execute("1").unwrap();
        session.execute("2").unwrap();
        drop(session);
        // Its replacement may be one too many, and leave before this one has.
        let of_this = || log.lines("session removed").into_iter().find(|line| line.keys["session"] == id);
        poll(|| of_this().is_some(), || "it is not removed".to_owned());
        let recycled = log.one("session recycled");
        assert_eq!([&recycled.keys["session"], &recycled.keys["reason"]], [&id, "recycled"]);
        let removed = of_this().unwrap();
        assert_eq!([&removed.keys["pool"], &removed.keys["pid"], &removed.keys["reason"]], ["scores", &pid, "recycled"]);
        assert!(removed.keys.contains_key("elapsed_ms") && removed.keys.contains_key("exit"), "{removed:?}");
        // Restart.
        let mut session = pool.acquire().unwrap();
        let id = session.id().to_string();
        session.execute("import os; os._exit(1)").unwrap();
        drop(session);
        let restarted = log.one("session restarted");
        assert_eq!([&restarted.keys["session"], &restarted.keys["reason"]], [&id, "dead"]);
        // Health: two idle ones beyond the watermark leave.
        let held: Vec<_> = (0..3).map(|_| pool.acquire().unwrap()).collect();
        drop(held);
        poll(|| !log.lines("health pass removed sessions").is_empty(), || format!("{:?}", pool.metrics()));
        let health = log.one("health pass removed sessions");
        assert!(health.keys["removed"].parse::<u32>().unwrap() >= 1);
        poll(
            || log.lines("session removed").iter().any(|line| line.keys["reason"] == "idle"),
            || format!("{:?}", log.lines("session removed")),
        );
        pool.shutdown(GENEROUS);
        assert_eq!(log.one("pool closed").keys["pool"], "scores");
        let lines = log.1.lock().unwrap();
        assert!(lines.iter().all(|line| line.keys["pool"] == "scores"), "{lines:#?}");
    }
}

isolated! {
    fn failing_starts_warn_once_and_not_at_every_attempt() {
        let log = Log::install("remuda::pool");
        let pool = pool().min_idle(1).pre_warm_on_start(false).warmup_code("raise RuntimeError('broken')");
        let pool = pool.start().unwrap();
        assert!(pool.ensure_min_sessions().is_err());
        poll(|| pool.info().breaker.failures >= 2, || format!("{:?}", pool.info().breaker));
        pool.shutdown(GENEROUS);
        let lines = log.lines("sessions cannot be started");
        assert!(lines.len() >= 2, "{lines:?}");
        let warnings = lines.iter().filter(|line| line.level == log::Level::Warn);
        assert_eq!(warnings.count(), 1, "{lines:?}");
        assert!(lines[0].keys["reason"].contains("broken"), "{lines:?}");
    }
}
