//! A stream must not hurt its neighbours: each test does its worst on a connection and then looks at the others.

use std::{cell::Cell, convert::Infallible, future::pending, pin::pin, rc::Rc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use heddle_api::carrier::Form;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    task::{JoinSet, yield_now},
    time::Instant,
};
use tokio_stream::StreamExt;

use crate::{
    carrier::{
        respond,
        settings::{CONNECTIONS_PER_PEER, STREAM_WAIT, STREAMS},
        testing::{SECOND, World, get, on_a_worker},
        unless_reset,
    },
    reason::Reason,
};

use super::super::Sent;

/// What the handlers have done so far.
#[derive(Clone, Default)]
struct Seen {
    /// Handlers that wait for ever, unless cancelled.
    waiting: Rc<Cell<usize>>,
    /// One-byte frames given to the carrier.
    dripped: Rc<Cell<usize>>,
    /// Bytes of large bodies given to the carrier.
    poured: Rc<Cell<usize>>,
}

/// As many as the settings allow, nearly.
const DRIPS: usize = 65_000;

async fn serve(seen: Seen, request: Request<RecvStream>, mut to: SendResponse<Bytes>) {
    match request.uri().path() {
        "/large" => {
            let chunks = tokio_stream::iter(std::iter::repeat_n(Bytes::from(vec![b'x'; 65536]), 1024));
            let body = StreamBody::new(chunks.map(move |chunk| {
                seen.poured.set(seen.poured.get() + chunk.len());
                Ok::<_, Infallible>(Frame::data(chunk))
            }));
            let _cancelled = respond(to, Response::new(body)).await;
        }
        "/drip" => {
            // Each byte comes alone, as from an application that writes it alone.
            let drops = tokio_stream::iter(0..DRIPS).then(move |_| {
                let dripped = Rc::clone(&seen.dripped);
                async move {
                    yield_now().await;
                    dripped.set(dripped.get() + 1);
                    Ok::<_, Infallible>(Frame::data(Bytes::from_static(b".")))
                }
            });
            let _cancelled = respond(to, Response::new(StreamBody::new(Box::pin(drops)))).await;
        }
        "/never" => {
            seen.waiting.set(seen.waiting.get() + 1);
            assert!(unless_reset(&mut to, pin!(pending::<()>())).await.is_none());
            seen.waiting.set(seen.waiting.get() - 1);
        }
        _ => respond(to, Response::new(Full::from("fine"))).await.unwrap(),
    }
}

async fn world() -> (World, Seen) {
    let seen = Seen::default();
    let handler = seen.clone();
    (World::new(Form::Http1, move |request, to| serve(handler.clone(), request, to)).await, seen)
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(SECOND / 1000).await;
    }
}

#[tokio::test]
async fn readers_that_stall_on_large_bodies_do_not_delay_the_others() {
    on_a_worker(async {
        let (world, seen) = world().await;
        let mut stalled = Vec::new();
        for _ in 0..STREAMS - 1 {
            stalled.push(world.get("/large").await.unwrap());
        }
        for _ in 0..100 {
            assert_eq!(world.text("/").await, "fine");
        }
        assert_eq!(world.accepted.get(), 1, "all of it was on one connection");
        // What they hold is as the settings say: a window, a send buffer and the chunk between for each.
        let held = stalled.len() * (256 + 128 + 64) * 1024;
        assert!(seen.poured.get() <= held, "{} of {held} bytes", seen.poured.get());
        // And who stalled finds all of it.
        let body = stalled.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 64 << 20);
    })
    .await;
}

#[tokio::test]
async fn thousands_of_small_frames_to_a_stalled_reader_do_not_end_the_connection() {
    on_a_worker(async {
        let (world, seen) = world().await;
        let stalled = world.get("/drip").await.unwrap();
        until(|| seen.dripped.get() == DRIPS).await;
        for _ in 0..100 {
            assert_eq!(world.text("/").await, "fine");
        }
        let dripped = stalled.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((dripped.len(), world.accepted.get()), (DRIPS, 1));
    })
    .await;
}

#[tokio::test]
async fn a_thousand_requests_cancelled_at_once_leave_the_others_unharmed() {
    on_a_worker(async {
        let (world, seen) = world().await;
        let world = Rc::new(world);
        for round in 0..3 {
            let mut waiting = JoinSet::new();
            for _ in 0..1000 {
                let world = Rc::clone(&world);
                waiting.spawn_local(async move { world.get("/never").await.map(drop) });
            }
            until(|| seen.waiting.get() == 1000).await;
            waiting.abort_all();
            while waiting.join_next().await.is_some() {}
            for _ in 0..100 {
                assert_eq!(world.text("/").await, "fine", "round {round}");
            }
            until(|| seen.waiting.get() == 0).await;
        }
        // Those that rest after so many cancels are helped out by a few more.
        assert!(world.accepted.get() <= CONNECTIONS_PER_PEER, "a connection was lost");
    })
    .await;
}

#[tokio::test]
async fn requests_cancelled_before_they_were_looked_at_end_no_connection() {
    on_a_worker(async {
        let (world, seen) = world().await;
        let world = Rc::new(world);
        assert_eq!(world.text("/").await, "fine");
        for _ in 0..30 {
            let mut sending = JoinSet::new();
            for _ in 0..50 {
                let world = Rc::clone(&world);
                sending.spawn_local(async move { world.get("/never").await.map(drop) });
            }
            // They go out with the next turn of the connection, and so do their resets.
            yield_now().await;
            sending.abort_all();
            while sending.join_next().await.is_some() {}
        }
        assert_eq!(world.text("/").await, "fine");
        until(|| seen.waiting.get() == 0).await;
        // One for each 250 cancels, while the others rest.
        assert!(world.accepted.get() <= 1500 / 250 + 1, "a connection was lost");
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_fit_go_to_another_connection_up_to_a_bound() {
    on_a_worker(async {
        let (world, seen) = world().await;
        let world = Rc::new(world);
        let mut waiting = JoinSet::new();
        let all = CONNECTIONS_PER_PEER * STREAMS;
        for _ in 0..all {
            let world = Rc::clone(&world);
            waiting.spawn_local(async move { world.get("/never").await.map(drop) });
        }
        until(|| seen.waiting.get() == all).await;
        assert_eq!(world.accepted.get(), CONNECTIONS_PER_PEER);

        tokio::time::pause();
        let began = Instant::now();
        let refused = world.pool.send(&world.peer, get("/"), SECOND / 10).await.unwrap_err();
        assert!(began.elapsed() >= STREAM_WAIT, "a busy peer is waited for");
        tokio::time::resume();
        assert_eq!((refused.reason, refused.sent), (Reason::ConnectTimeout, Sent::No));
        // A place that comes free goes to who waits for it.
        let next = world.text("/");
        let freeing = async {
            yield_now().await;
            waiting.abort_all();
        };
        assert_eq!(tokio::join!(next, freeing).0, "fine");
        assert_eq!(world.accepted.get(), CONNECTIONS_PER_PEER);
    })
    .await;
}
