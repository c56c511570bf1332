//! The threads of the server and their end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select, unbounded};
use mio::net::TcpListener;
use mio::{Interest, Poll, Waker};

use super::event_loop::{EventLoop, Job, Jobs, LISTENER, WAKER};
use super::mailbox::Mailbox;
use super::response::Response;
use super::{Action, Limits, Service};
use crate::background::{Background, shielded};
use crate::clock::Moment;

/// So many clients may come at once, after a restart of the server say, before the system has one try
/// again a second later; less where the system allows less.
const BACKLOG: i32 = 4096;

/// A running server: one thread for all connections, a few that run handlers. Dropping it stops
/// it without waiting for open requests.
pub(crate) struct HttpServer {
    address: SocketAddr,
    mailbox: Arc<Mailbox>,
    connections: Background,
    handlers: Vec<Background>,
}

impl HttpServer {
    /// Listens on `address` and serves at once.
    pub(crate) fn start<S: Service>(
        address: SocketAddr,
        service: Arc<S>,
        limits: Limits,
    ) -> io::Result<HttpServer> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let address = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let mailbox = Arc::new(Mailbox::new(Waker::new(poll.registry(), WAKER)?));
        let ((short, short_queue), (long, long_queue)) = (unbounded(), unbounded());
        let jobs = Jobs { short, long };
        let handlers = (0..limits.handlers.max(2))
            .map(|number| {
                let (short, service) = (short_queue.clone(), Arc::clone(&service));
                let long = (number % 2 == 0).then(|| long_queue.clone());
                Background::spawn("remuda-handler", move || run_handler(short, long, service.as_ref()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let event_loop = EventLoop::new(poll, listener, Arc::clone(&mailbox), service, jobs, limits);
        let connections = Background::spawn("remuda-http", move || event_loop.run())?;
        Ok(HttpServer { address, mailbox, connections, handlers })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers what has arrived, parked replies included, waits for that for at most `grace`, and
    /// ends all threads. A handler that is at work is waited for beyond that.
    pub(crate) fn shutdown(&mut self, grace: Duration) {
        self.begin_shutdown(grace);
        self.connections.join();
        // The loop held the only sender: the handlers see the end of their queue.
        for handler in &mut self.handlers {
            handler.join();
        }
    }
}

impl HttpServer {
    /// The part of [`shutdown`](HttpServer::shutdown) that does not wait.
    pub(super) fn begin_shutdown(&self, grace: Duration) {
        self.mailbox.stop(Moment::after(grace));
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// Until both queues have ended, or the only one.
fn run_handler<S: Service>(mut short: Receiver<Job>, long: Option<Receiver<Job>>, service: &S) {
    let mut open = 1 + usize::from(long.is_some());
    let mut long = long.unwrap_or_else(never);
    while open > 0 {
        let job = select! {
            recv(short) -> job => job.inspect_err(|_| short = never()),
            recv(long) -> job => job.inspect_err(|_| long = never()),
        };
        match job {
            Ok(job) => answer(job, service),
            Err(_) => open -= 1,
        }
    }
}

fn answer<S: Service>(Job { request, ticket }: Job, service: &S) {
    let action = shielded("answering a request", || service.handle(request, &ticket));
    ticket.act(action.unwrap_or_else(|| Action::Respond(Response::detail(500, "Internal Server Error"))));
}
