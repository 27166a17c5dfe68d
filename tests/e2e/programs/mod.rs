//! Real programs, none written here, as clients and as applications.

mod curl_and_nginx;
mod databases;
mod python;
mod redis;

use std::{
    net::SocketAddr,
    process::{Command, Output},
    time::Duration,
};

use heddle_tests::{eventually, process::Process};
use tokio::net::TcpStream;

/// Runs a program to its end, which must come within a minute.
async fn output(command: &Command) -> Output {
    let mut run = tokio::process::Command::new(command.get_program());
    run.args(command.get_args()).kill_on_drop(true);
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            run.env(key, value);
        }
    }
    tokio::time::timeout(Duration::from_secs(60), run.output())
        .await
        .unwrap_or_else(|_| panic!("{command:?} still runs after a minute"))
        .unwrap()
}

/// Runs a program that must succeed and gives what it printed.
async fn says(command: &Command) -> String {
    let output = output(command).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// Waits until a server listens.
async fn listens(address: SocketAddr, server: &mut Process) {
    eventually(&format!("{} listens at {address}", server.name()), || {
        let running = server.is_running();
        let log = server.log();
        async move {
            anyhow::ensure!(running, "it ended: {log}");
            TcpStream::connect(address).await.map_err(|error| anyhow::anyhow!("{error}: {log}"))?;
            Ok(())
        }
    })
    .await;
}

/// Where servers that will not run as root may keep their files: a directory of the world that `user` owns.
fn owned_by(path: &std::path::Path, user: &str) {
    let status = Command::new("chown").arg("-R").arg(user).arg(path).status().unwrap();
    assert!(status.success(), "chown {user} {}", path.display());
}

/// Whether this runs as root, as which some servers refuse to run.
fn is_root() -> bool {
    rustix::process::getuid().is_root()
}
