//! Native workers: cancels, deaths, events, the end of the host.

use std::time::Duration;

use remuda::{Call, CancelToken, Cause, Execution, Exit, Outcome, Request, Session, TimeLimit};
use serde_json::json;

use crate::native_support::{native, native_config, relayed_config};
use crate::support::{GENEROUS, doomed, is_running, nothing_outlives_a_killed_host, run_until_killed};

/// Cancels the call when it has printed its first bytes, so that it is surely running.
fn cancelled_while_running(session: &mut Session, function: &str) -> Execution {
    let token = CancelToken::new();
    let fire = token.clone();
    let request =
        Request::from(Call::new(function)).cancel_token(&token).on_output(move |_, _| fire.cancel());
    session.execute(request).expect("a cancelled execution is an outcome")
}

native! {
    fn a_handler_that_looks_is_stopped_and_the_session_lives() {
        for config in [native_config(), relayed_config()] {
            // No grace is needed.
            let mut session = config.grace(GENEROUS).start().unwrap();
            for _ in 0..3 {
                let run = cancelled_while_running(&mut session, "wait");
                assert_eq!((run.outcome, run.error.unwrap().kind.as_str()), (Outcome::Cancelled { killed: false }, "Cancelled"));
                let run = cancelled_while_running(&mut session, "poll");
                assert_eq!((run.outcome, run.value), (Outcome::Cancelled { killed: false }, json!("gave up in good order")));
                assert_eq!(session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, 2);
            }
            let run = session.execute(Request::from(Call::new("wait")).time_limit(Duration::from_millis(50))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false });
        }
    }
}

native! {
    fn a_handler_that_does_not_look_is_killed_after_the_grace() {
        for config in [native_config(), relayed_config()] {
            let mut session = config.start().unwrap();
            let run = cancelled_while_running(&mut session, "deaf");
            assert_eq!(run.outcome, Outcome::Cancelled { killed: true });
            let post_mortem = run.post_mortem.unwrap();
            assert_eq!((post_mortem.exit, post_mortem.cause), (Exit::Signal(9), Cause::Cancelled));
            assert_eq!(run.stdout, "deaf\n");
            session.restart().unwrap();
            assert_eq!(session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, 2);
        }
    }
}

native! {
    fn a_handler_that_ends_the_process_is_a_death_with_its_code() {
        let mut session = native_config().start().unwrap();
        let run = session.execute(Call::new("exit").arg(7)).unwrap();
        assert_eq!(run.outcome, Outcome::Died);
        let post_mortem = run.post_mortem.unwrap();
        assert_eq!((post_mortem.exit, post_mortem.stderr_tail.as_str()), (Exit::Code(7), "leaving\n"));
        assert!(!session.is_alive());
        let mut relayed = relayed_config().start().unwrap();
        let run = relayed.execute(Call::new("exit").arg(7)).unwrap();
        assert_eq!(run.outcome, Outcome::Died);
    }
}

native! {
    fn a_worker_leaves_in_good_order_when_it_is_told() {
        for config in [native_config(), relayed_config()] {
            let session = config.start().unwrap();
            let pid = session.pid();
            assert_eq!(session.shutdown(GENEROUS).exit, Exit::Code(0));
            assert!(!is_running(pid));
        }
    }
}

native! {
    fn progress_displays_and_attachments_reach_the_host() {
        for config in [native_config(), relayed_config()] {
            let mut session = config.frame_cap(1 << 20).start().unwrap();
            let mut steps = Vec::new();
            let request = Request::from(Call::new("show"))
                .attach("original", vec![0, 255, 7])
                .attach("other", Vec::new())
                .on_progress(|progress| steps.push((progress.fraction, progress.message.clone())));
            let run = session.execute(request).unwrap();
            assert_eq!(steps, [(Some(0.5), Some("half".to_owned())), (None, None)]);
            assert_eq!(run.value, json!(["original", "other"]));
            let [display] = &run.displays[..] else { panic!("{:?}", run.displays.len()) };
            assert_eq!((display.text("text/html"), display.text("text/plain")), (Some("<b>1</b>"), Some("1")));
            let [copy] = &run.attachments[..] else { panic!("{:?}", run.attachments.len()) };
            assert_eq!((copy.name.as_str(), &copy.data[..]), ("copy", &[0, 255, 7][..]));
            let run = session.execute(Call::new("show")).unwrap();
            assert_eq!(run.attachments[0].data, b"nothing came");
            let run = session.execute(Call::new("attach").arg(2 << 20)).unwrap();
            assert!(run.error.unwrap().message.contains("do not fit into a frame"));
        }
    }
}

native! {
    fn a_handler_asks_for_input_and_finds_its_end() {
        for config in [native_config(), relayed_config()] {
            let mut session = config.start().unwrap();
            let mut asked = Vec::new();
            let request = Request::from(Call::new("ask")).on_input(|prompt| {
                asked.push((prompt.text().to_owned(), prompt.is_secret()));
                prompt.answer("Ada");
            });
            assert_eq!(session.execute(request).unwrap().value, json!(["Ada", "Ada"]));
            assert_eq!(asked, [("name? ".to_owned(), false), ("word? ".to_owned(), true)]);
            // Nobody answers: at once, by the end of input, by time.
            assert_eq!(session.execute(Call::new("ask")).unwrap().value, json!([null, null]));
            assert_eq!(session.execute(Request::from(Call::new("ask")).on_input(drop)).unwrap().value, json!([null, null]));
            let mut kept = Vec::new();
            let request = Request::from(Call::new("ask")).on_input(|prompt| kept.push(prompt)).input_timeout(Duration::from_millis(20));
            assert_eq!(session.execute(request).unwrap().value, json!([null, null]));
        }
    }
}

native! {
    fn a_cancel_ends_the_wait_for_input() {
        for config in [native_config(), relayed_config()] {
            let mut session = config.grace(GENEROUS).start().unwrap();
            let token = CancelToken::new();
            let fire = token.clone();
            let mut kept = Vec::new();
            let request = Request::from(Call::new("ask")).cancel_token(&token).on_input(move |prompt| {
                kept.push(prompt);
                fire.cancel();
            });
            let run = session.execute(request).unwrap();
            assert_eq!((run.outcome, run.value), (Outcome::Cancelled { killed: false }, json!([null, null])));
            assert_eq!(session.execute(Call::new("sum").arg(1).arg(1)).unwrap().value, 2);
        }
    }
}

native! {
    fn the_cpu_time_of_a_request_is_measured_by_the_worker() {
        let mut session = native_config().start().unwrap();
        let run = session.execute(Request::from(Call::new("burn")).measure(true)).unwrap();
        assert!(run.usage.unwrap().cpu_time > Duration::from_millis(1));
        let run = session.execute(Request::from(Call::new("nothing")).measure(true)).unwrap();
        assert!(run.usage.unwrap().cpu_time < Duration::from_millis(5));
    }
}

native! {
    fn killing_the_host_leaves_no_native_process() {
        if let Some(way) = doomed() {
            let config = if way == "pipes" { native_config() } else { relayed_config() };
            run_until_killed(&mut config.start().unwrap(), Request::from(Call::new("orphan")));
        }
        for way in ["pipes", "stdio"] {
            nothing_outlives_a_killed_host("native_stop::killing_the_host_leaves_no_native_process", way);
        }
    }
}
