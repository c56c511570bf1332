//! Node sessions: warm-up, reset, inspection, pools.

use remuda::{Error, Outcome, Request, Reuse, Runtime, Session, SessionPool};
use serde_json::json;

use crate::node_basics::{config, session, value};
use crate::support::{GENEROUS, isolated};

isolated! {
    fn the_warm_up_reports_its_imports() {
        let Some(config) = config() else { return };
        let mut session = config.clone().warm_import("zlib").warm_import("no-such-module").warmup_code("const ready = 5").start().unwrap();
        let imports = &session.warm_report().imports;
        assert_eq!((imports[0].module.as_str(), &imports[0].error), ("zlib", &None));
        assert!(imports[1].error.as_ref().is_some_and(|error| error.contains("Cannot find module")), "{imports:?}");
        assert_eq!(value(&mut session, "ready"), 5);
        match config.warmup_code("throw new TypeError('cold')").start() {
            Err(Error::WarmUp { message, .. }) => assert!(message.contains("cold"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

isolated! {
    fn names_and_fingerprint_tell_what_a_user_left() {
        let Some(config) = config() else { return };
        let mut session = config.warmup_code("const base = 1; globalThis.shared = 'abc'").start().unwrap();
        assert!(session.fingerprint().unwrap().is_clean(), "{:?}", session.fingerprint());
        session
            .execute("const mine = new Map(); var old = Buffer.alloc(9); function f() {} class K {} process.env.LEFT = '1'; process.chdir('/'); const fd = require('fs').openSync('/etc/passwd'); 1")
            .unwrap();
        let names = session.names().unwrap();
        let of = |name: &str| names.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
        assert_eq!((of("mine").kind.as_str(), of("mine").warm), ("Map", false));
        assert_eq!((of("old").kind.as_str(), of("old").size), ("Buffer", Some(9)));
        assert_eq!((of("f").kind.as_str(), of("K").kind.as_str()), ("function", "class"));
        assert!(of("base").warm && of("shared").warm);
        let left = session.fingerprint().unwrap();
        let mut globals = left.globals.clone();
        globals.sort();
        assert_eq!(globals, ["K", "f", "fd", "mine", "old"]);
        assert_eq!((left.environment, left.cwd.as_deref()), (vec!["LEFT".to_owned()], Some("/")));
        assert!(left.fds.len() == 1 && left.fds[0].ends_with("-> /etc/passwd"), "{:?}", left.fds);
        assert!(session.ping(GENEROUS).unwrap() < GENEROUS);
    }
}

/// A pool of one Node process.
fn pool(reuse: Reuse) -> Option<SessionPool> {
    config()?;
    let builder = SessionPool::builder(Runtime::node("node"))
        .min_idle(1)
        .max_sessions(1)
        .reuse(reuse)
        .reset_timeout(GENEROUS);
    Some(builder.warmup_code("const base = { n: 1 }; globalThis.rounds = 0").start().unwrap())
}

isolated! {
    fn a_pool_gives_the_next_user_the_warm_state_in_the_same_process() {
        let Some(pool) = pool(Reuse::Reset) else { return };
        let mut pids = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let mut session = pool.acquire().unwrap();
            pids.insert(session.execute("process.pid").unwrap().value.as_u64());
            let code = "[base.n, rounds, typeof mine, typeof Array.prototype.mine, process.env.MINE ?? null, process.listenerCount('SIGUSR2'), typeof leaked, In.length]";
            assert_eq!(session.execute(code).unwrap().value, json!([1, 0, "undefined", "undefined", null, 0, "undefined", 3]));
            let code = "base.n = 2; rounds = 9; const mine = 1; Array.prototype.mine = 1; process.env.MINE = '1'; process.on('SIGUSR2', () => {}); \
                        setInterval(() => {}, 1000); setTimeout(() => console.log('late'), 1); process.chdir('/'); \
                        require('vm').runInThisContext('globalThis.leaked = 1'); process.argv.push('x')";
            assert_eq!(session.execute(code).unwrap().outcome, Outcome::Completed);
        }
        assert_eq!(pids.len(), 1, "one process served all");
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn what_a_reset_cannot_undo_costs_the_process() {
        let Some(pool) = pool(Reuse::Reset) else { return };
        let leavings = [
            "const server = require('net').createServer(); await new Promise((done) => server.listen(0, done)); 1",
            "require('child_process').spawn('sleep', ['600']); 1",
            "require('fs').openSync('/etc/passwd')",
            "new (require('worker_threads').Worker)('setInterval(() => {}, 1000)', { eval: true }); 1",
        ];
        let mut last = None;
        for code in leavings {
            let mut session = pool.acquire().unwrap();
            let pid = session.execute("process.pid").unwrap().value.as_u64();
            assert_ne!(pid, last, "the process before was given up");
            last = pid;
            assert_eq!(session.execute(code).unwrap().outcome, Outcome::Completed, "{code}");
        }
        let mut session = pool.acquire().unwrap();
        assert_ne!(session.execute("process.pid").unwrap().value.as_u64(), last);
        drop(session);
        pool.shutdown(GENEROUS);
    }
}

isolated! {
    fn modules_that_were_loaded_after_the_warm_up_are_loaded_anew_after_a_reset() {
        let Some(pool) = pool(Reuse::Reset) else { return };
        let load = "require('fs').writeFileSync('counter.js', 'exports.n = 0'); ++require('./counter.js').n";
        for _ in 0..3 {
            let mut session = pool.acquire().unwrap();
            assert_eq!(session.execute(load).unwrap().value, 1);
            assert_eq!(session.execute(load).unwrap().value, 2);
        }
        pool.shutdown(GENEROUS);
    }
}

fn died(session: &mut Session, code: &str) -> remuda::Execution {
    let run = session.execute(Request::code(code).hard_time_limit(GENEROUS)).unwrap();
    assert!(run.post_mortem.is_some(), "{code}: {:?}", run.outcome);
    run
}

isolated! {
    fn a_full_heap_ends_the_process_and_says_so() {
        let Some(mut session) = session() else { return };
        let code = "require('v8').setFlagsFromString('--max-old-space-size=40'); const hoard = []; for (;;) hoard.push(new Array(1000).fill(hoard.length))";
        let run = died(&mut session, code);
        assert!(run.post_mortem.unwrap().stderr_tail.contains("heap"), "the reason is in the post-mortem");
        session.restart().unwrap();
        assert_eq!(value(&mut session, "1 + 1"), 2);
    }
}

isolated! {
    fn a_shutdown_runs_the_exit_functions() {
        let Some(config) = config() else { return };
        let mut session = config.start().unwrap();
        let path = std::env::temp_dir().join("left");
        session.execute(format!("process.on('exit', () => require('fs').writeFileSync({path:?}, ''))")).unwrap();
        let end = session.shutdown(GENEROUS);
        assert_eq!((end.exit, end.stderr_tail.as_str()), (remuda::Exit::Code(0), ""));
        std::fs::remove_file(path).expect("the exit function made it");
    }
}
