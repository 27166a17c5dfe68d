//! The applications behind every pair, all at one address: nginx, a gRPC server, redis, a source of bytes.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::UNIX_EPOCH,
};

use anyhow::{Context, anyhow, bail};

use super::{peers::fill, probe};
use crate::{World, app::HttpApp, process::Process, program};

/// nginx.
pub const HTTP: u16 = 8000;
/// gRPC that gives back what it gets, HTTP/2 without TLS.
pub const GRPC: u16 = 9000;
/// redis.
pub const REDIS: u16 = 6379;
/// Whoever connects is sent bytes for as long as it reads them.
pub const BULK: u16 = 7000;

/// A page of nginx's as large as `/1k`, of another date.
pub const OTHER: &str = "/other";

/// The running applications.
#[derive(Debug)]
pub struct Site {
    /// Where they all are.
    pub ip: IpAddr,
    /// What is not there, and why.
    pub missing: BTreeMap<u16, String>,
    _processes: Vec<Process>,
}

impl Site {
    /// Starts them at `ip`; nginx is at the addresses `more` too.
    ///
    /// # Errors
    /// When nginx is missing, or one does not start. Without redis the rest is there.
    pub fn start(world: &World, ip: IpAddr, more: &[IpAddr]) -> anyhow::Result<Self> {
        let mut processes = vec![nginx(world, ip, more)?];
        let mut missing = BTreeMap::new();
        match program::find("redis-server") {
            Some(program) => processes.push(redis(world, ip, program)?),
            None => drop(missing.insert(REDIS, "needs redis-server".to_owned())),
        }
        serve_grpc(SocketAddr::new(ip, GRPC))?;
        serve_bulk(SocketAddr::new(ip, BULK))?;
        Ok(Self { ip, missing, _processes: processes })
    }
}

fn nginx(world: &World, ip: IpAddr, more: &[IpAddr]) -> anyhow::Result<Process> {
    let program = program::find("nginx").context("needs nginx")?;
    let home: PathBuf = world.directory().join("nginx");
    std::fs::create_dir_all(home.join("html"))?;
    for (path, size) in [("/1k", 1024), ("/64k", 64 * 1024), (OTHER, 1024)] {
        std::fs::write(home.join("html").join(&path[1..]), vec![b'x'; size])?;
    }
    // So that its answer says something else in its fields.
    std::fs::File::options()
        .append(true)
        .open(home.join("html").join(&OTHER[1..]))?
        .set_modified(UNIX_EPOCH)?;
    let config = fill(
        include_str!("../../../bench/nginx/site.conf"),
        &[
            ("HOME", home.display().to_string()),
            ("SITE", ip.to_string()),
            ("MORE", more.iter().map(|ip| format!("listen {ip}:{HTTP};\n")).collect()),
        ],
    );
    std::fs::write(home.join("nginx.conf"), config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
    // As root nginx would serve as another user, who may not enter the world's directory.
    if rustix::process::getuid().is_root() {
        command.args(["-g", "user root;"]);
    }
    listening(world.run("nginx", &command)?, SocketAddr::new(ip, HTTP))
}

fn redis(world: &World, ip: IpAddr, program: PathBuf) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.args([
        "--bind",
        &ip.to_string(),
        "--port",
        &REDIS.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    command.args(["--protected-mode", "no"]).arg("--dir").arg(world.directory());
    listening(world.run("redis", &command)?, SocketAddr::new(ip, REDIS))
}

/// It serves until this process ends, on a thread of its own, since loads block the caller's.
fn serve_grpc(address: SocketAddr) -> anyhow::Result<()> {
    let (started, starts) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let serve = async || {
            let app = HttpApp::start(address, "echo").await;
            let serves = app.is_ok();
            let _ = started.send(app.as_ref().map(drop).map_err(|error| anyhow!("{error:#}")));
            if serves {
                std::future::pending::<()>().await;
            }
        };
        // Without a runtime nothing is sent, which the other end sees.
        if let Ok(runtime) = runtime {
            runtime.block_on(serve());
        }
    });
    starts.recv().context("no runtime for the gRPC server")?
}

/// As [`serve_grpc`].
fn serve_bulk(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            thread::spawn(move || {
                let bytes = vec![0x5a; 256 * 1024];
                // It ends when nobody reads any more.
                while socket.write_all(&bytes).is_ok() {}
            });
        }
    });
    Ok(())
}

/// Waits until the process listens.
fn listening(mut process: Process, address: SocketAddr) -> anyhow::Result<Process> {
    while !probe::listens(address) {
        if !process.is_running() {
            bail!("{} ended: {}", process.name(), process.log());
        }
        probe::pause();
    }
    Ok(process)
}
