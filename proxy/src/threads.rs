//! The traffic workers: one thread each with a current-thread runtime. The first one also accepts.

use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::Context;
use tokio::{
    net::TcpStream,
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    carrier, inbound,
    listen::{self, Accepted, Bound, Crew, Port},
    outbound,
    plain::Spare,
    rehearse::rehearse,
    warm::warm,
    worker::{Shared, Worker},
};

/// Connections that wait for one worker at most.
const QUEUE: usize = 1024;

/// How the acceptor reaches one worker.
#[derive(Clone, Debug)]
pub struct Handoff {
    /// Connections that it has.
    pub open: Open,
    /// Its queue.
    pub queue: mpsc::Sender<Accepted<std::net::TcpStream>>,
}

/// Counts open connections.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<AtomicUsize>);

/// One open connection; counted until dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<AtomicUsize>);

impl Open {
    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more.
    #[must_use]
    pub fn opened(&self) -> OpenConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(&self.0))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where connections come from.
#[derive(Debug)]
pub struct Entrance {
    /// Callers'.
    pub sockets: Vec<Bound>,
    /// To the application, left by its probes.
    pub spares: mpsc::Receiver<Spare>,
}

/// How a worker comes by its connections.
#[derive(Debug)]
enum Role {
    /// It accepts for all of them, and keeps what probes leave.
    Accepts { entrance: Entrance, own: Open, others: Vec<Handoff> },
    /// From the one that accepts.
    IsHanded(mpsc::Receiver<Accepted<std::net::TcpStream>>),
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    open: Vec<Open>,
}

impl Workers {
    /// Starts `count` workers; the first has the entrance. `warmed` counts those that have done what is to be done
    /// ahead of the first request.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        count: usize,
        shared: &Shared,
        entrance: Entrance,
        warmed: &Arc<watch::Sender<usize>>,
    ) -> anyhow::Result<Self> {
        let (others, queues): (Vec<_>, Vec<_>) = (1..count)
            .map(|_| {
                let (queue, incoming) = mpsc::channel(QUEUE);
                (Handoff { open: Open::default(), queue }, incoming)
            })
            .unzip();
        let own = Open::default();
        let open = std::iter::once(own.clone()).chain(others.iter().map(|h| h.open.clone())).collect();
        let accepts = Role::Accepts { entrance, own, others };
        let roles = std::iter::once(accepts).chain(queues.into_iter().map(Role::IsHanded));
        let threads = roles.enumerate().map(|(index, role)| {
            let (shared, warmed) = (shared.clone(), Arc::clone(warmed));
            std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    // It cannot move between threads, so it is made where it runs.
                    let runtime =
                        Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                    match runtime {
                        Ok(runtime) => runtime.block_on(work(index, shared, role, warmed)),
                        Err(error) => tracing::error!(%error, "a worker's runtime could not be made"),
                    }
                })
                .context("a worker's thread could not be started")
        });
        let threads = threads.collect::<anyhow::Result<_>>()?;
        Ok(Self { threads, open })
    }

    /// Connections open on all workers.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.iter().map(Open::count).sum()
    }

    /// Whether a worker has ended, which only a panic of its own loop can bring about.
    #[must_use]
    pub fn one_has_died(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

async fn work(index: usize, shared: Shared, role: Role, warmed: Arc<watch::Sender<usize>>) {
    let metrics = shared.metrics.worker(index);
    let pool = carrier::Pool::new(Arc::clone(&shared.identity), Arc::clone(&metrics));
    let worker = Rc::new(Worker::new(shared, metrics, pool));
    let warming = Rc::clone(&worker);
    tokio::task::spawn_local(async move {
        // What one worker has run is mapped for all of them.
        let rehearsed = async {
            if index == 0 {
                rehearse(&warming).await;
            }
        };
        tokio::join!(warm(&warming), rehearsed);
        warmed.send_modify(|workers| *workers += 1);
    });
    match role {
        Role::Accepts { entrance: Entrance { sockets, mut spares }, own, others } => {
            let plain = Rc::clone(&worker.plain);
            tokio::task::spawn_local(async move {
                while let Some(spare) = spares.recv().await {
                    plain.adopt(spare).await;
                }
            });
            let crew = Crew { own, serve: Rc::new(move |accepted| start(&worker, accepted)), others };
            let mut acceptors = JoinSet::new();
            for bound in sockets {
                acceptors.spawn_local(listen::accept(bound, crew.clone()));
            }
            while let Some(ended) = acceptors.join_next().await {
                if let Err(error) = ended.map_err(io::Error::other).flatten() {
                    tracing::error!(%error, "a listening socket is not served any more");
                }
            }
        }
        Role::IsHanded(mut incoming) => {
            // The senders that the acceptor holds keep the queue open.
            while let Some(Accepted { port, io, peer, open }) = incoming.recv().await {
                match TcpStream::from_std(io) {
                    Ok(io) => start(&worker, Accepted { port, io, peer, open }),
                    Err(error) => tracing::warn!(%error, "a connection could not be registered"),
                }
            }
        }
    }
}

/// Serves a connection on this worker, in a task of its own.
pub fn start(worker: &Rc<Worker>, accepted: Accepted) {
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(serve(worker, accepted));
}

/// Serves a connection to its end.
async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { port, io, peer, open } = accepted;
    // Each on the heap, so that an idle connection takes the room of what it is, and not of the largest.
    match port {
        Port::Outbound => Box::pin(outbound::serve(worker, io, peer, open)).await,
        Port::Forward(name) => Box::pin(outbound::serve_forward(worker, io, peer, &name, open)).await,
        Port::Inbound => {
            let original = crate::capture::original_destination(&io);
            Box::pin(inbound::plaintext::serve(worker, io, original, open)).await;
        }
        Port::Mesh => Box::pin(inbound::mesh::serve(worker, io, open)).await,
    }
}
