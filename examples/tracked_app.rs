//! The smallest tracked app: it counts, and stops when the tracker asks it to.
//!
//! ```text
//! cargo run -- serve &
//! cargo run --example tracked_app
//! ```
//!
//! Open the address that `serve` prints, select the session and press "Kill selected". Without a
//! tracker the app counts all the same, and joins one that is started later.

use std::time::Duration;

use remuda::SessionClient;

fn main() -> remuda::Result<()> {
    let mut config = SessionClient::builder("tracked_app").label("example", "yes");
    if let Some(url) = std::env::args().nth(1) {
        config = config.server_url(url);
    }
    let client = config.start()?;
    client.on_kill(|| println!("somebody wants this to stop"));
    let url = &client.config().server_url;
    if client.is_connected() {
        println!("tracked as {} at {url}", client.id());
    } else {
        println!("no tracker at {url}: counting on, unseen for now");
    }

    let token = client.cancel_token();
    let _task = client.task("counting");
    for number in 1.. {
        println!("{number}");
        // A cancelled token ends the wait, so a kill takes milliseconds.
        if token.wait_timeout(Duration::from_secs(1)) {
            break;
        }
    }
    // Dropping the client takes the session off the tracker's list.
    Ok(())
}
