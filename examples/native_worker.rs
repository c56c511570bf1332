//! A program that is its own worker: the host runs a Rust function in a process that can be stopped,
//! killed, and crash, without harm to itself.
//!
//! `cargo run --example native_worker`

use std::time::Duration;

use remuda::worker::{Answer, Failure, Worker};
use remuda::{Call, CancelToken, Request, Runtime, Session};

fn main() -> remuda::Result<()> {
    // In a worker process this serves and never returns; in the host it does nothing.
    worker().serve_if_asked();
    host()
}

fn worker() -> Worker<'static> {
    Worker::new("primes", "1.0")
        .function("count_primes", |call, context| {
            let (limit,): (u32,) = call.args()?;
            let mut count = 0;
            for number in 2..limit {
                if number.is_multiple_of(1_000) {
                    context.check_cancelled()?;
                }
                count += u32::from(is_prime(number));
            }
            println!("looked at {limit} numbers");
            Ok(Answer::value(&count))
        })
        .function("fragile", |call, _| {
            let (index,): (usize,) = call.args()?;
            let numbers = [2, 3, 5];
            Ok(Answer::value(&numbers[index]))
        })
        .function("refuse", |_, _| Err(Failure::new("Refused", "not today")))
        .function("forever", |_, context| {
            while !context.cancelled_within(Duration::from_secs(1)) {}
            Ok(Answer::value("stopped in good order"))
        })
}

fn is_prime(number: u32) -> bool {
    (2..=number.isqrt()).all(|factor| !number.is_multiple_of(factor))
}

fn host() -> remuda::Result<()> {
    let mut session = Session::builder(Runtime::this_program()).start()?;
    println!("{}", session.info().runtime);

    let run = session.execute(Call::new("count_primes").arg(100_000))?;
    print!("{} primes; it printed: {}", run.value, run.stdout);

    // A panic is an error of this request; the worker goes on.
    for call in [Call::new("fragile").arg(7), Call::new("refuse"), Call::new("nonsense")] {
        if let Some(error) = session.execute(call)?.error {
            println!("{}: {}", error.kind, error.message);
        }
    }

    let token = CancelToken::new();
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            token.wait_timeout(Duration::from_millis(50));
            token.cancel();
        });
        session.execute(Request::from(Call::new("forever")).cancel_token(&token))
    })?;
    println!("{:?}: {}", run.outcome, run.value);
    session.shutdown(Duration::from_secs(1));
    Ok(())
}
