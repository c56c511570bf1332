//! Tenants of a shared pool: fair shares, quotas, priorities, who holds what, nested acquires.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use remuda::{
    Acquire, CancelToken, Error, Job, NestedAcquire, PoolInfo, Quota, QuotaKind, QuotaRow, Request, Runtime,
    SessionPool, SharedPool, WaitReason,
};

use crate::support::{GENEROUS, ScratchDir, isolated, poll, pool};

/// Waits until as many callers and jobs stand in the queue.
fn await_queue(pool: &SessionPool, callers: usize, jobs: usize) {
    let counts = || pool.info().counts;
    poll(|| (counts().waiters, counts().jobs) == (callers, jobs), || format!("{:?}", counts()));
}

fn row(info: &PoolInfo, tenant: &str) -> QuotaRow {
    info.quotas.iter().find(|row| row.tenant == tenant).unwrap_or_else(|| panic!("{:?}", info.quotas)).clone()
}

/// A request that runs until the file is there.
fn until_there(file: &std::path::Path) -> Request<'static> {
    let file = file.to_str().unwrap();
    Request::code(format!("import os, time\nwhile not os.path.exists({file:?}): time.sleep(0.001)"))
}

fn all_end(jobs: Vec<Job>) {
    for job in jobs {
        assert!(job.wait().unwrap().is_completed());
    }
}

isolated! {
    fn fifty_queued_jobs_of_one_tenant_do_not_delay_another() {
        let pool = pool().min_idle(1).max_sessions(2).start().unwrap();
        let scratch = ScratchDir::new();
        let [go, go_on] = ["go", "go on"].map(|name| scratch.path().join(name));
        let greedy = pool.scope(&CancelToken::new()).as_tenant("greedy");
        let first: Vec<Job> = (0..2).map(|_| greedy.submit(until_there(&go))).collect();
        poll(|| pool.info().counts.busy == 2, || format!("{:?}", pool.info().counts));
        let queued: Vec<Job> = (0..50).map(|_| greedy.submit(until_there(&go_on))).collect();
        await_queue(&pool, 0, 50);
        thread::scope(|threads| {
            let modest = threads.spawn(|| pool.acquire_as("modest").unwrap());
            await_queue(&pool, 1, 50);
            scratch.write("go", "");
            let session = modest.join().unwrap();
            await_queue(&pool, 0, 49);
            let info = pool.info();
            assert_eq!((row(&info, "greedy").leases, row(&info, "modest").leases), (1, 1));
            drop(session);
        });
        scratch.write("go on", "");
        all_end(queued);
        all_end(first);
        assert!(pool.info().quotas.is_empty(), "nothing is kept of tenants that have left");
    }
}

isolated! {
    fn jobs_of_a_tenant_at_its_quota_leave_the_other_sessions_alone() {
        let config = pool().min_idle(3).max_sessions(3).quota(Quota::new().max_leases(1));
        let pool = config.start().unwrap();
        let scratch = ScratchDir::new();
        let go = scratch.path().join("go");
        let (token, other) = (CancelToken::new(), CancelToken::new());
        let scope = pool.scope(&token).as_tenant("alice");
        let jobs: Vec<Job> = (0..5).map(|_| scope.submit(until_there(&go))).collect();
        await_queue(&pool, 0, 4);
        let job = pool.scope(&other).as_tenant("bob").submit("6 * 7");
        assert_eq!(job.wait().unwrap().value, 42, "bob's job is not behind those of alice");
        drop(pool.acquire_as("carol").unwrap());
        let info = pool.info();
        assert_eq!((row(&info, "alice").leases, row(&info, "alice").queued), (1, 4));
        let why = pool.explain();
        assert!(why.waiters.iter().all(|waiter| waiter.reason == WaitReason::Quota && waiter.job), "{why}");
        scratch.write("go", "");
        all_end(jobs);
    }
}

isolated! {
    fn a_tenant_holds_no_more_than_its_quota_and_waits_beside_an_idle_session() {
        let config = pool().min_idle(2).max_sessions(2).quota(Quota::new().max_leases(1).max_queued(1));
        let pool = config.start().unwrap();
        let held = pool.acquire_as("alice").unwrap();
        match pool.acquire_with(Acquire::new().tenant("alice").timeout(Duration::ZERO)) {
            Err(Error::QuotaExceeded { tenant, limit: 1, kind: QuotaKind::Leases }) => assert_eq!(tenant, "alice"),
            other => panic!("{other:?}"),
        }
        thread::scope(|threads| {
            let waiter = threads.spawn(|| pool.acquire_as("alice").map(drop));
            await_queue(&pool, 1, 0);
            assert_eq!(pool.info().counts.idle, 1);
            match pool.acquire_as("alice") {
                Err(Error::QuotaExceeded { limit: 1, kind: QuotaKind::Queued, .. }) => {}
                other => panic!("{other:?}"),
            }
            drop(pool.acquire_as("bob").unwrap());
            drop(pool.acquire().unwrap());
            let mine = row(&pool.info(), "alice");
            assert_eq!((mine.leases, mine.queued, mine.refused), (1, 1, 2));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
        let full = pool.acquire_as("alice").unwrap();
        match pool.acquire_with(Acquire::new().tenant("alice").timeout(Duration::from_millis(5))) {
            Err(error @ Error::AcquireTimeout { ahead: 0, max_leases: Some(1), .. }) => {
                assert!(error.to_string().ends_with("the tenant holds 1 session, as many as it may (max_leases)"));
            }
            other => panic!("{other:?}"),
        }
        // The other session may still be on its way back from its last user.
        drop(pool.acquire_with(Acquire::new().tenant("bob").timeout(GENEROUS)).unwrap());
        drop(full);
    }
}

isolated! {
    fn sessions_that_die_or_are_discarded_make_room_in_a_quota() {
        let config = pool().min_idle(1).max_sessions(2).tenant_quota("alice", Quota::new().max_leases(1));
        let pool = config.start().unwrap();
        let ask = || pool.acquire_with(Acquire::new().tenant("alice").timeout(GENEROUS)).unwrap();
        ask().discard();
        let mut session = ask();
        let _ = session.execute("import os\nos._exit(1)").unwrap();
        drop(session);
        assert_eq!(ask().execute("6 * 7").unwrap().value, 42);
        let mine = row(&pool.info(), "alice");
        assert_eq!((mine.leases, mine.served, mine.quota.max_leases), (0, 3, Some(1)));
    }
}

isolated! {
    fn within_a_tenant_the_higher_priority_is_served_first() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let held = pool.acquire().unwrap();
        let order = Mutex::new(Vec::new());
        thread::scope(|threads| {
            for (number, priority) in [0, -5, 5, 5].into_iter().enumerate() {
                let (pool, order) = (&pool, &order);
                threads.spawn(move || {
                    let label = format!("caller {number}");
                    let ask = Acquire::new().tenant("alice").priority(priority).label(label);
                    let session = pool.acquire_with(ask).unwrap();
                    order.lock().unwrap().push(number);
                    drop(session);
                });
                await_queue(pool, number + 1, 0);
            }
            let why = pool.explain();
            let labels: Vec<_> = why.waiters.iter().map(|waiter| waiter.label.clone().unwrap()).collect();
            assert_eq!(labels, ["caller 2", "caller 3", "caller 0", "caller 1"], "{why}");
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), [2, 3, 0, 1]);
    }
}

isolated! {
    fn a_lease_says_who_holds_it() {
        let pool = pool().min_idle(1).max_sessions(1).start().unwrap();
        let line = line!() + 1;
        let session = pool.acquire_with(Acquire::new().tenant("alice").label("nightly").priority(3)).unwrap();
        let holder = pool.info().sessions[0].holder.clone().unwrap();
        assert_eq!((holder.tenant.as_deref(), holder.label.as_deref()), (Some("alice"), Some("nightly")));
        assert_eq!(holder.priority, 3);
        assert!(holder.at.contains(&format!("pool_tenants.rs:{line}:")), "{holder:?}");
        assert_eq!(holder.thread_name.as_deref(), thread::current().name());
        let others = thread::scope(|threads| {
            let other = threads.spawn(|| drop(pool.try_acquire()));
            other.join().unwrap();
            pool.info().sessions[0].holder.clone().unwrap().thread
        });
        assert_eq!(others, holder.thread);
        drop(session);
        assert!(pool.info().sessions[0].holder.is_none());

        let scratch = ScratchDir::new();
        let scope = pool.scope(&CancelToken::new()).as_tenant("bob").with_label("report").with_priority(1);
        let line = line!() + 1;
        let job = scope.submit(until_there(&scratch.path().join("go")));
        let holder = || pool.info().sessions.first().and_then(|row| row.holder.clone());
        poll(|| holder().is_some(), || "the job has a session".into());
        let holder = holder().unwrap();
        assert!(holder.at.contains(&format!("pool_tenants.rs:{line}:")), "where it was submitted: {holder:?}");
        assert_eq!((holder.thread, holder.priority), (None, 1), "a job");
        assert_eq!((holder.tenant.as_deref(), holder.label.as_deref()), (Some("bob"), Some("report")));
        scratch.write("go", "");
        drop(job.wait().unwrap());
    }
}

isolated! {
    fn a_nested_acquire_that_would_wait_is_refused_or_counted() {
        let strict = pool().min_idle(1).max_sessions(2).nested_acquire(NestedAcquire::Refuse).start().unwrap();
        let line = line!() + 1;
        let one = strict.acquire().unwrap();
        strict.ensure_min_sessions().unwrap();
        let two = strict.acquire().unwrap();
        match strict.acquire_timeout(GENEROUS) {
            Err(Error::NestedAcquire { held_at, asked_at }) => {
                assert_eq!((held_at.line(), asked_at.line()), (line, line + 3), "{held_at}, {asked_at}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(strict.try_acquire(), Err(Error::AcquireTimeout { .. })), "it would not wait");
        thread::scope(|threads| {
            // Another thread holds nothing, so it may wait.
            let waiter = threads.spawn(|| strict.acquire().map(drop));
            await_queue(&strict, 1, 0);
            drop((one, two));
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(strict.metrics().nested_acquires, 1);
        drop(strict.acquire_timeout(GENEROUS).unwrap());

        let lenient = pool().min_idle(1).max_sessions(1).start().unwrap();
        let held = lenient.acquire().unwrap();
        for _ in 0..2 {
            assert!(matches!(
                lenient.acquire_timeout(Duration::from_millis(5)),
                Err(Error::AcquireTimeout { .. })
            ));
        }
        assert_eq!(lenient.metrics().nested_acquires, 2);
        let text = lenient.info().open_metrics();
        assert!(text.contains("remuda_pool_nested_acquires_total{pool=\"pool\"} 2\n"), "{text}");
        drop(held);
    }
}

isolated! {
    fn jobs_that_submit_and_wait_for_sessions_do_not_count_as_nested() {
        let pool = pool().min_idle(1).max_sessions(1).nested_acquire(NestedAcquire::Refuse).start().unwrap();
        let held = pool.acquire().unwrap();
        let job = pool.submit("6 * 7");
        await_queue(&pool, 0, 1);
        drop(held);
        assert_eq!(job.wait().unwrap().value, 42);
        assert_eq!(pool.metrics().nested_acquires, 0);
    }
}

isolated! {
    fn a_name_that_is_too_long_is_refused_wherever_it_is_used() {
        static POOL: SharedPool =
            SharedPool::new(|| SessionPool::builder(Runtime::python("python3")).min_idle(1).max_sessions(1));
        let name = "x".repeat(257);
        let handle = POOL.handle().unwrap();
        let too_long = |error: &Error| matches!(error, Error::TenantName { bytes: 257, cap: 256 });
        assert!(handle.acquire_as(&name).is_err_and(|error| too_long(&error)));
        assert!(handle.acquire_with(Acquire::new().tenant(name.as_str())).is_err_and(|error| too_long(&error)));
        let scope = handle.scope(&CancelToken::new()).as_tenant(name.as_str());
        assert!(scope.acquire().is_err_and(|error| too_long(&error)));
        assert!(scope.submit("1").wait().is_err_and(|error| too_long(&error)));
        drop(handle.acquire_as(&name[..256]).unwrap());
    }
}

isolated! {
    fn closing_and_cancelling_end_the_queued_jobs_of_tenants() {
        let pool = pool().min_idle(1).max_sessions(1).quota(Quota::new().max_leases(1)).start().unwrap();
        let held = pool.acquire_as("alice").unwrap();
        let token = CancelToken::new();
        let cancelled = pool.scope(&token).as_tenant("alice").submit("1");
        let closed = pool.scope(&CancelToken::new()).as_tenant("alice").submit("1");
        await_queue(&pool, 0, 2);
        token.cancel();
        assert!(matches!(cancelled.wait(), Err(Error::Cancelled)));
        await_queue(&pool, 0, 1);
        pool.terminate();
        assert!(matches!(closed.wait(), Err(Error::Closed)));
        drop(held);
    }
}

isolated! {
    fn a_storm_of_cancelled_jobs_of_many_tenants_loses_no_session() {
        let quota = Quota::new().max_leases(2).max_queued(20);
        let pool = pool().min_idle(3).max_sessions(3).quota(quota).start().unwrap();
        let done = thread::scope(|threads| {
            let users: Vec<_> = (0..6)
                .map(|user| {
                    let pool = &pool;
                    threads.spawn(move || {
                        let mut done = 0;
                        for round in 0..15 {
                            let token = CancelToken::new();
                            let scope = pool.scope(&token).as_tenant(format!("user {user}"));
                            let jobs: Vec<Job> = (0..8).map(|number| scope.submit(format!("{number}"))).collect();
                            jobs[round % 8].cancel();
                            for (number, job) in scope.as_completed(jobs).enumerate() {
                                if number == round % 5 {
                                    token.cancel();
                                }
                                match job.wait() {
                                    Ok(run) => done += usize::from(run.is_completed()),
                                    Err(Error::Cancelled) => {}
                                    Err(error) => panic!("{error}"),
                                }
                            }
                        }
                        done
                    })
                })
                .collect();
            users.into_iter().map(|user| user.join().unwrap()).sum::<usize>()
        });
        assert!(done >= 6 * 15, "{done}");
        let rest = || pool.info().counts;
        poll(|| (rest().idle, rest().total) == (3, 3), || format!("{:?}", rest()));
        let info = pool.info();
        assert!(info.quotas.is_empty(), "{:?}", info.quotas);
        assert_eq!((info.counts.jobs, info.counts.waiters), (0, 0));
        let metrics = info.metrics;
        assert_eq!(metrics.acquisition_attempts, metrics.acquisition_success + metrics.acquisitions_cancelled);
        assert_eq!(pool.submit("6 * 7").wait().unwrap().value, 42);
    }
}
