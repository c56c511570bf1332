//! Moments in which a session could lose something, wait for nobody, or go on with what nobody holds.

use std::fs;
use std::time::Duration;

use remuda::{CancelToken, Error, Outcome, Request, Reuse, Stream};

use crate::hostile_worker::{self, assert_broken, assert_retired, hostile};
use crate::support::{GENEROUS, ScratchDir, is_running, isolated, poll, pool, python, session};

isolated! {
    fn output_that_comes_between_an_event_and_the_answer_is_not_lost() {
        let files = ScratchDir::new();
        let (heard, sent, looked) =
            (files.path().join("heard"), files.path().join("sent"), files.path().join("looked"));
        let wait = |name: &std::path::Path| format!("while not os.path.exists({name:?}): pass\n");
        let code = [
            "import os, remuda\nos.write(2, b'1')\n",
            &wait(&heard),
            "remuda.progress(0.5)\nos.write(2, b'2')\n",
            &format!("open({sent:?}, 'w').close()\n"),
            &wait(&looked),
            "print('said')",
        ];
        let mut session = session();
        let stat = format!("/proc/{}/stat", session.pid());
        let request = Request::code(code.concat()).on_output(|stream, bytes| {
            if stream == Stream::Stderr && bytes == b"1" {
                fs::write(&heard, "").unwrap();
                poll(|| sent.exists(), || "the event is not sent".to_owned());
            } else if stream == Stream::Stderr {
                // The look that found this and the event saw no stdout. Now comes that, and the answer:
                // once it sleeps, the worker waits for the next request.
                fs::write(&looked, "").unwrap();
                poll(|| fs::read_to_string(&stat).unwrap().contains(") S "), || "it goes on".to_owned());
            }
        });
        let run = session.execute(request).unwrap();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("said\n", "12"));
    }
}

isolated! {
    fn a_session_whose_running_code_was_forgotten_goes_to_nobody() {
        let pool = pool().min_idle(1).max_sessions(1).reuse(Reuse::Keep).start().unwrap();
        let mut lease = pool.acquire().unwrap();
        let pid = lease.pid();
        std::mem::forget(lease.begin("while True: pass").unwrap());
        drop(lease);
        let mut next = pool.acquire().unwrap();
        assert_ne!(next.pid(), pid);
        assert_eq!(next.execute("6 * 7").unwrap().value, 42);
    }
}

isolated! {
    fn a_request_never_lands_in_the_middle_of_one_that_was_forgotten() {
        let mut session = session();
        let handle = session.interrupt_handle();
        std::mem::forget(session.begin(format!("'{}'", "x".repeat(8 << 20))).unwrap());
        assert!(matches!(session.execute("1"), Err(Error::SessionDead { .. })));
        session.restart().unwrap();
        assert!(!handle.kill(), "nothing runs");
        assert_eq!(session.execute("6 * 7").unwrap().value, 42);
    }
}

isolated! {
    fn code_that_was_interrupted_at_a_question_may_ask_again() {
        let mut session = session();
        let handle = session.interrupt_handle();
        let mut prompts = Vec::new();
        let code = "try: input('first')\nexcept KeyboardInterrupt: x = input('second')\nx";
        let run = session.execute(Request::code(code).time_limit(GENEROUS).on_input(|prompt| {
            if prompt.text() == "second" {
                prompt.answer("right");
            } else {
                prompts.push(prompt);
                assert!(handle.interrupt());
            }
        })).unwrap();
        assert_eq!(run.value, "right", "{run:?}");
        prompts.remove(0).answer("late");
        let run = session.execute(Request::code("input()").on_input(|prompt| prompt.answer("new"))).unwrap();
        assert_eq!(run.value, "new");
    }
}

isolated! {
    fn an_answer_that_interrupted_code_does_not_read_harms_nobody() {
        let mut session = python().start().unwrap();
        let handle = session.interrupt_handle();
        for _ in 0..20 {
            let code = "try: input()\nexcept KeyboardInterrupt: pass\n7";
            let run = session.execute(Request::code(code).on_input(|prompt| {
                prompt.answer("x".repeat(8 << 20));
                assert!(handle.interrupt());
            })).unwrap();
            assert_eq!(run.value, 7, "{run:?}");
            assert_eq!(session.execute("1 + 1").unwrap().value, 2);
        }
    }
}

isolated! {
    fn an_answer_that_a_worker_reads_only_after_its_own_is_sent_to_the_end() {
        let ask = "send(18, n, b'{\"prompt\":\"\",\"secret\":false}')";
        let mut session = hostile(&format!(
            "ready('execute input interrupt')\nn = request(5)\n{ask}\nrequest.body = read(20)\nresult(n, b'7')\nread(1000000)\nserve()"
        )).start().unwrap();
        let run = session.execute(Request::code("1").on_input(|prompt| prompt.answer("x".repeat(1_000_000))));
        assert_eq!(run.unwrap().value, 7);
        assert_eq!(session.execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_restart_that_fails_leaves_the_handles_to_the_old_process() {
        let files = ScratchDir::new();
        let trap = files.path().join("trap");
        let warm = format!("import os\nif os.path.exists({trap:?}): raise ValueError('on purpose')");
        let mut session = python().warmup_code(warm).start().unwrap();
        let handle = session.interrupt_handle();
        fs::write(&trap, "").unwrap();
        assert!(matches!(session.restart(), Err(Error::WarmUp { .. })));
        let (started, heard) = crossbeam_channel::bounded(1);
        let stopper = std::thread::spawn(move || {
            heard.recv().unwrap();
            assert!(handle.interrupt());
        });
        let request = Request::code("print('go', flush=True)\nwhile True: pass")
            .time_limit(Duration::from_secs(20))
            .on_output(move |_, _| { let _ = started.try_send(()); });
        let run = session.execute(request).unwrap();
        stopper.join().unwrap();
        assert_eq!(run.outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn a_worker_that_takes_no_request_is_killed_at_once() {
        let mut session = hostile_worker::session(
            "n = request(5)\nimport socket\nsocket.socket(fileno=os.dup(0)).shutdown(socket.SHUT_RD)\nresult(n)\nhang()",
        );
        assert_eq!(session.execute("1").unwrap().value, 1);
        let pid = session.pid();
        assert_broken("no requests", session.execute("1"), "does not take requests");
        poll(|| !is_running(pid), || "it lives on".to_owned());
        assert_retired("no requests", &mut session);
    }
}

isolated! {
    fn a_cancel_that_is_sent_again_brings_no_more_signals() {
        let script = "hits = []\nsignal.signal(signal.SIGINT, lambda *_: hits.append(1))\nready('execute sigint')\n\
                      n = request(5)\nfor _ in range(20): request(9)\nresult(n, str(len(hits)).encode())\nhang()";
        let mut session = hostile(script).grace(GENEROUS).start().unwrap();
        let run = session.execute(Request::code("1").time_limit(Duration::from_millis(1))).unwrap();
        assert_eq!(run.value, 1, "one signal for twenty frames");
    }
}

isolated! {
    fn code_that_asks_while_its_execution_is_dropped_finds_the_end_of_input() {
        let mut session = python().grace(Duration::from_secs(10)).start().unwrap();
        let code = "try:\n    print('go', flush=True)\n    while True: pass\nexcept KeyboardInterrupt: pass\n\
                    try: input('x')\nexcept EOFError: pass";
        let mut running = session.begin(code).unwrap();
        assert!(running.next().is_some());
        drop(running);
        assert_eq!(session.execute("6 * 7").unwrap().value, 42, "it was not killed");
    }
}

isolated! {
    fn empty_forms_of_a_display_count_too() {
        let show = "send(16, n, ('{\"types\":[%s]}' % ','.join(['[\"\",0]'] * 64)).encode())";
        let mut session = hostile(&format!("ready()\nn = request(5)\n{show}\nresult(n)\nhang()"))
            .event_cap(1_000)
            .start()
            .unwrap();
        let run = session.execute("1").unwrap();
        assert_eq!((run.displays.len(), run.dropped_events), (0, 1), "64 forms take more than 1 000 bytes");
    }
}

isolated! {
    fn a_flood_of_questions_that_nobody_answers_takes_no_memory() {
        let mut session =
            hostile_worker::session("n = request(5)\nmany = frame(18, n, b'{}') * 1000\nwhile True: raw(many)");
        let run = session.execute(Request::code("1").time_limit(Duration::from_secs(5)));
        assert_broken("questions", run, "asked before it had read");
        assert_retired("questions", &mut session);
    }
}

isolated! {
    fn a_handle_that_a_lease_has_left_behind_concerns_nobody_else() {
        let pool = pool().min_idle(1).max_sessions(1).reuse(Reuse::Keep).start().unwrap();
        let first = pool.acquire().unwrap();
        let (pid, old) = (first.pid(), first.interrupt_handle());
        drop(first);
        let mut next = pool.acquire().unwrap();
        assert_eq!(next.pid(), pid);
        let own = next.interrupt_handle();
        let request = Request::code("print('go', flush=True)\n6 * 7").on_output(|_, _| assert!(!old.kill()));
        assert_eq!(next.execute(request).unwrap().value, 42);
        let mut running = next.begin("print('go', flush=True)\nwhile True: pass").unwrap();
        assert!(running.next().is_some() && own.interrupt());
        assert_eq!(running.finish().unwrap().outcome, Outcome::Cancelled { killed: false });
    }
}

isolated! {
    fn a_question_that_came_with_other_events_does_not_hold_the_end() {
        let both = "raw(frame(15, n, b'', b'said') + frame(18, n, b'{}'))";
        let mut session = hostile(&format!(
            "ready('execute input')\nn = request(5)\n{both}\nrequest(19)\nresult(n)\nhang()"
        )).start().unwrap();
        let mut running = session.begin(Request::code("1").hard_time_limit(Duration::from_secs(20))).unwrap();
        assert!(matches!(running.next(), Some(remuda::Event::Output(_, text)) if text == "said"));
        assert_eq!(running.finish().unwrap().outcome, Outcome::Completed);
    }
}

isolated! {
    fn a_scope_that_is_killed_does_not_wait_for_a_worker_that_is_asked_something() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let token = CancelToken::new();
        let scope = pool.scope(&token);
        let mut session = scope.acquire().unwrap();
        let pid = rustix::process::Pid::from_raw(session.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| token.cancel());
            match session.ping(GENEROUS) {
                Err(Error::Cancelled) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}
