//! A native worker that does whatever the tests `native_*` need.

use std::cell::Cell;
use std::process::{Command, ExitCode, exit};
use std::time::Duration;

use remuda::worker::{Answer, Failure, Worker};
use serde_json::{Value, json};

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let counter = Cell::new(0_u64);
    let stained = Cell::new(false);
    let worker = Worker::new("test", "1.2")
        .code(|code, _| {
            if let Some(script) = code.script {
                return Ok(json!([script.file, script.args]).into());
            }
            match code.source.split_once(' ') {
                Some(("count", by)) => counter.set(counter.get() + by.parse::<u64>()?),
                Some(("say", text)) => println!("{text}"),
                _ => return Err(Failure::new("SyntaxError", code.source)),
            }
            Ok(Answer::value(&counter.get()))
        })
        .function("stain", |_, _| {
            stained.set(true);
            Ok(Answer::none())
        })
        .warm(|module, _| match module {
            "counter" => {
                counter.set(40);
                Ok(())
            }
            other => Err(Failure::new("NoSuchThing", other)),
        })
        .reset(|| {
            counter.set(40);
            if stained.get() { vec!["a stain".to_owned()] } else { Vec::new() }
        });
    let code = events(stopping(output(values(worker)))).serve();
    println!("printing does no harm afterwards");
    code
}

/// Answers of every kind, errors and panics.
fn values(worker: Worker<'_>) -> Worker<'_> {
    worker
        .function("echo", |call, _| Ok(Answer::value(&call.args::<Vec<Value>>()?)))
        .function("named", |call, _| Ok(Answer::value(&call.kwargs::<Value>()?)))
        .function("sum", |call, _| {
            let (left, right): (i64, i64) = call.args()?;
            Ok(Answer::value(&(left + right)))
        })
        .function("nothing", |_, _| Ok(Answer::none()))
        .function("shown", |_, _| Ok(Answer::value(&7).with_repr("seven")))
        .function("pairs", |_, _| Ok(Answer::value(&std::collections::BTreeMap::from([((1, 2), 3)]))))
        .function("text", |call, _| {
            let (size,): (usize,) = call.args()?;
            Ok(Answer::value(&"x".repeat(size)))
        })
        .function("bytes", |call, _| {
            let (size,): (usize,) = call.args()?;
            Ok(Answer::bytes(vec![b'x'; size]))
        })
        .function("length", |call, _| {
            let (text,): (&str,) = call.args()?;
            Ok(Answer::value(&text.len()))
        })
        .function("parse", |call, _| {
            let (text,): (String,) = call.args()?;
            Ok(Answer::value(&text.parse::<i32>()?))
        })
        .function("panic", |_, _| panic!("no way on"))
        .function("panic_late", |_, _| {
            println!("before it");
            let empty: Vec<u32> = Vec::new();
            Ok(Answer::value(&empty[usize::MAX >> 1]))
        })
}

/// What is printed, by whom.
fn output(worker: Worker<'_>) -> Worker<'_> {
    worker
        .function("print", |call, _| {
            let (times,): (u32,) = call.args()?;
            for n in 0..times {
                println!("line {n}");
                eprintln!("error {n}");
            }
            print!("half a line");
            Ok(Answer::none())
        })
        .function("child", |_, _| {
            println!("mine");
            Command::new("sh").args(["-c", "echo of a child; echo its error >&2"]).status()?;
            println!("mine again");
            Ok(Answer::none())
        })
        .function("flood", |call, _| {
            let (size,): (usize,) = call.args()?;
            std::io::Write::write_all(&mut std::io::stdout(), &vec![b'f'; size])?;
            Ok(Answer::none())
        })
        .function("stdin", |_, _| Ok(Answer::value(&std::io::read_to_string(std::io::stdin())?)))
}

/// What ends, what does not, and what takes its time.
fn stopping(worker: Worker<'_>) -> Worker<'_> {
    worker
        .function("wait", |_, context| {
            println!("waiting");
            let cancelled = context.cancelled_within(LONG);
            context.check_cancelled()?;
            Ok(Answer::value(&cancelled))
        })
        .function("poll", |_, context| {
            println!("polling");
            while !context.is_cancelled() {
                std::hint::spin_loop();
            }
            Ok(Answer::value("gave up in good order"))
        })
        .function("deaf", |_, _| {
            println!("deaf");
            loop {
                std::thread::park();
            }
        })
        .function("orphan", |_, _| {
            let child = Command::new("sleep").arg("600").spawn()?;
            println!("{} {}", std::process::id(), child.id());
            loop {
                std::thread::park();
            }
        })
        .function("exit", |call, _| {
            let (code,): (i32,) = call.args()?;
            eprintln!("leaving");
            exit(code)
        })
        .function("burn", |_, _| {
            let mut number = 1_u64;
            for _ in 0..50_000_000 {
                number = std::hint::black_box(number.rotate_left(5) ^ 0x9e37);
            }
            Ok(Answer::value(&number))
        })
}

/// What a request says and asks meanwhile.
fn events(worker: Worker<'_>) -> Worker<'_> {
    worker
        .function("show", |_, context| {
            context.progress(0.5, "half");
            context.progress(None, "");
            context.display(&[("text/html", "<b>1</b>"), ("text/plain", "1")])?;
            context.attach("copy", context.attachment("original").unwrap_or(b"nothing came"))?;
            Ok(Answer::value(&context.attachments().map(|(name, _)| name).collect::<Vec<_>>()))
        })
        .function("attach", |call, context| {
            let (size,): (usize,) = call.args()?;
            context.attach("large", &vec![0; size])?;
            Ok(Answer::none())
        })
        .function("ask", |_, context| {
            let name = context.input("name? ");
            let word = context.secret("word? ");
            Ok(Answer::value(&[name, word]))
        })
        .function("session", |_, context| Ok(Answer::value(&context.session())))
}
