//! Node sessions: limits, cancels, late cancels, the end of the host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use remuda::{CancelToken, Execution, Outcome, Request, Session, TimeLimit};
use serde_json::json;

use crate::node_basics::{config, session, value};
use crate::support::{GENEROUS, doomed, isolated, nothing_outlives_a_killed_host, run_until_killed};

/// Options with a grace that a loaded machine does not exceed.
fn patient() -> Option<Session> {
    Some(config()?.grace(GENEROUS).start().unwrap())
}

/// Cancels when the code has printed its first bytes, so that it is surely running.
fn cancelled_while_running(session: &mut Session, code: &str) -> Execution {
    let token = CancelToken::new();
    let fire = token.clone();
    session.execute(Request::code(code).cancel_token(&token).on_output(move |_, _| fire.cancel())).unwrap()
}

isolated! {
    fn code_of_every_kind_is_interrupted_and_the_session_lives() {
        let Some(mut session) = patient() else { return };
        for code in [
            "console.log('go'); while (true) {}",
            "console.log('go'); for (;;) { try { while (true) {} } catch {} finally {} }",
            "console.log('go'); /(a*)*b/.test('a'.repeat(40))",
            "console.log('go'); await new Promise(() => {})",
            "console.log('go'); await null; while (true) {}",
            "await new Promise((done) => setTimeout(done, 5)); console.log('go'); while (true) {}",
            "setTimeout(() => { console.log('go'); while (true) {} }); await new Promise(() => {})",
            "setImmediate(() => { console.log('go'); while (true) {} }); await new Promise(() => {})",
            "queueMicrotask(() => { console.log('go'); while (true) {} }); await new Promise(() => {})",
            "await require('fs').promises.readFile('/etc/passwd'); console.log('go'); while (true) {}",
            "while (true) console.log('flood')",
            "while (true) { console.log('tick'); await new Promise((done) => setTimeout(done, 1)) }",
            "console.log('go'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
            // The child says when it runs: to one that is about to start, no signal can be sent.
            "require('child_process').execSync('echo go >&2; exec sleep 600', { stdio: 'inherit' })",
            "console.log('go'); await require('timers/promises').setTimeout(600000, 0, { signal: remuda.signal })",
            "console.log('go'); ({ get a() { while (true) {} } })",
            "console.log('go'); const recurse = () => { try { recurse() } catch { recurse() } }; recurse()",
        ] {
            let run = cancelled_while_running(&mut session, code);
            assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "{code}: {:?}", run.error);
            assert!(run.error.is_some(), "{code}");
            let next = session.execute("1 + 1").unwrap();
            assert_eq!((next.outcome, next.value), (Outcome::Completed, json!(2)), "after {code}");
        }
        let run = session.execute(Request::code("while (true) {}").time_limit(Duration::from_millis(20))).unwrap();
        assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        assert_eq!(run.error.unwrap().kind, "Interrupted");
    }
}

isolated! {
    fn calls_inputs_and_warm_ups_are_interrupted_too() {
        let Some(mut session) = patient() else { return };
        session.execute("const spin = () => { console.log('go'); while (true) {} }").unwrap();
        let token = CancelToken::new();
        let fire = token.clone();
        let call: Request<'_> = remuda::Call::new("spin").into();
        let run = session.execute(call.cancel_token(&token).on_output(move |_, _| fire.cancel())).unwrap();
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
        for code in ["await remuda.input()", "remuda.inputSync()"] {
            let token = CancelToken::new();
            let mut prompts = Vec::new();
            let run = session
                .execute(Request::code(code).cancel_token(&token).on_input(|prompt| {
                    prompts.push(prompt);
                    token.cancel();
                }))
                .unwrap();
            assert_eq!(run.outcome, Outcome::Cancelled { killed: false }, "{code}: {:?}", run.error);
            // An answer that comes too late is not the next one's.
            for prompt in prompts {
                prompt.answer("late");
            }
            assert_eq!(value(&mut session, "1 + 1"), 2);
        }
        let endless = config().unwrap().warmup_code("while (true) {}").warmup_time_limit(Duration::from_millis(50)).start();
        assert!(endless.is_err());
    }
}

isolated! {
    fn code_that_polls_for_its_cancel_ends_in_good_order() {
        let Some(mut session) = patient() else { return };
        let code = "remuda.cancelled(); console.log('go'); while (!remuda.cancelled()); console.log('tidy'); 'ended'";
        let run = cancelled_while_running(&mut session, code);
        assert_eq!((run.outcome, run.stdout.as_str(), run.value), (Outcome::Cancelled { killed: false }, "go\ntidy\n", json!("ended")));
        assert_eq!(value(&mut session, "remuda.cancelled()"), false);
        // The second attempt does not ask any more. It comes a second before the kill, which a busy machine may
        // take to obey.
        let began = Instant::now();
        loop {
            let mut session = config().unwrap().grace(Duration::from_secs(2)).start().unwrap();
            let run = cancelled_while_running(&mut session, "remuda.cancelled(); console.log('go'); while (true) {}");
            if run.outcome == (Outcome::Cancelled { killed: false }) {
                assert_eq!(value(&mut session, "2"), 2);
                break;
            }
            assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
            assert!(began.elapsed() < GENEROUS, "it is killed each time");
        }
    }
}

isolated! {
    fn code_in_native_calls_is_killed_after_its_grace() {
        let Some(mut session) = session() else { return };
        // One call into C that no signal and no termination ends. It says so itself, once it is deaf.
        let run = cancelled_while_running(&mut session, "require('child_process').execSync(\"trap '' INT; echo go; while :; do :; done\", { stdio: 'inherit' })");
        assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
        session.restart().unwrap();
        assert_eq!(value(&mut session, "1"), 1);
    }
}

isolated! {
    fn a_cancelled_execution_takes_its_timers_along() {
        let Some(mut session) = patient() else { return };
        let code = "globalThis.ticks = 0; setInterval(() => { ticks++ }, 1); console.log('go'); await new Promise(() => {})";
        assert_eq!(cancelled_while_running(&mut session, code).outcome, Outcome::Cancelled { killed: false });
        assert_eq!(value(&mut session, "const before = ticks; await new Promise((done) => setTimeout(done, 20)); ticks - before"), 0);
    }
}

/// A cheap source of numbers: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

isolated! {
    fn a_late_cancel_never_hits_the_next_request() {
        let Some(mut session) = patient() else { return };
        let codes = [
            "1",
            "for (let i = 0; i < 1e6; i++); 1",
            "await new Promise((done) => setTimeout(done, 1)); 1",
            "await null; for (let i = 0; i < 1e6; i++); 1",
            "for (let i = 0; i < 50; i++) console.log(i); 1",
            "Array.from({ length: 5000 }, (_, i) => ({ i }))",
            "setTimeout(() => { for (let i = 0; i < 1e6; i++); }); await new Promise((done) => setTimeout(done, 1)); 1",
        ];
        let rounds: u64 = std::env::var("REMUDA_STRESS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1500);
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let (mut stopped, mut completed) = (0, 0);
        for round in 0..rounds {
            let code = codes[usize::try_from(dice.roll(codes.len() as u64)).unwrap()];
            let most = 1 << dice.roll(20);
            let spins = dice.roll(most);
            let handle = session.interrupt_handle();
            let started = AtomicBool::new(false);
            let run = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !started.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    for _ in 0..spins {
                        std::hint::spin_loop();
                    }
                    handle.interrupt();
                });
                // An interrupt alone never kills: code that it leaves running shall fail this test, not hold it up.
                let running = session.begin(Request::code(code).hard_time_limit(GENEROUS)).unwrap();
                started.store(true, Ordering::Release);
                running.finish().unwrap()
            });
            match run.outcome {
                Outcome::Completed => completed += 1,
                Outcome::Cancelled { killed: false } => stopped += 1,
                other => panic!("round {round}, {code}: {other:?} {:?}", run.error),
            }
            let next = session.execute("1 + 1").unwrap();
            assert_eq!((next.outcome, next.value), (Outcome::Completed, json!(2)), "round {round}, after {code}");
        }
        println!("{stopped} stopped, {completed} completed");
        assert!(stopped > 0 && completed > 0, "the race goes both ways");
    }
}

isolated! {
    fn killing_the_host_leaves_no_process() {
        if config().is_none() {
            return;
        }
        let codes = [
            "const child = require('child_process').spawn('sleep', ['600']); console.log(process.pid, child.pid); while (true) {}",
            "const child = require('child_process').spawn('sleep', ['600']); console.log(process.pid, child.pid); await new Promise(() => {})",
        ];
        if let Some(number) = doomed() {
            let code = codes[number.parse::<usize>().unwrap()];
            run_until_killed(&mut session().unwrap(), Request::code(code));
        }
        for number in 0..codes.len() {
            nothing_outlives_a_killed_host("node_stop::killing_the_host_leaves_no_process", &number.to_string());
        }
    }
}
