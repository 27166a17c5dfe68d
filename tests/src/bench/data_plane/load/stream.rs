//! gRPC streams: on each a message goes out when the one before it has come back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client};
use http::Request;
use tokio::{net::TcpStream, task::JoinSet};

use super::{Done, Percentiles, Target, h2load::grpc_frame};
use crate::latency::Latencies;

const CONNECTIONS: usize = 4;
const STREAMS: usize = 5;

/// Sends messages of this content to a server that gives them back.
///
/// # Errors
/// When a stream cannot be opened, breaks, or ends with another status than 0.
pub fn run(target: &Target, message: &[u8], length: Duration) -> anyhow::Result<Done> {
    let frame = Bytes::from(grpc_frame(message));
    let target = target.clone();
    // A thread of its own, so that the caller's runtime does not matter.
    let load = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(all(&target, &frame, length))
    });
    load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
}

async fn all(target: &Target, frame: &Bytes, length: Duration) -> anyhow::Result<Done> {
    let mut streams = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let socket = TcpStream::connect(target.address).await?;
        socket.set_nodelay(true)?;
        let (requests, connection) = client::handshake(socket).await?;
        tokio::spawn(connection);
        for _ in 0..STREAMS {
            let uri = format!("http://{}{}", target.host, target.path);
            let request =
                Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
            let (response, sender) =
                requests.clone().ready().await?.send_request(request.body(())?, false)?;
            let frame = frame.clone();
            streams.spawn(async move { one(response, sender, frame, length).await });
        }
    }
    let began = Instant::now();
    let mut latencies = Latencies::default();
    while let Some(one) = streams.join_next().await {
        latencies.add(&one??);
    }
    Ok(Done {
        requests: latencies.len() as u64,
        failed: 0,
        bytes: 0,
        took: began.elapsed(),
        latency: Percentiles::of(&latencies),
    })
}

async fn one(
    response: client::ResponseFuture,
    mut sender: SendStream<Bytes>,
    frame: Bytes,
    length: Duration,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let began = Instant::now();
    // The server may answer with its head only when it has read something.
    let mut sent = Instant::now();
    sender.send_data(frame.clone(), false)?;
    let response = response.await?;
    ensure!(response.status() == 200, "the stream is answered {}", response.status());
    let mut body = response.into_body();
    let mut last = false;
    loop {
        take(&mut body, frame.len()).await?;
        latencies.record(sent.elapsed());
        if last {
            break;
        }
        // The end goes with the last message: an empty frame of its own for each stream looks like a flood to Envoy.
        last = began.elapsed() >= length;
        sent = Instant::now();
        sender.send_data(frame.clone(), last)?;
    }
    while let Some(rest) = body.data().await {
        rest?;
    }
    let trailers = body.trailers().await?.context("a gRPC stream ends with trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "it ended with {trailers:?}");
    Ok(latencies)
}

/// Reads one message's worth of bytes.
async fn take(body: &mut RecvStream, bytes: usize) -> anyhow::Result<()> {
    let mut read = 0;
    while read < bytes {
        let data = body.data().await.context("the stream ended")??;
        read += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(read == bytes, "{read} bytes came back of {bytes}");
    Ok(())
}
