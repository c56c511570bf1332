//! The terminal: output of the scripts above, one line of progress below.
//!
//! The line is drawn on stderr, only if that is a terminal, by a thread of its own a few times a
//! second. Whoever writes output erases it first; it comes back with the next drawing.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use remuda::{CancelToken, Stream};

use crate::lines::write_through;

const PERIOD: Duration = Duration::from_millis(100);
const ERASE: &[u8] = b"\r\x1b[K";

/// The two output streams and the line of progress, shared by the threads that run scripts.
pub(crate) struct Screen {
    /// The line of progress that is on the terminal now. Held while anything is written.
    drawn: Mutex<Option<String>>,
    /// Nobody reads our stdout any more.
    broken: AtomicBool,
    /// Cancelled when that happens: nobody wants the rest.
    token: CancelToken,
}

impl Screen {
    pub(crate) fn new(token: &CancelToken) -> Screen {
        Screen { drawn: Mutex::new(None), broken: AtomicBool::new(false), token: token.clone() }
    }

    /// Writes whole lines to our own stdout or stderr. Blocks while the reader of the stream does
    /// not read.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let _erased = self.erased();
        match stream {
            Stream::Stdout if self.is_broken() => {}
            Stream::Stdout => {
                if let Err(error) = write_through(&mut io::stdout().lock(), bytes) {
                    self.give_up(&error);
                }
            }
            // There is no place left to report a failure to write to stderr.
            Stream::Stderr => drop(write_through(&mut io::stderr().lock(), bytes)),
        }
    }

    /// Whether stdout was closed by its reader (or cannot be written for another reason).
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    fn give_up(&self, error: &io::Error) {
        self.broken.store(true, Ordering::SeqCst);
        self.token.cancel();
        if error.kind() != ErrorKind::BrokenPipe {
            drop(writeln!(io::stderr(), "remuda: cannot write to standard output: {error}"));
        }
    }

    /// The lock, with the line of progress removed.
    fn erased(&self) -> MutexGuard<'_, Option<String>> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.take().is_some() {
            drop(write_through(&mut io::stderr().lock(), ERASE));
        }
        drawn
    }

    fn draw(&self, text: String) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.as_ref() != Some(&text) {
            let line = [ERASE, text.as_bytes()].concat();
            drop(write_through(&mut io::stderr().lock(), &line));
            *drawn = Some(text);
        }
    }
}

/// Where every script stands.
pub(crate) struct Board {
    places: Mutex<Vec<Place>>,
}

#[derive(Clone)]
enum Place {
    Waiting,
    Running { label: String, since: Instant },
    Ended,
}

impl Board {
    pub(crate) fn new(scripts: usize) -> Board {
        Board { places: Mutex::new(vec![Place::Waiting; scripts]) }
    }

    pub(crate) fn started(&self, script: usize, label: &str) {
        self.put(script, Place::Running { label: label.to_owned(), since: Instant::now() });
    }

    pub(crate) fn ended(&self, script: usize) {
        self.put(script, Place::Ended);
    }

    fn put(&self, script: usize, place: Place) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)[script] = place;
    }

    /// The line of progress, at most `width` columns.
    fn text(&self, now: Instant, stopping: bool, width: usize) -> String {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = places.iter().filter(|place| matches!(place, Place::Ended)).count();
        let running: Vec<String> = places
            .iter()
            .filter_map(|place| match place {
                Place::Running { label, since } => Some(format!(
                    "{label} {:.0}s",
                    now.saturating_duration_since(*since).as_secs_f64().floor()
                )),
                _ => None,
            })
            .collect();
        let stopping = if stopping { "stopping, Ctrl-C again kills at once: " } else { "" };
        let line = format!(
            "{stopping}{ended}/{} done, {} running: {}",
            places.len(),
            running.len(),
            running.join(", ")
        );
        if line.chars().count() <= width {
            return line;
        }
        line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
    }
}

/// Draws the board until it is dropped, then removes the line.
#[must_use = "the line of progress lives as long as this"]
pub(crate) struct Progress {
    _stop: Option<mpsc::Sender<()>>,
}

impl Progress {
    /// Starts drawing on a thread of `scope`, if stderr is a terminal that can redraw a line.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        screen: &'scope Screen,
        board: &'scope Board,
    ) -> Progress {
        let can_redraw = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        if !io::stderr().is_terminal() || !can_redraw {
            return Progress { _stop: None };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        scope.spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                screen.draw(board.text(Instant::now(), screen.token.is_cancelled(), width()));
            }
            drop(screen.erased());
        });
        Progress { _stop: Some(stop) }
    }
}

/// Columns that a line may fill without wrapping.
fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    if columns < 2 { 79 } else { usize::from(columns) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_and_fits() {
        let board = Board::new(3);
        board.started(0, "a.py");
        board.ended(0);
        board.started(1, "b.py");
        let now = Instant::now() + Duration::from_millis(2_500);
        assert_eq!(board.text(now, false, 79), "1/3 done, 1 running: b.py 2s");
        assert_eq!(board.text(now, false, 10), "1/3 done,…");
        assert!(board.text(now, true, 79).starts_with("stopping"));
    }
}
