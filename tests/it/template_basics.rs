//! Sessions that a template makes: they do all that others do, and share nothing with their siblings.

use std::collections::BTreeSet;
use std::time::Duration;

use remuda::{
    Call, Cause, Error, Exit, Limit, Limits, Outcome, Request, Runtime, Session, SessionConfig, Template,
    TimeLimit,
};
use serde_json::json;

use crate::support::{GENEROUS, cancelled_when_busy, is_running, isolated, poll, python};

pub(crate) fn template(config: &SessionConfig) -> Template {
    let template = Template::start(config).expect("a template starts");
    assert_eq!(template.info().why_not, None);
    template
}

/// A session that was not started cold.
pub(crate) fn forked(template: &Template) -> Session {
    let before = template.info();
    let mut session = template.session().expect("a session starts");
    let after = template.info();
    assert_eq!(
        (after.forked, after.cold_starts),
        (before.forked + 1, before.cold_starts),
        "{:?}",
        after.why_not
    );
    let parent = session.execute("import os\nos.getppid()").expect("runs").value;
    assert_eq!(parent, json!(after.pid), "a child of the template");
    session
}

isolated! {
    fn a_session_of_a_template_is_warm_and_works_like_any_other() {
        let template = template(&python().warm_import("json").warm_import("xml.dom").warmup_code("base = 40\ndef f(x): return x + base"));
        let mut session = forked(&template);
        let run = session.execute("import sys\nprint('out')\nprint('err', file=sys.stderr)\n['xml.dom' in sys.modules, base + 2]").unwrap();
        assert_eq!((run.value, run.stdout.as_str(), run.stderr.as_str()), (json!([true, 42]), "out\n", "err\n"));
        assert_eq!(session.execute(Call::new("__main__:f").arg(2)).unwrap().value, 42);
        assert_eq!(session.execute("import subprocess\nsubprocess.run(['echo', 'child']).returncode").unwrap().stdout, "child\n");
        assert_eq!(session.execute("import asyncio\nawait asyncio.sleep(0, 'awaited')").unwrap().value, "awaited");
        let run = session.execute(Request::code("input('name? ')").on_input(|prompt| prompt.answer("Ada"))).unwrap();
        assert_eq!(run.value, "Ada");
        assert_eq!(session.warm_report().imports.iter().map(|import| import.module.as_str()).collect::<Vec<_>>(), ["json", "xml.dom"]);
        assert!(session.ping(GENEROUS).is_ok() && session.memory().unwrap().unique < session.memory().unwrap().proportional);
        assert_eq!(session.shutdown(GENEROUS).exit, Exit::Code(0));
    }
}

isolated! {
    fn a_session_of_a_template_goes_back_to_its_warm_state() {
        let template = template(&python().warmup_code("base = 40"));
        let mut session = forked(&template);
        session.execute("import os\nbase = 1; more = 2; os.environ['X'] = 'y'; os.chdir('/'); f = open('/dev/null')").unwrap();
        let left = session.fingerprint().unwrap();
        assert_eq!((left.globals.len(), left.cwd.as_deref(), left.fds.len()), (4, Some("/"), 1), "{left:?}");
        assert_eq!(session.reset().unwrap(), [""; 0]);
        let left = session.fingerprint().unwrap();
        assert!(left.is_clean(), "{left:?}");
        assert_eq!(session.execute("base").unwrap().value, 40);
    }
}

isolated! {
    fn every_rung_of_the_ladder_reaches_a_session_of_a_template() {
        let patient = template(&python().grace(GENEROUS));
        let mut session = forked(&patient);
        // Each of its first requests: numbers that the template has used itself must mean nothing.
        for code in ["while True: pass", "import time\ntime.sleep(600)", "import subprocess\nsubprocess.run(['sleep', '600'])", "await __import__('asyncio').sleep(600)"] {
            let run = session.execute(Request::code(code).time_limit(Duration::from_millis(30))).unwrap();
            assert_eq!(run.outcome, Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, "{code}: {:?}", run.error);
        }
        let polls = "import remuda\nwhile not remuda.cancelled(): pass\n'ended in good order'";
        let run = session.execute(Request::code(polls).time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!((run.outcome, run.value), (Outcome::TimedOut { limit: TimeLimit::Soft, killed: false }, json!("ended in good order")));
        let template = template(&python().grace(Duration::from_millis(200)));
        let mut session = forked(&template);
        let stubborn = "import signal\nfor n in signal.SIGINT, signal.SIGIO: signal.signal(n, signal.SIG_IGN)\nprint('go', flush=True)\nwhile True: pass";
        assert_eq!(cancelled_when_busy(&mut session, stubborn), Outcome::Cancelled { killed: true });
        let post_mortem = session.terminate();
        assert_eq!(post_mortem.exit, Exit::Signal(9));
        assert!(template.info().pid.is_some_and(is_running), "killing a session does nothing to its template");
        assert_eq!(forked(&template).execute("1 + 1").unwrap().value, 2);
    }
}

isolated! {
    fn the_flag_that_the_warm_up_has_polled_is_not_that_of_the_session() {
        let template = template(&python().grace(GENEROUS).warmup_code("import remuda\nremuda.cancelled()"));
        let mut session = forked(&template);
        let polls = "import remuda\nwhile not remuda.cancelled(): pass\n'seen'";
        let run = session.execute(Request::code(polls).time_limit(Duration::from_millis(30))).unwrap();
        assert_eq!(run.value, "seen");
    }
}

isolated! {
    fn a_death_is_told_with_its_code_or_signal() {
        let template = template(&python());
        let mut session = forked(&template);
        let run = session.execute("import os, sys\nprint('bye', file=sys.stderr, flush=True)\nos._exit(7)").unwrap();
        let post_mortem = run.post_mortem.unwrap();
        assert_eq!((run.outcome, post_mortem.exit, post_mortem.stderr_tail.as_str()), (Outcome::Died, Exit::Code(7), "bye\n"));
        session.restart().unwrap();
        assert_eq!(session.execute("import os\nos.getppid()").unwrap().value, json!(template.info().pid), "restarted by its template");
        session.execute("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)").unwrap();
        let post_mortem = session.terminate();
        assert_eq!((post_mortem.exit, post_mortem.cause), (Exit::Signal(11), Cause::Itself));
        let idle = forked(&template);
        rustix::process::kill_process(rustix::process::Pid::from_raw(i32::try_from(idle.pid()).unwrap()).unwrap(), rustix::process::Signal::TERM).unwrap();
        poll(|| !idle.is_alive(), || "it lives".to_owned());
        assert_eq!(idle.terminate().exit, Exit::Signal(15));
    }
}

isolated! {
    fn limits_hold_for_sessions_of_a_template() {
        let limits = Limits::new().data(256 << 20).open_files(64).cpu_seconds(1);
        let template = template(&python().limits(limits));
        for _ in 0..2 {
            let mut session = forked(&template);
            let run = session.execute("x = bytearray(1 << 30)").unwrap();
            assert_eq!(run.outcome, Outcome::LimitExceeded { limit: Limit::Data, killed: false });
            let run = session.execute("files = [open('/dev/null') for _ in range(100)]").unwrap();
            assert_eq!(run.outcome, Outcome::LimitExceeded { limit: Limit::OpenFiles, killed: false });
            let run = session.execute("while True: pass").unwrap();
            assert_eq!(run.outcome, Outcome::LimitExceeded { limit: Limit::CpuTime, killed: true });
        }
    }
}

isolated! {
    fn siblings_have_nothing_in_common() {
        let template = template(&python().warm_import("random").warm_import("uuid").warm_import("tempfile").warmup_code("shared = []"));
        let mut siblings = [forked(&template), forked(&template), forked(&template)];
        let code = "import os, random, uuid, tempfile, secrets\nshared.append(os.getpid())\nopen('mine', 'w').close()\n\
                    [os.getcwd(), os.getpgrp() == os.getpid(), len(shared), os.listdir()]";
        let mut directories = BTreeSet::new();
        for session in &mut siblings {
            let value = session.execute(code).unwrap().value;
            assert_eq!(value.as_array().unwrap()[1..], [json!(true), json!(1), json!(["mine"])]);
            directories.insert(value[0].to_string());
        }
        assert_eq!(directories.len(), 3);
        for random in ["random.random()", "random.Random().random()", "str(uuid.uuid4())", "secrets.token_hex()", "next(tempfile._get_candidate_names())"] {
            let drawn: BTreeSet<String> = siblings.iter_mut().map(|session| session.execute(random).unwrap().value.to_string()).collect();
            assert_eq!(drawn.len(), 3, "{random}: {drawn:?}");
        }
    }
}

isolated! {
    fn the_old_generator_of_numpy_is_seeded_for_each_session_if_it_is_loaded() {
        // What stands in for it draws its state when it is seeded, as that one does.
        let code = "import os, sys, types\nnumpy = types.ModuleType('numpy.random')\nnumpy.state = 0\n\
                    def seed():\n    numpy.state = os.urandom(8).hex()\nnumpy.seed = seed\nsys.modules['numpy.random'] = numpy";
        let template = template(&python().warmup_code(code));
        let states: BTreeSet<String> =
            (0..4).map(|_| forked(&template).execute("numpy.state").unwrap().value.to_string()).collect();
        assert!(states.len() == 4 && !states.contains("0"), "{states:?}");
        let plain = Template::start(&python()).unwrap();
        assert_eq!(forked(&plain).execute("import sys\n'numpy' in sys.modules").unwrap().value, false);
    }
}

isolated! {
    fn a_session_of_a_template_has_no_descriptors_but_those_of_a_cold_one() {
        // Numbers may differ, kinds and count may not.
        let code = "import os\nsorted(os.readlink('/proc/self/fd/' + n).split(':')[0].split('/remuda')[0] for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n) or os.path.lexists('/proc/self/fd/' + n))";
        let expected = python().start().unwrap().execute(code).unwrap().value;
        let template = template(&python());
        let siblings: Vec<Session> = (0..4).map(|_| template.session().unwrap()).collect();
        for mut session in siblings {
            assert_eq!(session.execute(code).unwrap().value, expected);
        }
    }
}

isolated! {
    fn what_cannot_be_forked_is_refused_and_a_failing_warm_up_is_an_error() {
        let runtimes = [
            Runtime::node("node"),
            Runtime::command("cat", [""; 0]),
            Runtime::python("python3").remote(["sh", "-c", "exec \"$@\"", "sh"]),
        ];
        for runtime in runtimes {
            let error = Template::start(&SessionConfig::new(runtime.clone())).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { option: "template", .. }), "{error}");
            let error = remuda::SessionPool::builder(runtime).template(true).start().unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { option: "template", .. }), "{error}");
        }
        let error = Template::start(&python().warmup_code("1 / 0")).unwrap_err();
        let Error::WarmUp { what, message, .. } = &error else { panic!("{error}") };
        assert!(what == "warmup_code" && message.contains("ZeroDivisionError"), "{error}");
        let died = Template::start(&python().warmup_code("import os\nos._exit(3)")).unwrap_err();
        assert!(matches!(died, Error::StartDied { .. }), "{died}");
    }
}
