//! The echo application of the Gateway API's mesh conformance; see `docs/conformance.md`.
//!
//! ```text
//! echo server [--port 8080]… [--tls 8443]… [--tcp 9090]… [--grpc 7070]… [--crt FILE --key FILE]
//! echo client http|https|grpc|tcp://HOST[:PORT][/PATH] [--method M] [--count N] [-H NAME:VALUE]… [--timeout 5s]
//! ```
//!
//! Under the name `client` (a link to it) it is `echo client`, as the Gateway API's suite calls it in the pods.

use std::{ffi::OsString, io::Write as _, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use heddle_tests::echo::{
    client::{self, Question},
    server::{Server, Settings},
};
use http::{HeaderName, HeaderValue, Method, Uri};

/// Says what it saw of a request, and prints what came back.
#[derive(Debug, Parser)]
#[command(name = "echo", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers.
    Server(ServerArgs),
    /// Asks, and prints.
    Client(ClientArgs),
}

#[derive(Debug, Args)]
struct ServerArgs {
    /// A port of HTTP/1 and HTTP/2. Repeatable; 8080 and 8443 by default.
    #[arg(long, default_values_t = [8080, 8443])]
    port: Vec<u16>,
    /// Which of these has TLS. Repeatable.
    #[arg(long, default_values_t = [8443])]
    tls: Vec<u16>,
    /// A port that answers whatever comes. Repeatable.
    #[arg(long, default_values_t = [9090])]
    tcp: Vec<u16>,
    /// A port of gRPC. Repeatable.
    #[arg(long, default_values_t = [7070])]
    grpc: Vec<u16>,
    /// The certificate for TLS, in PEM. Without the flag, or where there is no such file, one is made: the Gateway API's
    /// manifests name files that its own image brings.
    #[arg(long, requires = "key")]
    crt: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "crt")]
    key: Option<PathBuf>,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0")]
    bind_ip: IpAddr,
    /// What ServiceVersion says.
    #[arg(long, default_value = "")]
    version: String,
    /// What Cluster says.
    #[arg(long, default_value = "")]
    cluster: String,
    /// What Hostname says; by default the machine's name, which in a container is the pod's.
    #[arg(long, env = "HOSTNAME")]
    hostname: Option<String>,
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// Whom to ask what.
    url: Uri,
    /// The method, of HTTP.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// How often, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// A header; Host goes in the place of the URL's. Repeatable.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = client::parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For each request.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// HTTP/2, with prior knowledge.
    #[arg(long)]
    http2: bool,
    /// What gRPC and TCP send.
    #[arg(long, default_value = "HelloWorld")]
    msg: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let own = args.first().map(PathBuf::from).unwrap_or_default();
    if own.file_stem().is_some_and(|name| name == "client") {
        args.insert(1, "client".into());
    }
    match Cli::parse_from(args).command {
        Command::Server(args) => {
            let hostname = || rustix::system::uname().nodename().to_string_lossy().into_owned();
            let certificate = args.crt.zip(args.key).filter(|(crt, key)| crt.exists() && key.exists());
            let settings = Settings {
                ip: args.bind_ip,
                http: args.port,
                tls: args.tls,
                tcp: args.tcp,
                grpc: args.grpc,
                certificate,
                version: args.version,
                cluster: args.cluster,
                hostname: args.hostname.unwrap_or_else(hostname),
            };
            let server = Server::bind(&settings).await?;
            let mut out = std::io::stdout().lock();
            writeln!(out, "listening at {:?}", server.addresses())?;
            drop(out);
            server.run().await;
        }
        Command::Client(args) => {
            let ClientArgs { url, method, count, headers, timeout, http2, msg } = args;
            let question = Question { url, method, headers, count, timeout, http2, message: msg };
            let output = client::ask(&question).await?;
            std::io::stdout().lock().write_all(output.as_bytes())?;
        }
    }
    Ok(())
}
