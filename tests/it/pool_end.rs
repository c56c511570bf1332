//! The end of a pool: shutdown, terminate, drop. `isolated!` proves that nothing is left.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use remuda::{Error, Outcome, Request};

use crate::support::{GENEROUS, isolated, poll, pool};

isolated! {
    fn shutdown_wakes_every_waiter() {
        // Peer defects A2 and B15: an untimed acquire hung for ever.
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let held = pool.acquire().unwrap();
        thread::scope(|threads| {
            let waiters: Vec<_> = (0..3).map(|_| threads.spawn(|| pool.acquire().map(drop))).collect();
            poll(|| pool.metrics().waiting == 3, || format!("{:?}", pool.metrics()));
            let ender = threads.spawn(|| pool.shutdown(GENEROUS));
            for waiter in waiters {
                assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
            }
            assert!(!ender.is_finished(), "it waits for the lease");
            drop(held);
            ender.join().unwrap();
        });
        assert!(matches!(pool.acquire(), Err(Error::Closed)));
        assert!(matches!(pool.try_acquire(), Err(Error::Closed)));
        assert!(matches!(pool.ensure_min_sessions(), Err(Error::Closed)));
        assert!(matches!(pool.submit("1").wait(), Err(Error::Closed)));
        assert_eq!(pool.info().counts.total, 0);
        assert!(!pool.is_open());
        pool.stop(Duration::ZERO);
        pool.terminate();
    }
}

isolated! {
    fn a_lease_that_outlives_the_deadline_is_killed() {
        let pool = pool().min_idle(1).start().unwrap();
        thread::scope(|threads| {
            let (started, begun) = mpsc::channel();
            let user = threads.spawn({
                let pool = &pool;
                move || {
                    let mut session = pool.acquire().unwrap();
                    let request = Request::code("print('on', flush=True)\nwhile True: pass")
                        .on_output(move |_, _| started.send(()).unwrap());
                    session.execute(request).unwrap().outcome
                }
            });
            begun.recv_timeout(GENEROUS).unwrap();
            pool.shutdown(Duration::from_millis(50));
            assert_eq!(user.join().unwrap(), Outcome::Died);
        });
    }
}

isolated! {
    fn a_lease_that_ends_before_the_deadline_is_not_killed() {
        let pool = pool().min_idle(1).start().unwrap();
        let mut session = pool.acquire().unwrap();
        thread::scope(|threads| {
            let ender = threads.spawn(|| pool.shutdown(GENEROUS));
            poll(|| !pool.is_open(), || "the pool does not close".to_owned());
            assert_eq!(session.execute("6 * 7").unwrap().value, 42);
            drop(session);
            ender.join().unwrap();
        });
        assert_eq!(pool.info().counts.total, 0);
    }
}

isolated! {
    fn terminate_ends_sessions_in_use_and_can_be_called_by_their_holder() {
        let pool = pool().min_idle(2).start().unwrap();
        let mut held = pool.acquire().unwrap();
        pool.terminate();
        assert!(!held.is_alive());
        assert!(matches!(held.execute("1"), Err(Error::SessionDead { .. })));
        drop(held);
        poll(|| pool.info().counts.total == 0, || format!("{:?}", pool.info().counts));
    }
}

isolated! {
    fn terminate_may_come_from_several_threads_at_once() {
        let pool = pool().min_idle(3).start().unwrap();
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| pool.terminate());
            }
            threads.spawn(|| pool.shutdown(GENEROUS));
        });
        assert_eq!(pool.info().counts.total, 0);
    }
}

isolated! {
    fn terminate_gives_up_sessions_that_are_starting() {
        // Peer bug B7: stopping during the warm-up left workers behind.
        let pool = pool().pre_warm_on_start(false).min_idle(2).warmup_code("while True: pass").start().unwrap();
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire().map(drop));
            poll(|| pool.info().counts.starting == 2, || format!("{:?}", pool.info().counts));
            let began = Instant::now();
            pool.terminate();
            assert!(began.elapsed() < Duration::from_secs(20), "the start would have taken 30 s");
            assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
        });
        assert_eq!(pool.info().counts.total, 0);
        assert_eq!(pool.metrics().start_failures, 0, "the end is no failure");
    }
}

isolated! {
    fn the_last_handle_ends_the_pool_although_a_lease_is_out() {
        let pool = pool().min_idle(1).start().unwrap();
        let clone = pool.clone();
        let held = pool.acquire().unwrap();
        drop(pool);
        assert!(held.is_alive(), "a clone keeps it running");
        drop(clone);
        assert!(!held.is_alive());
    }
}

isolated! {
    fn the_output_callback_of_a_job_can_end_the_pool() {
        let pool = pool().min_idle(1).start().unwrap();
        let inside = pool.clone();
        let job = pool.submit(
            Request::code("print('on', flush=True)\nwhile True: pass").on_output(move |_, _| inside.terminate()),
        );
        assert_eq!(job.wait().unwrap().outcome, Outcome::Died);
        pool.terminate();
        assert_eq!(pool.info().counts.total, 0);
    }
}
