//! Scopes, jobs and the shared pool: a kill ends one user's work and nobody else's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use remuda::testing::{FakeReply, FakeWorker, Hold};
use remuda::{
    Call, CancelToken, Error, Job, Outcome, Request, Runtime, SessionPool, SharedPool, as_completed,
};

use crate::support::{GENEROUS, isolated, poll, pool, scripted};

/// A request that reports when it runs, and then runs until it is stopped.
fn endless(running: &mpsc::Sender<()>) -> Request<'static> {
    let running = running.clone();
    Request::code("print('on', flush=True)\nwhile True: pass").on_output(move |_, _| {
        let _ = running.send(());
    })
}

isolated! {
    fn jobs_run_and_come_back_in_the_order_of_their_ends() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        let scope = pool.scope(&CancelToken::new());
        let jobs: Vec<Job> = (0..20).map(|number| scope.submit(format!("{number} ** 2"))).collect();
        let mut values: Vec<u64> =
            scope.as_completed(jobs).map(|job| job.wait().unwrap().value.as_u64().unwrap()).collect();
        values.sort_unstable();
        assert_eq!(values, (0..20).map(|number| number * number).collect::<Vec<u64>>());
        let job = pool.submit(Call::new("math:hypot").arg(3).arg(4));
        assert_eq!(job.wait().unwrap().value, 5.0);

        // The second job ends while the first one still runs.
        let (sender, running) = mpsc::channel();
        let slow = pool.submit(endless(&sender));
        running.recv_timeout(GENEROUS).unwrap();
        let mut done = as_completed([slow, pool.submit("'fast'")]);
        assert_eq!(done.next().unwrap().wait().unwrap().value, "fast");
        assert!(done.next_timeout(Duration::from_millis(1)).is_none());
        for job in done.into_remaining() {
            job.cancel();
            assert!(matches!(job.wait().unwrap().outcome, Outcome::Cancelled { .. }));
        }
    }
}

isolated! {
    fn a_cancelled_scope_ends_its_queued_and_running_work_and_nothing_else() {
        let pool = pool().min_idle(2).max_sessions(2).start().unwrap();
        let (token, other_token) = (CancelToken::new(), CancelToken::new());
        let (scope, other) = (pool.scope(&token), pool.scope(&other_token));
        let (sender, running) = mpsc::channel();
        let mine = scope.submit(endless(&sender));
        running.recv_timeout(GENEROUS).unwrap();
        let theirs = other.submit(endless(&sender));
        running.recv_timeout(GENEROUS).unwrap();
        let queued: Vec<Job> = (0..5).map(|_| scope.submit("1")).collect();
        let theirs_queued: Vec<Job> = (0..5).map(|number| other.submit(format!("{number}"))).collect();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| scope.acquire().map(drop));
            poll(|| pool.metrics().waiting >= 1, || format!("{:?}", pool.metrics()));
            token.cancel();
            assert!(matches!(waiter.join().unwrap(), Err(Error::Cancelled)));
        });
        for job in queued {
            assert!(matches!(job.wait(), Err(Error::Cancelled)));
        }
        assert!(matches!(mine.wait().unwrap().outcome, Outcome::Cancelled { .. }));
        for (number, job) in theirs_queued.into_iter().enumerate() {
            assert_eq!(job.wait().unwrap().value, number);
        }
        assert!(!theirs.is_done(), "the neighbour's work goes on");
        assert!(matches!(scope.acquire(), Err(Error::Cancelled)));
        assert!(matches!(scope.submit("1").wait(), Err(Error::Cancelled)));
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
        assert!(pool.is_open());
        other_token.cancel();
        assert!(matches!(theirs.wait().unwrap().outcome, Outcome::Cancelled { .. }));
    }
}

/// Runs a function when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

isolated! {
    fn a_queued_job_whose_turn_comes_while_its_scope_is_being_cancelled_does_not_begin() {
        let busy = Hold::new();
        let fake = FakeWorker::new()
            .reply("busy", FakeReply::none().hold(&busy))
            .otherwise(|_| FakeReply::none());
        let pool = scripted(&fake).min_idle(1).max_sessions(1).start().unwrap();
        let holder = pool.submit("busy");
        busy.await_held(1);
        let token = CancelToken::new();
        let scope = pool.scope(&token);
        // The first job of the scope is told first. The end of its callback holds the cancel up there,
        // until the session has come to whoever is behind the second one.
        let asked = fake.clone();
        let first_is_told = OnDrop(move || {
            busy.release();
            poll(|| asked.asked().contains(&"behind".to_owned()), || format!("{:?}", asked.asked()));
        });
        let first = scope.submit(Request::code("first").on_output(move |_, _| {
            let _ = &first_is_told;
        }));
        let second = scope.submit("second");
        let behind = pool.submit("behind");
        token.cancel();
        assert!(matches!(first.wait(), Err(Error::Cancelled)));
        assert!(matches!(second.wait(), Err(Error::Cancelled)));
        assert!(holder.wait().unwrap().is_completed() && behind.wait().unwrap().is_completed());
        assert_eq!(fake.asked(), ["busy", "behind"], "no session was touched");
    }
}

isolated! {
    fn a_lease_of_a_scope_is_interrupted_and_its_session_is_free_of_the_token_afterwards() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let token = CancelToken::new();
        let scope = pool.scope(&token);
        drop(scope.acquire().unwrap());
        let mut session = scope.acquire_timeout(GENEROUS).unwrap();
        thread::scope(|threads| {
            let (sender, running) = mpsc::channel();
            let work = threads.spawn(move || session.execute(endless(&sender)).unwrap().outcome);
            running.recv_timeout(GENEROUS).unwrap();
            token.cancel();
            assert!(matches!(work.join().unwrap(), Outcome::Cancelled { .. }));
        });
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_released_session_no_longer_obeys_the_token_of_its_last_user() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let token = CancelToken::new();
        drop(pool.scope(&token).acquire().unwrap());
        token.cancel();
        assert_eq!(pool.acquire().unwrap().execute("1").unwrap().value, 1);
    }
}

isolated! {
    fn a_cancelled_acquire_loses_no_slot() {
        // Peer bug B7: a cancelled acquire left its placeholder behind, the slot was lost for good.
        let pool = pool().min_idle(0).max_sessions(1).start().unwrap();
        let held = pool.acquire().unwrap();
        for _ in 0..3 {
            let token = CancelToken::new();
            thread::scope(|threads| {
                let waiter = threads.spawn(|| pool.acquire_cancellable(&token).map(drop));
                poll(|| pool.metrics().waiting == 1, || format!("{:?}", pool.metrics()));
                token.cancel();
                assert!(matches!(waiter.join().unwrap(), Err(Error::Cancelled)));
            });
        }
        drop(held);
        drop(pool.acquire_timeout(GENEROUS).unwrap());
        assert_eq!(pool.metrics().acquisitions_cancelled, 3);
    }
}

isolated! {
    fn a_job_can_be_cancelled_alone_and_dropped_without_being_cancelled() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let (sender, running) = mpsc::channel();
        let first = pool.submit(endless(&sender));
        running.recv_timeout(GENEROUS).unwrap();
        let (queued, kept) = (pool.submit("1"), pool.submit("2"));
        let ran = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&ran);
        drop(pool.submit(Request::code("print('ran')").on_output(move |_, _| {
            counter.fetch_add(1, Ordering::SeqCst);
        })));
        queued.cancel();
        assert!(queued.is_done());
        assert!(matches!(queued.wait(), Err(Error::Cancelled)));
        let kept = kept.wait_timeout(Duration::from_millis(1)).expect_err("it is still queued");
        first.cancel();
        assert!(matches!(first.wait().unwrap().outcome, Outcome::Cancelled { .. }));
        assert_eq!(kept.wait().unwrap().value, 2);
        poll(|| ran.load(Ordering::SeqCst) == 1, || "a dropped job does not run".to_owned());
    }
}

isolated! {
    fn a_panicking_output_callback_ends_its_job_only() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let job = pool.submit(Request::code("print('on')").on_output(|_, _| panic!("on purpose")));
        assert!(matches!(job.wait(), Err(Error::SessionDead { .. })));
        assert_eq!(pool.submit("1").wait().unwrap().value, 1);
    }
}

isolated! {
    fn closing_ends_queued_jobs() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let (sender, running) = mpsc::channel();
        let first = pool.submit(endless(&sender));
        running.recv_timeout(GENEROUS).unwrap();
        let queued: Vec<Job> = (0..3).map(|_| pool.submit("1")).collect();
        pool.terminate();
        assert_eq!(pool.info().counts.total, 0, "the session of the job has left, too");
        assert_eq!(first.wait().unwrap().outcome, Outcome::Died);
        for job in queued {
            assert!(matches!(job.wait(), Err(Error::Closed)));
        }
    }
}

static SHARED: SharedPool =
    SharedPool::new(|| SessionPool::builder(Runtime::python("python3")).min_idle(1).max_sessions(2));

isolated! {
    fn a_shared_pool_starts_with_its_first_user_and_ends_with_its_last() {
        assert_eq!(SHARED.users(), 0);
        let handles: Vec<_> = thread::scope(|threads| {
            let users: Vec<_> = (0..4).map(|_| threads.spawn(|| SHARED.handle().unwrap())).collect();
            users.into_iter().map(|user| user.join().unwrap()).collect()
        });
        assert_eq!(SHARED.users(), 4);
        let pids: Vec<_> = handles.iter().map(|handle| handle.info().sessions[0].pid).collect();
        assert!(pids.iter().all(|pid| *pid == pids[0]), "one pool: {pids:?}");
        // A kill callback releases, and the end of that user does so again.
        let killed = &handles[0];
        killed.release();
        killed.release();
        assert_eq!(SHARED.users(), 3);
        assert!(matches!(killed.acquire(), Err(Error::Closed)));
        assert!(matches!(killed.submit("1").wait(), Err(Error::Closed)));
        assert_eq!(handles[1].acquire().unwrap().execute("1").unwrap().value, 1);
        assert_eq!(handles[2].submit("2").wait().unwrap().value, 2);
        drop(handles);
        assert_eq!(SHARED.users(), 0);
        let handle = SHARED.handle().unwrap();
        assert_ne!(handle.info().sessions[0].pid, pids[0], "a new pool");
        assert_eq!(handle.acquire().unwrap().execute("3").unwrap().value, 3);
    }
}

isolated! {
    fn a_shared_pool_that_cannot_start_can_be_tried_again() {
        let shared = SharedPool::new(|| SessionPool::builder(Runtime::python("no-such-python")));
        for _ in 0..2 {
            assert!(matches!(shared.handle(), Err(Error::Runtime { .. })));
        }
        assert_eq!(shared.users(), 0);
    }
}
