//! The threads of the server and their end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use mio::net::TcpListener;
use mio::{Interest, Poll, Waker};

use super::event_loop::{EventLoop, Job, LISTENER, Mailbox, WAKER};
use super::response::Response;
use super::{Action, Limits, Service};
use crate::background::{Background, shielded};
use crate::clock::Moment;

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
        let address = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let mailbox = Arc::new(Mailbox::new(Waker::new(poll.registry(), WAKER)?));
        let (jobs, queue) = unbounded();
        let handlers = (0..limits.handlers.max(1))
            .map(|_| {
                let (queue, service) = (queue.clone(), Arc::clone(&service));
                Background::spawn("remuda-handler", move || run_handler(&queue, service.as_ref()))
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
        self.mailbox.stop(Moment::after(grace));
        self.connections.join();
        // The loop held the only sender: the handlers see the end of their queue.
        for handler in &mut self.handlers {
            handler.join();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

fn run_handler<S: Service>(queue: &Receiver<Job>, service: &S) {
    while let Ok(Job { request, ticket }) = queue.recv() {
        let action = shielded("answering a request", || service.handle(request, &ticket));
        ticket.act(action.unwrap_or_else(|| Action::Respond(Response::detail(500, "Internal Server Error"))));
    }
}
