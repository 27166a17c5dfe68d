//! Sidecars and control planes of neighbouring versions: what the one does not know does not stop the other.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use heddle_api::v1::{
    Certificate, DiscoveryRequest, DiscoveryResponse, HeldResource, Hello, JoinRequest, Refusal,
    ResourceName, ResourceType, resource::Body,
};
use heddle_tests::{
    World, eventually, manifest,
    middleman::{FUTURE, Middleman, with_more},
    peer::{self, Credentials},
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::shop::{self, HOST, Shop};

/// Messages as the bytes that a version other than this one may write.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(to, &*message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length).to_vec()))
    }
}

/// A discovery stream, byte by byte.
struct Stream {
    requests: mpsc::Sender<Vec<u8>>,
    responses: Streaming<Vec<u8>>,
}

impl Stream {
    async fn open(
        control_plane: SocketAddr,
        credentials: &Credentials,
        first: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let channel = peer::control_plane_channel(control_plane, Some(credentials)).await?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await?;
        let (requests, receiver) = mpsc::channel(4);
        requests.send(first).await?;
        let path = http::uri::PathAndQuery::from_static("/heddle.v1.Discovery/Stream");
        let requests_in = tonic::Request::new(ReceiverStream::new(receiver));
        let responses = grpc.streaming(requests_in, path, Raw).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn next(&mut self) -> anyhow::Result<DiscoveryResponse> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.responses.next()).await?;
        Ok(DiscoveryResponse::decode(&*message.context("the stream ended")??)?)
    }
}

fn name(kind: i32, name: &str) -> ResourceName {
    ResourceName { r#type: kind, name: name.to_owned() }
}

async fn web(shop: &Shop) -> Credentials {
    let token = std::fs::read_to_string(shop.world.token("shop", "web", "1h").unwrap()).unwrap();
    Credentials::join(shop.world.discovery(), &token, "shop/web").await.unwrap()
}

/// A certificate, asked for in more words than there are yet.
async fn join_with_more(shop: &Shop) -> Certificate {
    let token = std::fs::read_to_string(shop.world.token("shop", "web", "1h").unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
    let request = JoinRequest {
        token: token.trim().to_owned(),
        pod: "shop/web".to_owned(),
        csr: csr.der().to_vec().into(),
    };
    let channel = peer::control_plane_channel(shop.world.discovery(), None).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let request = tonic::Request::new(with_more(request.encode_to_vec()));
    let path = http::uri::PathAndQuery::from_static("/heddle.v1.Identity/Join");
    let answer = grpc.unary(request, path, Raw).await.unwrap().into_inner();
    Certificate::decode(&*answer).unwrap()
}

#[tokio::test]
async fn a_newer_sidecar_gets_all_that_this_control_plane_knows() {
    let shop = shop::open(1).await;
    let joined = join_with_more(&shop).await;
    assert!(!joined.chain.is_empty() && !joined.roots.is_empty(), "{joined:?}");
    let credentials = web(&shop).await;
    let mut hello = with_more(Vec::new());
    let greeting = Hello {
        pod: "shop/web".to_owned(),
        version: "0.2.0".to_owned(),
        held: vec![HeldResource { name: Some(name(FUTURE, "loom")), version: "7".to_owned() }],
    };
    // DiscoveryRequest.hello is field 1.
    prost::encoding::bytes::encode(1, &with_more(greeting.encode_to_vec()), &mut hello);
    let names = DiscoveryRequest {
        subscribe: vec![
            name(ResourceType::Inbound.into(), "shop/web"),
            name(ResourceType::Destination.into(), HOST),
            name(FUTURE + 1, "shuttle"),
        ],
        ..DiscoveryRequest::default()
    };
    hello.extend(names.encode_to_vec());
    let mut stream = Stream::open(shop.world.discovery(), &credentials, hello).await.unwrap();

    let first = stream.next().await.unwrap();
    let bodies: Vec<_> = first.changed.iter().filter_map(|resource| resource.body.as_ref()).collect();
    assert!(bodies.iter().any(|body| matches!(body, Body::Inbound(_))), "{first:?}");
    assert!(bodies.iter().any(|body| matches!(body, Body::Destination(_))), "{first:?}");
    let mut absent = first.absent.clone();
    absent.sort_by_key(|name| name.r#type);
    assert_eq!(
        absent,
        [name(FUTURE, "loom"), name(FUTURE + 1, "shuttle")],
        "what it never heard of is not there"
    );

    // Its answer has more to say too, refuses what this control plane does not know, and gives it up.
    let refused = vec![Refusal { name: Some(name(FUTURE, "loom")), ..Refusal::default() }];
    let answer = DiscoveryRequest {
        nonce: first.nonce,
        refused,
        unsubscribe: vec![name(FUTURE + 1, "shuttle")],
        ..DiscoveryRequest::default()
    };
    stream.requests.send(with_more(answer.encode_to_vec())).await.unwrap();
    shop.split(&[1]);
    let second = stream.next().await.unwrap();
    assert!(
        second
            .changed
            .iter()
            .any(|resource| matches!(&resource.body, Some(Body::Destination(d)) if !d.http_rules.is_empty())),
        "the stream goes on: {second:?}"
    );
}

#[tokio::test]
async fn an_older_sidecar_that_says_only_what_it_must_gets_its_config() {
    let shop = shop::open(1).await;
    let credentials = web(&shop).await;
    let hello = DiscoveryRequest {
        hello: Some(Hello { pod: "shop/web".to_owned(), ..Hello::default() }),
        subscribe: vec![name(ResourceType::Inbound.into(), "shop/web")],
        ..DiscoveryRequest::default()
    };
    let mut stream = Stream::open(shop.world.discovery(), &credentials, hello.encode_to_vec()).await.unwrap();
    let first = stream.next().await.unwrap();
    assert!(matches!(first.changed[0].body, Some(Body::Inbound(_))), "{first:?}");
}

#[tokio::test]
async fn an_older_sidecar_serves_by_all_that_it_understands_of_a_newer_control_planes_words() {
    let mut world = World::new().unwrap();
    shop::declare(&world, 2);
    world.start_control_plane().await.unwrap();
    let mut reviews = Vec::new();
    for n in 1..=2 {
        let pod = world.pod(&format!("shop/reviews-v{n}")).answering(&format!("v{n}"));
        reviews.push(pod.start().await.unwrap());
    }
    let ip = world.new_address();
    world.pod("shop/web").at(ip).declare().unwrap();
    let token = std::fs::read_to_string(world.token("shop", "web", "1h").unwrap()).unwrap();
    let credentials = eventually("the control plane knows the pod", || async {
        Credentials::join(world.discovery(), &token, "shop/web").await
    })
    .await;
    let between = SocketAddr::new(world.new_address(), heddle_api::ports::DISCOVERY);
    let state = world.state();
    let middleman = Middleman::start(between, world.discovery(), &state, credentials).await.unwrap();
    world.sidecars_connect_to(between);
    let web = world.pod("shop/web").at(ip).as_declared().start().await.unwrap();
    let mut shop = Shop { world, web, reviews };

    shop.web.answers(HOST, "/", |answer| answer.status == 200).await;
    shop.split_in_force(&[100, 0]).await;
    shop.split_in_force(&[0, 100]).await;
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!((answer.status, answer.answered_by()), (200, "v2"));
    let deny = manifest::policy(
        "AccessPolicy",
        "shop/closed",
        "  targetRefs: [{group: \"\", kind: Service, name: reviews-v2}]\n  action: Deny\n  rules:\n  - to: [{paths: [\"/secret\"]}]\n",
    );
    shop.world.save("closed.yaml", &deny).unwrap();
    shop.web.answers(HOST, "/secret", |answer| answer.status == 403).await;

    assert!(middleman.changed() > 3, "{}", middleman.changed());
    let log = shop.world.sidecar("shop/web").unwrap().log();
    assert!(log.contains("of a kind that this sidecar does not know"), "{log}");
    let streams = shop.web.scrape().await.unwrap();
    let connected = streams.sum("heddle_discovery_connected", &[]);
    assert!((connected - 1.0).abs() < f64::EPSILON, "{}", streams.text);
    // One stream all along: nothing that was said ended it.
    assert_eq!(log.matches("discovery stream is up").count(), 1, "{log}");
}
