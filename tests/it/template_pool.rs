//! Pools whose sessions come from a template.

use std::collections::BTreeSet;
use std::time::Duration;

use remuda::{CancelToken, Error, Exit, Outcome, PoolConfig, Request, Reuse, SessionPool, TemplateInfo};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{GENEROUS, ScratchDir, is_running, isolated, poll, pool};

const PARENT: &str = "import os\nos.getppid()";

fn config() -> PoolConfig {
    pool().template(true).min_idle(2).max_sessions(4)
}

fn info(pool: &SessionPool) -> TemplateInfo {
    pool.info().template.expect("a pool with a template")
}

isolated! {
    fn the_sessions_of_a_pool_come_from_its_template() {
        let pool = config().warm_import("json").warmup_code("base = 40").start().unwrap();
        let template = info(&pool);
        let pid = template.pid.unwrap();
        assert_eq!((template.cold_starts, template.starts, template.why_not), (0, 1, None));
        let mut leases: Vec<_> = (0..4).map(|_| pool.acquire().unwrap()).collect();
        for session in &mut leases {
            assert_eq!(session.execute(PARENT).unwrap().value, json!(pid));
            assert_eq!(session.execute("base + 2").unwrap().value, 42);
        }
        assert_eq!((pool.info().counts.total, info(&pool).forked), (4, 4), "the template is none of them");
        assert!(pool.info().config.template);
        drop(leases);
        assert_eq!(pool.acquire().unwrap().execute("base").unwrap().value, 40);
        pool.shutdown(GENEROUS);
        assert!(!is_running(pid));
        assert_eq!(info(&pool).pid, None);
    }
}

isolated! {
    fn a_fresh_process_for_each_user_is_a_fork() {
        let pool = config().reuse(Reuse::Fresh).start().unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            let mut session = pool.acquire().unwrap();
            seen.insert(session.pid());
            assert_eq!(session.execute("x = globals().get('x', 0) + 1\nx").unwrap().value, 1);
        }
        assert_eq!(seen.len(), 30);
        let template = info(&pool);
        assert!(template.forked >= 30 && (template.cold_starts, template.starts) == (0, 1), "{template:?}");
    }
}

isolated! {
    fn a_killed_session_is_replaced_by_a_fork_and_remembered_with_its_signal() {
        let pool = config().grace(Duration::from_millis(50)).start().unwrap();
        let stubborn = "import signal\nfor n in signal.SIGINT, signal.SIGIO: signal.signal(n, signal.SIG_IGN)\nprint('go', flush=True)\nwhile True: pass";
        let token = CancelToken::new();
        let request = Request::code(stubborn).cancel_token(&token).on_output(|_, _| token.cancel());
        let run = pool.acquire().unwrap().execute(request).unwrap();
        assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
        poll(|| !pool.info().post_mortems.is_empty() && pool.info().counts.idle >= 2, || format!("{:?}", pool.info()));
        assert_eq!(pool.info().post_mortems[0].exit, Exit::Signal(9));
        assert_eq!(info(&pool).cold_starts, 0);
    }
}

isolated! {
    fn a_template_that_dies_costs_nobody_his_session() {
        let pool = config().start().unwrap();
        let mut held = pool.acquire().unwrap();
        // Nothing is being forked any more.
        poll(|| pool.info().counts.idle == 2, || format!("{:?}", pool.info()));
        let dead = info(&pool).pid.unwrap();
        kill_process(Pid::from_raw(i32::try_from(dead).unwrap()).unwrap(), Signal::KILL).unwrap();
        poll(|| !is_running(dead), || "it lives".to_owned());
        let mut all: Vec<_> = (0..3).map(|_| pool.acquire().unwrap()).collect();
        for session in &mut all {
            assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        }
        assert_eq!(held.execute("1 + 1").unwrap().value, 2);
        let template = info(&pool);
        assert!(template.starts == 2 && template.pid != Some(dead) && template.cold_starts == 0, "{template:?}");
    }
}

isolated! {
    fn a_pool_whose_template_is_unfit_starts_cold_and_says_why() {
        let code = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nbase = 40";
        let pool = config().warmup_code(code).start().unwrap();
        assert_eq!(pool.acquire().unwrap().execute("base + 2").unwrap().value, 42);
        let template = info(&pool);
        assert!(template.why_not.unwrap().contains("2 threads") && template.pid.is_none() && template.cold_starts >= 2);
    }
}

isolated! {
    fn a_failing_warm_up_is_the_error_of_the_pools_start() {
        let error = config().warmup_code("1 / 0").start().unwrap_err();
        assert!(matches!(&error, Error::WarmUp { message, .. } if message.contains("ZeroDivisionError")), "{error}");
    }
}

isolated! {
    fn a_pool_that_ends_under_a_lease_ends_its_template_too() {
        let pool = config().start().unwrap();
        let mut held = pool.acquire().unwrap();
        let pid = info(&pool).pid.unwrap();
        pool.terminate();
        assert!(!is_running(pid) && !is_running(held.pid()));
        assert!(held.execute("1").is_err());
        assert_eq!(held.post_mortem().map(|post_mortem| post_mortem.exit), Some(Exit::Signal(9)));
        drop(held);
        assert!(matches!(pool.acquire(), Err(Error::Closed)));
    }
}

isolated! {
    fn a_pool_that_is_dropped_on_its_own_thread_takes_its_template_along() {
        let pool = config().start().unwrap();
        let pid = info(&pool).pid.unwrap();
        let mut last = Some(pool.clone());
        let job = pool.submit(Request::code("print('go', flush=True)").on_output(move |_, _| drop(last.take())));
        drop(pool);
        let _ = job.wait();
        poll(|| !is_running(pid), || "the template outlives its pool".to_owned());
    }
}

isolated! {
    fn a_pool_that_closes_while_its_template_starts_leaves_nothing() {
        let pool = config().pre_warm_on_start(false).warmup_code("import time\ntime.sleep(600)").start().unwrap();
        assert!(matches!(pool.acquire_timeout(Duration::from_millis(100)), Err(Error::AcquireTimeout { .. })));
        pool.terminate();
        assert_eq!(info(&pool).pid, None);
    }
}

isolated! {
    fn replacing_all_sessions_replaces_what_they_are_made_of() {
        let directory = ScratchDir::new();
        let file = directory.write("value", "1");
        let warmup = format!("value = open({:?}).read()", file.display().to_string());
        let pool = pool().template(true).warmup_code(warmup).min_idle(1).max_sessions(2).start().unwrap();
        assert_eq!(pool.acquire().unwrap().execute("value").unwrap().value, "1");
        directory.write("value", "2");
        pool.recycle_all();
        assert!(pool.wait_recycled(GENEROUS).unwrap());
        assert_eq!(pool.acquire_timeout(GENEROUS).unwrap().execute("value").unwrap().value, "2");
        assert_eq!(pool.info().template.unwrap().starts, 2);
    }
}
