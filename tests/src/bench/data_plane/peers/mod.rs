//! The peers: what stands between client and application, each started the way its users would.

mod envoy;
mod floor;
mod haproxy;
mod heddle;
mod nginx;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{
    cpu::{self, Usage},
    field::{Field, Shape},
    load::Target,
    probe::{self, Ready},
    site,
};
use crate::process::Process;

/// How long a pair may take to its first answer; debug builds on a busy machine take seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before a request through a pair, the application answers so many directly. It takes long enough for HAProxy to notice
/// that its peer is up.
const DIRECT: usize = 9;
/// Before each request.
const PACE: Duration = Duration::from_millis(20);
/// How long a pair may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// What stands between client and application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Heddle's sidecars, with its control plane reading a directory.
    Heddle,
    /// Envoy with a static config.
    Envoy,
    /// HAProxy, HTTP/2 between as the others.
    Haproxy,
    /// nginx, HTTP/1.1 on pooled TLS connections.
    Nginx,
    /// See `tests/src/bin/floor.rs`.
    Floor,
    /// Nothing.
    None,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Heddle, Self::Envoy, Self::Haproxy, Self::Nginx, Self::Floor, Self::None];

    /// As it is written in tables and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heddle => "heddle",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Floor => "floor",
            Self::None => "none",
        }
    }

    /// Its program's file, if it has one.
    ///
    /// # Errors
    /// With what is missing.
    pub fn program(self) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Self::Heddle => crate::binaries::path(crate::binaries::PROXY).map(Some),
            Self::Envoy => envoy::program().map(Some),
            Self::Haproxy => haproxy::program().map(Some),
            Self::Nginx => nginx::program().map(Some),
            Self::Floor => floor::program().map(Some),
            Self::None => Ok(None),
        }
    }

    fn prepare(self, field: &mut Field) -> anyhow::Result<Prepared> {
        match self {
            Self::Heddle => heddle::prepare(field),
            Self::Envoy => envoy::prepare(field),
            Self::Haproxy => haproxy::prepare(field),
            Self::Nginx => nginx::prepare(field),
            Self::Floor => floor::prepare(field),
            Self::None => Ok(none(field)),
        }
    }
}

/// What there is to start, all files written.
struct Prepared {
    /// Where the client will find the outbound proxy.
    outbound: IpAddr,
    /// Inbound first.
    commands: Vec<Command>,
    /// What must hold before the first request.
    ready: Vec<Ready>,
}

/// Nothing to start.
fn none(field: &Field) -> Prepared {
    Prepared { outbound: field.site.ip, commands: Vec::new(), ready: Vec::new() }
}

/// A running pair. It ends when dropped.
#[derive(Debug)]
pub struct Pair {
    /// Whose.
    pub peer: Peer,
    /// From the start of both processes to the end of the first 200.
    pub to_first_200: Duration,
    outbound: IpAddr,
    processes: Vec<Process>,
}

impl Drop for Pair {
    /// Lets both end by themselves, and what has not after a while is killed with its [`Process`]. A sidecar that counts what it
    /// runs (`proxy/release/train`) writes its counts at that end.
    fn drop(&mut self) {
        for process in &self.processes {
            // It may have ended already.
            let _ = process.terminate();
        }
        let began = Instant::now();
        while began.elapsed() < FAREWELL && self.processes.iter_mut().any(Process::is_running) {
            probe::pause();
        }
    }
}

/// Which of a pair's requests.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The first that it has.
    First,
    /// The second.
    Next,
}

impl Pair {
    /// Starts both proxies and waits for the first 200 through them.
    ///
    /// # Errors
    /// When its program is missing, ends, or does not answer 200 in a minute.
    pub fn start(field: &mut Field, peer: Peer) -> anyhow::Result<Self> {
        let (mut pair, began) = Self::ready(field, peer)?;
        let target = pair.http("/1k");
        loop {
            match probe::status(&target) {
                Some(200) => break,
                other => pair.goes_on(began, &format!("the answer is {other:?}"))?,
            }
        }
        pair.to_first_200 = began.elapsed();
        Ok(pair)
    }

    /// Starts both proxies and waits until they say that they are ready. With the moment at which they were started.
    fn ready(field: &mut Field, peer: Peer) -> anyhow::Result<(Self, Instant)> {
        let Prepared { outbound, commands, ready } = peer.prepare(field)?;
        let began = Instant::now();
        let mut processes = Vec::new();
        for (command, side) in commands.iter().zip(["inbound", "outbound"]) {
            processes.push(field.world.run(&format!("{}-{side}", peer.name()), command)?);
        }
        let mut pair = Self { peer, to_first_200: Duration::ZERO, outbound, processes };
        for one in ready {
            while !one.holds() {
                pair.goes_on(began, "not ready")?;
            }
        }
        Ok((pair, began))
    }

    /// Starts a pair and says how long one request takes: the first that the proxies have, or the next after one for another
    /// page. Before both of them the application answers others at the same pace that come to it directly, as does the one
    /// before if this is the first. So all else is alike: this client, the application and the processors are as awake and as
    /// warm, and the pair is as old and has rested as long. Every request has a connection of its own.
    ///
    /// # Errors
    /// When the pair does not start as for [`Pair::start`], or a request is not answered with 200.
    pub fn one_request(field: &mut Field, peer: Peer, which: Which) -> anyhow::Result<Duration> {
        let (pair, _) = Self::ready(field, peer)?;
        let target = pair.http("/1k");
        let direct = Target { address: SocketAddr::new(field.site.ip, site::HTTP), ..target.clone() };
        let ask = |target: &Target| {
            thread::sleep(PACE);
            let asked = Instant::now();
            let status = probe::status(target);
            ensure!(status == Some(200), "{}: the answer is {status:?}\n{}", peer.name(), pair.logs());
            Ok(asked.elapsed())
        };
        let before = match which {
            Which::First => &direct,
            Which::Next => &target,
        };
        let ask_after_others = |target: &Target| {
            for _ in 0..DIRECT {
                ask(&direct)?;
            }
            ask(target)
        };
        ask_after_others(&Target { path: site::OTHER.to_owned(), ..before.clone() })?;
        ask_after_others(&target)
    }

    /// Pauses, unless the start has failed.
    fn goes_on(&mut self, began: Instant, why: &str) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if !process.is_running() {
                bail!("{} ended: {}", process.name(), process.log());
            }
        }
        if began.elapsed() > PATIENCE {
            let logs: Vec<_> = self.processes.iter().map(Process::log).collect();
            bail!("{} after {PATIENCE:?}: {why}\n{}", self.peer.name(), logs.join("\n"));
        }
        probe::pause();
        Ok(())
    }

    /// Where a client asks nginx for `path`.
    #[must_use]
    pub fn http(&self, path: &str) -> Target {
        self.target(&format!("site:{}", site::HTTP), site::HTTP, path)
    }

    /// Where a client calls the gRPC server.
    #[must_use]
    pub fn grpc(&self, path: &str) -> Target {
        self.target(&format!("echo:{}", site::GRPC), site::GRPC, path)
    }

    fn target(&self, host: &str, port: u16, path: &str) -> Target {
        let port = if self.peer == Peer::None { port } else { heddle_api::ports::OUTBOUND };
        Target { address: SocketAddr::new(self.outbound, port), host: host.to_owned(), path: path.to_owned() }
    }

    /// Where a client finds a TCP application of this port.
    #[must_use]
    pub fn tcp(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.outbound, port)
    }

    /// What both proxies have used so far.
    ///
    /// # Errors
    /// When one has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&self.ids()).with_context(|| self.logs())
    }

    /// The resident memory of both, in bytes.
    ///
    /// # Errors
    /// When one has ended.
    pub fn resident(&self) -> anyhow::Result<u64> {
        cpu::resident(&self.ids()).with_context(|| self.logs())
    }

    fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log).collect::<Vec<_>>().join("\n")
    }
}

/// `text` with each `<<NAME>>` replaced.
pub(super) fn fill<V: AsRef<str>>(text: &str, values: &[(&str, V)]) -> String {
    let replace =
        |text: String, (name, value): &(&str, V)| text.replace(&format!("<<{name}>>"), value.as_ref());
    values.iter().fold(text.to_owned(), replace)
}

/// Writes a peer's config file with its names filled in.
fn configure(directory: &Path, name: &str, text: &str, values: &[(&str, String)]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let file = directory.join(name);
    std::fs::write(&file, fill(text, values)).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// For the peers that stay out of the workloads with many endpoints or routes.
fn only_one_endpoint(field: &Field) -> anyhow::Result<()> {
    ensure!(field.shape == Shape::PLAIN, "its config has one endpoint and one route");
    Ok(())
}
