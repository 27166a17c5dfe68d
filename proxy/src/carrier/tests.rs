//! Whole round trips: pool, TLS, server.

use std::convert::Infallible;

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use heddle_api::carrier::Form;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::{
    CarrierBody, Tunnel, respond,
    testing::{SECOND, World, channel, on_a_worker},
    tunnel,
};

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
async fn a_tunnel_carries_bytes_both_ways_and_half_closes() {
    on_a_worker(async {
        let world = World::new(Form::Tcp, |request, to| async move {
            assert!(tunnel::is_tunnel(&request));
            let mut tunnel = Tunnel::accept(request, to, Response::new(())).unwrap();
            let mut heard = Vec::new();
            while let Some(chunk) = std::future::poll_fn(|cx| tunnel.poll_receive(cx)).await {
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
        let back = std::future::poll_fn(|cx| tunnel.poll_receive(cx)).await.unwrap().unwrap();
        assert_eq!(back, "PING");
        assert!(std::future::poll_fn(|cx| tunnel.poll_receive(cx)).await.is_none());
    })
    .await;
}
