//! Whole round trips: pool, TLS, server.

mod attacks;
mod copying;
mod ends;
mod neighbours;
mod pooling;

use std::{convert::Infallible, future::poll_fn};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use heddle_api::carrier::Form;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};

use super::{
    CarrierBody, Sent, Tunnel, Upgraded, respond,
    testing::{SECOND, World, channel, on_a_worker},
    upgrade,
};
use crate::reason::{self, Reason};

/// Answers with what the request was: method, target, body, trailers.
async fn echo(request: Request<RecvStream>, to: SendResponse<Bytes>) {
    let (parts, body) = CarrierBody::of_request(request).into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    let text = format!("{} {} {:?}", parts.method, parts.uri, body.to_bytes());
    let frames = [Some(Frame::data(Bytes::from(text))), trailers.map(Frame::trailers)];
    let frames = tokio_stream::iter(frames.into_iter().flatten().map(Ok::<_, Infallible>));
    respond(to, Response::new(StreamBody::new(frames))).await.unwrap();
}

#[tokio::test]
async fn a_request_and_its_answer_cross_with_bodies_and_trailers() {
    on_a_worker(async {
        let world = World::new(Form::Http1, echo).await;
        assert_eq!(world.text("/a?b").await, "GET http://reviews:9080/a?b b\"\"");

        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let (sender, body) = channel();
        sender.send(Frame::data("hello ".into())).await.unwrap();
        sender.send(Frame::data("world".into())).await.unwrap();
        sender.send(Frame::trailers(trailers.clone())).await.unwrap();
        drop(sender);
        let request = Request::post("/up").header("host", "reviews").body(body).unwrap();
        let answer = world.pool.send(&world.peer, request, SECOND).await.unwrap();
        let answer = answer.into_body().collect().await.unwrap();
        assert_eq!(answer.trailers(), Some(&trailers));
        assert_eq!(answer.to_bytes(), "POST http://reviews/up b\"hello world\"");
        assert_eq!(world.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_response_that_says_its_length_says_it_to_hyper() {
    on_a_worker(async {
        let world = World::new(Form::Http1, |_, to| async move {
            let response = Response::builder().header("content-length", "5");
            respond(to, response.body(Full::from("hello")).unwrap()).await.unwrap();
        })
        .await;
        let mut body = world.get("/").await.unwrap().into_body();
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(5), false));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
        assert!(body.frame().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_body_of_many_small_writes_is_a_few_frames() {
    on_a_worker(async {
        let world = World::new(Form::Http1, |_, to| async move {
            let words = (0..1000).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"word "))));
            respond(to, Response::new(StreamBody::new(tokio_stream::iter(words)))).await.unwrap();
        })
        .await;
        let mut body = world.get("/").await.unwrap().into_body();
        let (mut frames, mut bytes) = (0, 0);
        while let Some(frame) = body.frame().await {
            frames += 1;
            bytes += frame.unwrap().into_data().unwrap().len();
        }
        // Not one alone, since tokio takes its turns.
        assert!(frames < 50 && bytes == 5000, "{frames} frames of {bytes} bytes");
    })
    .await;
}

/// Accepts every upgrade of `websocket` and echoes; declines the rest as the application would.
async fn application(request: Request<RecvStream>, to: SendResponse<Bytes>) {
    let asked = upgrade::asked(&request).unwrap().unwrap();
    assert_eq!(asked.method, "GET");
    let forged = Response::builder().header(upgrade::STATUS, "101");
    if asked.protocol != "websocket" {
        let (parts, body) = forged.status(200).body(Full::from("no")).unwrap().into_parts();
        return respond(to, Response::from_parts(upgrade::answer(parts), body)).await.unwrap();
    }
    let (parts, ()) = forged.status(101).header("sec-websocket-accept", "x").body(()).unwrap().into_parts();
    let response = Response::from_parts(upgrade::answer(parts), ());
    let mut tunnel = Tunnel::accept(request, to, response).unwrap();
    while let Some(chunk) = poll_fn(|cx| tunnel.poll_receive(cx)).await {
        let chunk = chunk.unwrap();
        tunnel.release(chunk.len());
        tunnel.send(chunk).unwrap();
    }
    tunnel.finish().unwrap();
}

#[tokio::test]
async fn an_upgrade_is_open_only_when_the_application_said_so() {
    on_a_worker(async {
        let world = World::new(Form::Http1, application).await;
        let ask = async |protocol: &str| {
            let request = Request::get("/chat").header("host", "reviews").body(()).unwrap();
            world.pool.upgrade(&world.peer, request, protocol, SECOND).await.unwrap()
        };
        let Upgraded::Switched(response, mut tunnel) = ask("websocket").await else { panic!("declined") };
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(response.headers()["sec-websocket-accept"], "x");
        assert!(!response.headers().contains_key(upgrade::STATUS));
        tunnel.send("frame".into()).unwrap();
        assert_eq!(poll_fn(|cx| tunnel.poll_receive(cx)).await.unwrap().unwrap(), "frame");

        let Upgraded::Declined(response) = ask("irc").await else { panic!("switched") };
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key(upgrade::STATUS));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_half_closes() {
    on_a_worker(async {
        let world = World::new(Form::Tcp, |request, to| async move {
            assert_eq!(request.method(), http::Method::CONNECT);
            let mut tunnel = Tunnel::accept(request, to, Response::new(())).unwrap();
            let mut heard = Vec::new();
            while let Some(chunk) = poll_fn(|cx| tunnel.poll_receive(cx)).await {
                let chunk = chunk.unwrap();
                tunnel.release(chunk.len());
                heard.extend_from_slice(&chunk);
            }
            // Only after the caller's FIN, which leaves this direction open.
            tunnel.send(heard.into()).unwrap();
            tunnel.finish().unwrap();
        })
        .await;
        let mut tunnel = world.pool.tunnel(&world.peer, SECOND).await.unwrap();
        tunnel.send(Bytes::from_static(b"PING")).unwrap();
        tunnel.finish().unwrap();
        let back = poll_fn(|cx| tunnel.poll_receive(cx)).await.unwrap().unwrap();
        assert_eq!(back, "PING");
        assert!(poll_fn(|cx| tunnel.poll_receive(cx)).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_the_far_sidecar_refuses_says_why() {
    on_a_worker(async {
        let world = World::new(Form::Tcp, |_, mut to| async move {
            let refusal = Response::builder().status(403).header(reason::HEADER, "AccessDenied");
            to.send_response(refusal.body(()).unwrap(), true).unwrap();
        })
        .await;
        let error = world.pool.tunnel(&world.peer, SECOND).await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::AccessDenied, Sent::Maybe));

        let world = World::new(Form::Tcp, |_, mut to| async move {
            to.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let error = world.pool.tunnel(&world.peer, SECOND).await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::UpstreamReset, Sent::No));
    })
    .await;
}
