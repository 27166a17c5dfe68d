//! Who would wear the control plane out: strangers that take up connections, and a sidecar that asks without end.

use std::{net::SocketAddr, path::Path};

use heddle_api::v1::{self, ResourceType, resource::Body};
use heddle_control_plane::{ca::ROOTS_FILE, run::Running};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};
use tonic::Code;

use crate::{
    client::{Stream, connect, connect_from, join, join_over, name},
    world::{PATIENCE, World, get, pod},
};

/// One address's share of connections without a client certificate.
const OF_ONE_ADDRESS: usize = 256;
/// What one stream may subscribe to.
const OF_ONE_STREAM: usize = 16_384;
const THERE: [u8; 4] = [127, 0, 0, 66];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 67];

async fn dial(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the server ended a connection that said nothing.
async fn is_ended(io: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, io.read(&mut [0; 1])).await.expect("ended in time");
    matches!(read, Ok(0) | Err(_))
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what}, in time"));
}

async fn metric(running: &Running, line: &str) -> bool {
    get(running.admin_address, "/metrics").await.unwrap().contains(line)
}

async fn join_from(from: [u8; 4], world: &World, running: &Running, ca: &Path) -> Result<(), String> {
    let channel =
        connect_from(Some(from.into()), running.address, ca, None).await.map_err(|e| e.to_string())?;
    join_over(channel, &world.token("web"), "shop/web-0").await.map(drop).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_never_finishes_its_handshakes_keeps_nobody_else_out() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let mut silent = Vec::new();
    for _ in 0..OF_ONE_ADDRESS {
        silent.push(dial(THERE, running.address).await);
    }
    // The accepting is in order, so these come after all of the former.
    let mut surplus = dial(THERE, running.address).await;
    assert!(is_ended(&mut surplus).await);
    assert!(metric(&running, "refused_total{reason=\"TooManyUnidentified\"} 1\n").await);
    join_from(ELSEWHERE, &world, &running, &ca).await.unwrap();

    // A stranger who leaves makes room.
    drop(silent);
    until("the address gets in again", async || join_from(THERE, &world, &running, &ca).await.is_ok()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_never_joins_keeps_nobody_else_out_nor_its_own_sidecars_that_have_joined() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    let stream = async || {
        let channel = connect_from(Some(THERE.into()), running.address, &ca, Some(&leaf)).await.unwrap();
        Stream::open(channel, "shop/web-0", vec![], vec![reviews()]).await.unwrap()
    };
    let mut before = stream().await;
    assert_eq!(before.accept().await.changed.len(), 2);
    let mut strangers = Vec::new();
    for _ in 0..OF_ONE_ADDRESS {
        strangers.push(connect_from(Some(THERE.into()), running.address, &ca, None).await.unwrap());
    }
    assert!(is_ended(&mut dial(THERE, running.address).await).await);
    join_from(ELSEWHERE, &world, &running, &ca).await.unwrap();
    world.write("reviews-8.yaml", &pod("reviews-8", "reviews", "127.0.2.9"));
    assert_eq!(before.accept().await.changed.len(), 1);

    drop(strangers);
    until("the address gets in again", async || join_from(THERE, &world, &running, &ca).await.is_ok()).await;
    // Who has a certificate takes none of these places: each leaves it with the end of its handshake.
    let mut identified = Vec::new();
    for _ in 0..8 {
        identified.push(stream().await);
    }
    join_from(THERE, &world, &running, &ca).await.unwrap();
    running.stop().await;
}

fn reviews() -> v1::ResourceName {
    name(ResourceType::Destination, "reviews:9080")
}

fn unknown(count: usize) -> Vec<v1::ResourceName> {
    (0..count).map(|n| name(ResourceType::Destination, &format!("host-{n}.example:80"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_names_more_than_it_may_follow_loses_its_stream_and_is_told_why() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
    let names = unknown(OF_ONE_STREAM + 1);
    let mut stream = Stream::open(channel, "shop/web-0", vec![], names).await.unwrap();
    let status = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("16384"), "{status}");
    assert!(metric(&running, "refused_total{reason=\"TooManySubscriptions\"} 1\n").await);
    // Nothing of it is left.
    until("its names are forgotten", async || metric(&running, "heddle_control_plane_resources 0\n").await)
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_subscribes_in_storms_waits_and_others_get_their_updates_meanwhile() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let join = async |account: &str, pod: &str| {
        let leaf = join(running.address, &ca, &world.token(account), pod).await.unwrap();
        connect(running.address, &ca, Some(&leaf)).await.unwrap()
    };
    let calm = join("reviews", "shop/reviews-0").await;
    let mut calm = Stream::open(calm, "shop/reviews-0", vec![], vec![reviews()]).await.unwrap();
    assert_eq!(calm.accept().await.changed.len(), 2);

    let channel = join("web", "shop/web-0").await;
    let names = unknown(OF_ONE_STREAM / 2);
    let last = name(ResourceType::Destination, "last.example:80");
    let mut storm = Stream::open(channel.clone(), "shop/web-0", vec![], vec![]).await.unwrap();
    // Each cycle names everything twice; all of them would take half a minute at the rate that is allowed.
    for _ in 0..6 {
        let all = v1::DiscoveryRequest { subscribe: names.clone(), ..Default::default() };
        storm.send(all).await;
        storm.send(v1::DiscoveryRequest { unsubscribe: names.clone(), ..Default::default() }).await;
    }
    storm.send(v1::DiscoveryRequest { subscribe: vec![last.clone()], ..Default::default() }).await;
    until("it is slowed", async || metric(&running, "heddle_control_plane_slowed_total 1\n").await).await;
    until("an operator sees which one", async || {
        let streams = get(running.admin_address, "/streams").await.unwrap();
        streams.contains("\"slowed\": true") && streams.contains("\"slowed\": false")
    })
    .await;

    world.write("reviews-8.yaml", &pod("reviews-8", "reviews", "127.0.2.9"));
    let update = calm.accept().await;
    assert!(matches!(&update.changed[0].body, Some(Body::EndpointsDelta(_))), "{update:?}");
    // The storm's stream goes on, and its last name waits behind all the others.
    let answered = storm.next().await.unwrap();
    assert!(!answered.absent.contains(&last), "{answered:?}");

    // A new stream of the same pod finds the same account, and is not read before it is even.
    let again = v1::DiscoveryRequest { subscribe: names.clone(), ..Default::default() };
    let next = Stream::open(channel, "shop/web-0", vec![], vec![]).await.unwrap();
    next.send(again).await;
    until("the new stream is slowed", async || {
        metric(&running, "heddle_control_plane_slowed_total 2\n").await
    })
    .await;
    running.stop().await;
}
