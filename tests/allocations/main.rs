//! How many heap allocations a request costs: both sidecars in this process, a client and an application that allocate
//! nothing while they are counted.
//!
//! The sidecars are the real ones, their whole `run`, with a control plane that is a process of its own. Every allocation
//! of this process is counted, so this test has an executable to itself.

mod counting;

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use clap::Parser;
use heddle_proxy::{
    cli::{Cli, Command},
    log::Logs,
};
use heddle_tests::{World, eventually, manifest, manifest::PodManifest, metrics::Scrape, world::APP_PORT};

/// What a request may cost both sidecars together: measured 32.0, and the same each time, so one more box, copy or clone on
/// the request's way is noticed. Lower it whenever the measured figure falls.
const CEILING: f64 = 32.5;
const REQUESTS: u32 = 2_000;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nweft\n";

#[test]
fn a_request_over_mtls_allocates_no_more_than_it_did() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut world = World::new().unwrap();
    let (web, reviews) = (world.new_address(), world.new_address());
    world.save("reviews.yaml", &manifest::service("shop/reviews", APP_PORT, "http", "app: reviews")).unwrap();
    for (name, ip, ports) in [("web", web, Vec::new()), ("reviews", reviews, vec![APP_PORT])] {
        let pod = PodManifest {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            ip,
            ports,
            meshed: true,
            ready: true,
            terminating: false,
        };
        world.save(&pod.file(), &pod.yaml()).unwrap();
    }
    runtime.block_on(world.start_control_plane()).unwrap();
    // As in production: no line for each request that went well, unless asked.
    let (logs, _flush) = Logs::start("warn").unwrap();
    for (name, ip) in [("web", web), ("reviews", reviews)] {
        start_sidecar(&world, name, ip, logs.clone());
    }
    let application = TcpListener::bind((reviews, APP_PORT)).unwrap();
    thread::spawn(move || answer(&application));
    runtime.block_on(async {
        for ip in [web, reviews] {
            eventually("the sidecar is there", || async move {
                TcpStream::connect((ip, heddle_api::ports::OUTBOUND)).map(drop)
            })
            .await;
        }
    });

    let mut client = TcpStream::connect((web, heddle_api::ports::OUTBOUND)).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // Pools, tables and buffers grow to their sizes.
    ask(&mut client, REQUESTS);
    let before = counting::so_far();
    ask(&mut client, REQUESTS);
    let each = (counting::so_far() - before) as f64 / f64::from(REQUESTS);
    println!("{each:.1} allocations a request, both sidecars together");

    let scrape = runtime.block_on(Scrape::of((web, heddle_api::ports::METRICS).into())).unwrap();
    let sent = scrape.sum("http_client_request_duration_seconds_count", &[("heddle_mtls", "true")]);
    assert!(sent >= f64::from(2 * REQUESTS), "{sent} requests went over mTLS: {}", scrape.text);
    assert!(each <= CEILING, "{each:.1} allocations a request; the ceiling is {CEILING}");
}

/// A sidecar on a thread of its own, as its `main` runs it. It ends with the process.
fn start_sidecar(world: &World, name: &str, ip: IpAddr, logs: Logs) {
    let token = world.token("shop", name, "1h").unwrap();
    let command = world.sidecar_command(&format!("shop/{name}"), ip, &token).unwrap();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let Command::Run(args) = Cli::parse_from(words).command else { unreachable!("it says `run`") };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(heddle_proxy::run::run(*args, logs)).unwrap();
    });
}

/// The application: the same answer to each request, over any number of connections.
fn answer(listener: &TcpListener) {
    for mut socket in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut held = 0;
            while let Ok(read @ 1..) = socket.read(&mut buffer[held..]) {
                held += read;
                if buffer[..held].ends_with(b"\r\n\r\n") {
                    held = 0;
                    if socket.write_all(ANSWER).is_err() {
                        return;
                    }
                }
            }
        });
    }
}

fn ask(client: &mut TcpStream, requests: u32) {
    let mut buffer = [0; 4096];
    for _ in 0..requests {
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
            .unwrap();
        let mut held = 0;
        while !buffer[..held].ends_with(b"weft\n") {
            let read = client.read(&mut buffer[held..]).unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&buffer[..held]));
            held += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..held]));
    }
}
