//! How streams and connections end: cancelled, refused, reset, drained, dead. What the other side sees is always true.

use std::{cell::RefCell, convert::Infallible, future::pending, pin::pin, rc::Rc};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, server::SendResponse};
use heddle_api::carrier::Form;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Collected, Full, StreamBody};
use tokio::{sync::mpsc, task::spawn_local};
use tokio_stream::StreamExt;

use super::super::{
    CarrierBody, Sent, respond,
    settings::PING_TIMEOUT,
    testing::{SECOND, World, channel, for_hours, on_a_worker, raw},
    unless_reset,
};
use crate::reason::Reason;

/// A world whose handlers report what became of their streams.
async fn world() -> (World, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let handler = move |request: Request<RecvStream>, to| {
        let tell = tell.clone();
        async move {
            let outcome = serve(request, to).await;
            let _nobody_asks = tell.send(outcome);
        }
    };
    (World::new(Form::Http1, handler).await, told)
}

async fn serve(request: Request<RecvStream>, mut to: SendResponse<Bytes>) -> String {
    match request.uri().path() {
        "/refuse" => to.send_reset(Code::REFUSED_STREAM),
        "/fail" => to.send_reset(Code::INTERNAL_ERROR),
        "/never" => return format!("{:?}", unless_reset(&mut to, pin!(pending::<()>())).await),
        "/endless" => {
            let chunks = tokio_stream::iter(std::iter::repeat(Bytes::from_static(&[0; 8192])));
            let body = StreamBody::new(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
            return respond(to, Response::new(body)).await.unwrap_err().to_string();
        }
        "/broken" => {
            let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err("the application broke off")];
            let frames = tokio_stream::iter(frames).then(|frame| async {
                tokio::time::sleep(SECOND / 10).await;
                frame
            });
            let body = StreamBody::new(Box::pin(frames));
            return respond(to, Response::new(body)).await.unwrap_err().to_string();
        }
        "/read" => {
            let body = CarrierBody::of_request(request).into_body();
            return format!("{:?}", body.collect().await.map(Collected::to_bytes));
        }
        "/slow" => {
            tokio::time::sleep(SECOND / 4).await;
            respond(to, Response::new(Full::from("slow"))).await.unwrap();
        }
        _ => respond(to, Response::new(Full::from("fine"))).await.unwrap(),
    }
    "done".to_owned()
}

#[tokio::test]
async fn a_refused_stream_was_provably_not_sent_and_any_other_reset_may_have_been() {
    on_a_worker(async {
        let (world, _told) = world().await;
        let refused = world.get("/refuse").await.unwrap_err();
        assert_eq!((refused.reason, refused.sent), (Reason::UpstreamReset, Sent::No));
        let failed = world.get("/fail").await.unwrap_err();
        assert_eq!((failed.reason, failed.sent), (Reason::UpstreamReset, Sent::Maybe));
        assert!(failed.source.contains("reviews"), "{failed}");
    })
    .await;
}

#[tokio::test]
async fn who_gives_up_cancels_the_request_at_the_far_side() {
    on_a_worker(async {
        let (world, mut told) = world().await;
        let sending = tokio::time::timeout(SECOND / 10, world.get("/never"));
        assert!(sending.await.is_err());
        assert_eq!(told.recv().await.unwrap(), "None");

        drop(world.get("/endless").await.unwrap());
        assert!(told.recv().await.unwrap().contains("reset"));
    })
    .await;
}

#[tokio::test]
async fn a_body_that_broke_off_never_looks_like_a_clean_end() {
    on_a_worker(async {
        let (world, mut told) = world().await;
        let mut body = world.get("/broken").await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Code::INTERNAL_ERROR));
        assert!(told.recv().await.unwrap().contains("the application broke off"));

        // And so for requests: the client went away in the middle of its body.
        let broken = [Ok(Frame::data(Bytes::from_static(b"half"))), Err("the client broke off")];
        let request = Request::post("http://reviews/read").body(StreamBody::new(tokio_stream::iter(broken)));
        let error = world.pool.send(&world.peer, request.unwrap(), SECOND).await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::BadRequest, Sent::Maybe), "not the peer's fault");
        let read = told.recv().await.unwrap();
        assert!(read.starts_with("Err") && read.contains("CANCEL"), "{read}");
    })
    .await;
}

#[tokio::test]
async fn dropping_the_response_ends_the_request_body_too() {
    on_a_worker(async {
        let (world, _told) = world().await;
        let (sender, body) = channel();
        let request = Request::post("http://reviews/endless").body(body).unwrap();
        let response = world.pool.send(&world.peer, request, SECOND).await.unwrap();
        drop(response);
        sender.closed().await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_does_not_wait_for_the_request_body_arrives() {
    on_a_worker(async {
        let (world, _told) = world().await;
        for _ in 0..20 {
            let endless = tokio_stream::iter(std::iter::repeat(Bytes::from_static(&[0; 8192])));
            let endless = StreamBody::new(endless.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
            let request = Request::post("http://reviews/").body(endless).unwrap();
            let response = world.pool.send(&world.peer, request, SECOND).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "fine");
        }
        assert_eq!(world.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_stream_above_the_last_one_of_goaway_was_provably_not_sent() {
    on_a_worker(async {
        // GOAWAY, last stream 0, NO_ERROR, after the SETTINGS and once a request is there.
        let world = World::scripted(b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await;
        let error = world.get("/").await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::No));

        // Without GOAWAY nobody knows.
        let world = World::scripted(b"\0\0\0\x04\0\0\0\0\0", b"").await;
        let error = world.get("/").await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::Maybe));
    })
    .await;
}

#[tokio::test]
async fn a_draining_server_finishes_what_runs_and_serves_what_comes() {
    on_a_worker(async {
        let (world, _told) = world().await;
        let world = Rc::new(world);
        let running = {
            let world = Rc::clone(&world);
            spawn_local(async move { world.text("/slow").await })
        };
        assert_eq!(world.text("/").await, "fine");
        world.drain_server();
        for _ in 0..50 {
            assert_eq!(world.text("/").await, "fine");
            tokio::time::sleep(SECOND / 1000).await;
        }
        assert_eq!(running.await.unwrap(), "slow");
        assert!(world.accepted.get() > 1, "GOAWAY sends the next requests to another connection");
    })
    .await;
}

#[tokio::test]
async fn a_draining_pool_finishes_what_runs_and_then_closes() {
    on_a_worker(async {
        let (world, _told) = world().await;
        let world = Rc::new(world);
        let running = {
            let world = Rc::clone(&world);
            spawn_local(async move { world.text("/slow").await })
        };
        assert_eq!(world.text("/").await, "fine");
        world.pool.drain();
        assert_eq!(world.text("/").await, "fine");
        assert_eq!(running.await.unwrap(), "slow");
        assert_eq!(world.accepted.get(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_noticed() {
    for_hours(async {
        let world = World::silent().await;
        let began = tokio::time::Instant::now();
        let error = world.get("/").await.unwrap_err();
        assert!(began.elapsed() <= PING_TIMEOUT + SECOND, "it was asked at once: {:?}", began.elapsed());
        assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::Maybe));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_caller_closes_an_idle_connection_before_the_server_would() {
    for_hours(async {
        let ended = Rc::new(RefCell::new(Vec::new()));
        let world = World::watched(
            Form::Http1,
            |_, to| async move {
                respond(to, Response::new(Full::from("fine"))).await.unwrap();
            },
            Rc::clone(&ended),
        )
        .await;
        assert_eq!(world.text("/").await, "fine");
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(world.text("/").await, "fine");
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!((world.accepted.get(), ended.borrow().len()), (1, 0));
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(*ended.borrow(), [Ok(())], "an orderly close, by GOAWAY");
        assert_eq!(world.text("/").await, "fine");
        assert_eq!(world.accepted.get(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_never_asks_anything_is_closed_in_the_end() {
    for_hours(async {
        let (world, _told) = world().await;
        let credentials = world.authority.credentials("web");
        let io = raw(&world, &credentials, "http1.9080.heddle").await;
        let (_never_used, connection) = h2::client::handshake(io).await.unwrap();
        let began = tokio::time::Instant::now();
        connection.await.unwrap();
        assert!(began.elapsed() >= 600 * SECOND);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_takes_no_new_streams_and_ends_with_its_last() {
    for_hours(async {
        let (world, _told) = world().await;
        let held = world.get("/endless").await.unwrap();
        for _minute in 0..40 {
            tokio::time::sleep(60 * SECOND).await;
            assert_eq!(world.text("/").await, "fine");
        }
        assert_eq!(world.accepted.get(), 2, "one after 24 to 36 minutes, the next not before 48");
        let mut body = held.into_body();
        assert!(body.frame().await.unwrap().is_ok(), "the old stream still flows");
    })
    .await;
}
