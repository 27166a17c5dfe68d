//! Opaque TCP: new connections, small messages, bulk; and HTTP connections that do nothing.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{Done, Percentiles, Target};
use crate::latency::Latencies;

/// Clients that connect, one connection after the other.
const CONNECTING: usize = 4;
/// Clients of redis.
const CLIENTS: usize = 20;
/// What redis-benchmark is to do in a second of wanted length; it takes a number of requests, not a time.
const SMALL_PER_SECOND: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to redis for each PING.
///
/// # Errors
/// When one fails.
pub fn connect(address: SocketAddr, length: Duration) -> anyhow::Result<Done> {
    let began = Instant::now();
    let mut all = Latencies::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTING)
            .map(|_| {
                scope.spawn(move || {
                    let mut latencies = Latencies::default();
                    while began.elapsed() < length {
                        let asked = Instant::now();
                        ping(address)?;
                        latencies.record(asked.elapsed());
                    }
                    anyhow::Ok(latencies)
                })
            })
            .collect();
        for client in clients {
            all.add(&client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        anyhow::Ok(())
    })?;
    let (requests, took) = (all.len() as u64, began.elapsed());
    Ok(Done { requests, failed: 0, bytes: 0, took, latency: Percentiles::of(&all) })
}

fn ping(address: SocketAddr) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"PING\r\n")?;
    let mut pong = [0; 7];
    socket.read_exact(&mut pong).context("a PING over a new connection")?;
    ensure!(&pong == b"+PONG\r\n", "PING is answered {:?}", String::from_utf8_lossy(&pong));
    Ok(())
}

/// redis-benchmark's GET.
///
/// # Errors
/// When redis-benchmark is not there or says what cannot be read.
pub fn small(address: SocketAddr, length: Duration) -> anyhow::Result<Done> {
    let requests = SMALL_PER_SECOND * length.as_secs().max(1);
    let mut command = Command::new(crate::program::find("redis-benchmark").context("needs redis-benchmark")?);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["-c", &CLIENTS.to_string(), "-n", &requests.to_string(), "-t", "get", "--csv"]);
    let output = command.output().context("redis-benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "redis-benchmark: {} {text}", output.status);
    let (per_second, p50, p99) = read(&text).with_context(|| format!("redis-benchmark said {text:?}"))?;
    let took = Duration::from_secs_f64(requests as f64 / per_second);
    let latency = Some(Percentiles { p50, p99, p999: None });
    Ok(Done { requests, failed: 0, bytes: 0, took, latency })
}

/// Reads the line of GET: test, requests a second, and latencies in milliseconds: average, least, p50, p95, p99, most.
fn read(text: &str) -> Option<(f64, f64, f64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("\"GET\","))?;
    let numbers: Vec<f64> = line.split(',').filter_map(|word| word.trim_matches('"').parse().ok()).collect();
    let [per_second, _, _, p50, _, p99, _] = numbers[..] else { return None };
    (per_second > 0.0).then_some((per_second, p50, p99))
}

/// Reads what a server sends without end.
///
/// # Errors
/// When the connection breaks.
pub fn bulk(address: SocketAddr, length: Duration) -> anyhow::Result<Done> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 256 * 1024];
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed() < length {
        let read = socket.read(&mut buffer)?;
        ensure!(read > 0, "the endless connection ended after {bytes} bytes");
        bytes += read as u64;
    }
    Ok(Done { requests: 1, failed: 0, bytes, took: began.elapsed(), latency: None })
}

/// Opens HTTP/1.1 connections, has one answer on each, and gives them back open.
///
/// # Errors
/// When one cannot be opened or is not answered with 200.
pub fn idle(target: &Target, connections: usize) -> anyhow::Result<Vec<TcpStream>> {
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", target.path, target.host);
    (0..connections)
        .map(|n| {
            let mut socket = TcpStream::connect(target.address).with_context(|| format!("connection {n}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(request.as_bytes())?;
            let mut answer = vec![0; 8 * 1024];
            let read = socket.read(&mut answer).with_context(|| format!("connection {n}"))?;
            ensure!(answer[..read].starts_with(b"HTTP/1.1 200"), "connection {n} is not answered with 200");
            Ok(socket)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_get_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                    \"GET\",\"1000.00\",\"0.5\",\"0.1\",\"0.4\",\"0.8\",\"0.9\",\"3.0\"\n";
        assert_eq!(read(text), Some((1000.0, 0.4, 0.9)));
        assert_eq!(read("Could not connect"), None);
    }
}
