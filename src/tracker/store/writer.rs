//! The thread that writes.
//!
//! It takes all commands that wait as one transaction, so that a hundred registrations cost one
//! write to the disk. The order is: tables, commit, memory, events, replies.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rusqlite::{Connection, TransactionBehavior};

use super::memory::Memory;
use super::schema;
use super::trouble::Trouble;
use super::write::{Now, Outcome, Write};
use crate::background::{Background, shielded};
use crate::clock::{Clock, Moment, wall};
use crate::sync::Mutex;
use crate::tracker::civil;
use crate::tracker::events::{At, Told};
use crate::tracker::feed::Feed;
use crate::{Error, Result, StoreFault};

/// How long a beat may wait in memory: with the time that writing takes, it is on the disk within a
/// second.
const BEATS_WAIT: Duration = Duration::from_millis(700);
/// At most this many changes in one transaction.
const BATCH: usize = 512;

/// An error that several callers share.
pub(super) type Failure = Box<dyn StdError + Send + Sync>;

pub(super) enum Command {
    Write {
        write: Write,
        reply: Sender<Result<Outcome, Failure>>,
    },
    /// For a database in memory.
    Read(Box<dyn FnOnce(&Connection) + Send>),
    /// Beats wait to be written.
    BeatsCame,
}

/// The owner's end of the thread. Dropping it writes what is left and ends the thread.
pub(super) struct Writer {
    commands: Option<Sender<Command>>,
    trouble: Arc<Trouble>,
    thread: Background,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        memory: Arc<Mutex<Memory>>,
        clock: Clock,
        trouble: Trouble,
        feed: Arc<Feed>,
    ) -> Result<Writer> {
        let (commands, queue) = unbounded();
        let trouble = Arc::new(trouble);
        let shared = Arc::clone(&trouble);
        let thread = Background::spawn("remuda-store", move || {
            WriterThread { connection, memory, clock, queue, write_beats_at: None, trouble: shared, feed }
                .run();
        })
        .map_err(|error| Error::io("starting the thread of the tracker's database", error))?;
        Ok(Writer { commands: Some(commands), trouble, thread })
    }

    pub(super) fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Fails only when the thread is gone; whoever waits for a reply sees that there.
            let _ = commands.send(command);
        }
    }

    pub(super) fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// Waits until the change is on the disk.
    pub(super) fn write(&self, write: Write) -> Result<Outcome, Failure> {
        let (reply, answer) = bounded(1);
        self.send(Command::Write { write, reply });
        answer.recv().unwrap_or_else(|_| Err("its thread is gone".into()))
    }

    /// Waits until all changes are on the disk; the first error, if there is one, when all are decided.
    pub(super) fn write_all(&self, writes: Vec<Write>) -> Result<(), Failure> {
        let (reply, answers) = unbounded();
        let count = writes.len();
        for write in writes {
            self.send(Command::Write { write, reply: reply.clone() });
        }
        drop(reply);
        let mut first = Ok(());
        for _ in 0..count {
            let answer = answers.recv().unwrap_or_else(|_| Err("its thread is gone".into()));
            first = first.and(answer.map(drop));
        }
        first
    }

    /// Runs a query on the writer's own connection.
    pub(super) fn read<T: Send + 'static>(
        &self,
        body: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, answer) = bounded(1);
        self.send(Command::Read(Box::new(move |connection| {
            let _ = reply.send(body(connection));
        })));
        match answer.recv() {
            Ok(result) => result.map_err(Failure::from),
            Err(_) => Err("its thread is gone".into()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commands = None;
        self.thread.join();
    }
}

struct WriterThread {
    connection: Connection,
    memory: Arc<Mutex<Memory>>,
    /// What ages are decided by; the rhythm of this thread is not.
    clock: Clock,
    queue: Receiver<Command>,
    write_beats_at: Option<Moment>,
    trouble: Arc<Trouble>,
    /// Hears of each change after memory has, and before whoever asked for it.
    feed: Arc<Feed>,
}

type Pending = (Write, Sender<Result<Outcome, Failure>>);

impl WriterThread {
    fn run(mut self) {
        while let Some(first) = self.next() {
            let mut batch = Vec::new();
            self.take(first, &mut batch);
            while batch.len() < BATCH
                && let Ok(command) = self.queue.try_recv()
            {
                self.take(command, &mut batch);
            }
            self.commit(batch);
            if self.write_beats_at.is_some_and(|moment| moment <= Moment::now()) {
                self.write_beats();
            }
        }
        self.write_beats();
    }

    /// The next command; `None` when the owner is gone.
    fn next(&mut self) -> Option<Command> {
        loop {
            let Some(moment) = self.write_beats_at else { return self.queue.recv().ok() };
            let left = moment.saturating_since(Moment::now());
            match self.queue.recv_timeout(left) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => self.write_beats(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn take(&mut self, command: Command, batch: &mut Vec<Pending>) {
        match command {
            Command::Write { write, reply } => batch.push((write, reply)),
            Command::Read(body) => {
                shielded("reading the tracker's database", || body(&self.connection));
            }
            Command::BeatsCame => {
                self.write_beats_at.get_or_insert(Moment::after(BEATS_WAIT));
            }
        }
    }

    /// One transaction for all; if it fails, one for each, so that nobody fails for another.
    fn commit(&mut self, batch: Vec<Pending>) {
        if batch.is_empty() {
            return;
        }
        let writes: Vec<Write> = batch.iter().map(|(write, _)| write.clone()).collect();
        if let Ok(outcomes) = self.transact(&writes) {
            for ((_, reply), outcome) in batch.into_iter().zip(outcomes) {
                let _ = reply.send(Ok(outcome));
            }
            return;
        }
        for (write, reply) in batch {
            let result = self.transact(std::slice::from_ref(&write));
            let outcome = result.map(|mut outcomes| outcomes.pop().unwrap_or(Outcome::Changed(false)));
            let _ = reply.send(outcome.map_err(Failure::from));
        }
    }

    fn transact(&mut self, writes: &[Write]) -> rusqlite::Result<Vec<Outcome>> {
        let result = self.change(writes);
        match &result {
            Ok(_) => self.note_success(),
            // A change that was refused says nothing of the database.
            Err(error) if StoreFault::of(error) == StoreFault::Other => {}
            Err(error) => self.note_failure(error),
        }
        result
    }

    fn change(&mut self, writes: &[Write]) -> rusqlite::Result<Vec<Outcome>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut outcomes, mut lessons, mut told) = (Vec::new(), Vec::new(), Told::default());
        let now = Now { moment: self.clock.now(), millis: civil::millis(wall()) };
        for write in writes {
            let (outcome, lesson) = write.apply(&transaction, &self.memory, now, &mut told)?;
            outcomes.push(outcome);
            lessons.push(lesson);
        }
        transaction.commit()?;
        {
            let mut memory = self.memory.lock();
            for lesson in lessons {
                lesson.teach(&mut memory);
            }
        }
        self.feed.record(told);
        Ok(outcomes)
    }

    /// Also tries whether writing works again, when it did not.
    fn write_beats(&mut self) {
        self.write_beats_at = None;
        let (beats, told) = {
            let mut memory = self.memory.lock();
            (memory.take_unwritten(), memory.take_unwritten_told())
        };
        if beats.is_empty() && told.is_empty() && !self.trouble.is_any() {
            return;
        }
        match update_beats(&mut self.connection, &beats, &told) {
            Ok(()) => self.note_success(),
            Err(error) => {
                {
                    let mut memory = self.memory.lock();
                    memory.put_back(beats);
                    memory.put_back_told(told);
                }
                self.note_failure(&error);
            }
        }
    }

    fn note_success(&self) {
        if self.trouble.clear() {
            log::info!("the tracker's database takes changes again");
            self.tell_of_store(true);
        }
    }

    fn tell_of_store(&self, is_ready: bool) {
        self.feed.record(At { millis: civil::millis(wall()) }.store(is_ready).into());
    }

    fn note_failure(&mut self, error: &rusqlite::Error) {
        if self.trouble.note(StoreFault::of(error), error.to_string()) {
            log::warn!("the tracker's database takes no changes, heartbeats are kept in memory: {error}");
            self.tell_of_store(false);
        }
        self.write_beats_at.get_or_insert(Moment::after(BEATS_WAIT));
    }
}

fn update_beats(
    connection: &mut Connection,
    beats: &[(i64, i64)],
    told: &[(u64, u32)],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if beats.is_empty() && told.is_empty() {
        schema::touch(&transaction)?;
    }
    {
        let mut update = transaction.prepare_cached("UPDATE beats SET last_heartbeat = ?2 WHERE row = ?1")?;
        for beat in beats {
            update.execute([beat.0, beat.1])?;
        }
        let mut update =
            transaction.prepare_cached("UPDATE kills SET told = max(told, ?2) WHERE kill_id = ?1")?;
        for (kill_id, times) in told {
            update.execute([i64::try_from(*kill_id).unwrap_or(i64::MAX), i64::from(*times)])?;
        }
    }
    transaction.commit()
}
