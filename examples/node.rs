//! A Node session at work: state, a module, streaming, a time limit, bytes.
//!
//! ```sh
//! cargo run --example node
//! ```

use std::time::Duration;

use remuda::{Call, Outcome, Request, Runtime, Session};

const REPORT: &str = r#"
const { createHash } = require("crypto");
const orders = [["rope", 8.5, 2], ["lamp", 42, 1], ["oats", 3.25, 12]];
async function total(tax, { currency = "EUR" } = {}) {
  const sum = orders.reduce((sum, [, price, count]) => sum + price * count, 0);
  return { sum: +(sum * (1 + tax)).toFixed(2), currency };
}
for (const [i, [name, price]] of orders.entries()) {
  await new Promise((done) => setTimeout(done, 5));
  console.log(`${name.padEnd(6)} ${price.toFixed(2)}`);
  remuda.progress((i + 1) / orders.length, name);
}
orders.length
"#;

fn main() -> remuda::Result<()> {
    let mut session = Session::start(&Session::builder(Runtime::node("node")).warm_import("crypto"))?;
    println!("{} is ready", session.info().runtime);

    let request = Request::code(REPORT)
        .on_text(|_, text| print!("  {text}"))
        .on_progress(|step| println!("  {:.0} %", step.fraction.unwrap_or(0.0) * 100.0));
    let run = session.execute(request)?;
    assert_eq!(run.outcome, Outcome::Completed, "{:?}", run.error);
    println!("{} orders", run.value);

    // A function of the session, with its promise waited for.
    let call = Call::new("total").arg(0.19).kwarg("currency", "CHF");
    println!("the total is {}", session.execute(call)?.value);

    // Bytes go in and come out as they are.
    let request = Request::code("createHash('sha256').update(remuda.attachments.data).digest()")
        .attach("data", b"remuda");
    println!("a digest of {} bytes", session.execute(request)?.bytes.unwrap_or_default().len());

    // An endless loop ends, the session lives on.
    let endless = Request::code("while (true) {}").time_limit(Duration::from_millis(100));
    println!("an endless loop {}", session.execute(endless)?.outcome);
    println!("and the session knows its orders: {}", session.execute("orders.length")?.value);
    Ok(())
}
