//! grpcio and websockets, the Python libraries, as clients and as servers.

use std::{path::Path, process::Command};

use heddle_tests::{
    World,
    client::{Body, Client, empty},
    manifest,
    process::Process,
    python::{interpreter, script},
    skip,
    world::Pod,
};
use http::{Request, Version};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{listens, says};

#[tokio::test]
async fn grpcio_makes_every_kind_of_call() {
    let python = match interpreter() {
        Ok(python) => python,
        Err(missing) => skip!(format!("{missing:#}")),
    };
    let mut world = World::new().unwrap();
    world.save("loom.yaml", &manifest::service("shop/loom", 50051, "grpc", "app: loom")).unwrap();
    world.start_control_plane().await.unwrap();
    let loom = world.pod("shop/loom-v1").ports(&[50051]).start().await.unwrap();
    let mut command = Command::new(&python);
    command.arg(script("grpc_server.py")).arg(loom.port(50051).to_string());
    let mut server = world.run("grpc-server", &command).unwrap();
    listens(loom.port(50051), &mut server).await;
    let web = world.pod("shop/web").start().await.unwrap();
    let mut client = Command::new(&python);
    client.arg(script("grpc_client.py")).arg(web.outbound().to_string()).arg("loom:50051");
    let said = says(&client).await;
    assert!(said.ends_with("all ok\n"), "{said}");
    let served = loom.scrape().await.unwrap();
    let mtls = [("heddle_mtls", "true")];
    assert!(served.sum("http_server_request_duration_seconds_count", &mtls) >= 6.0, "{}", served.text);
}

/// `chat`, a WebSocket echo by the library, and `web`, which calls it.
async fn chat(world: &mut World, python: &Path) -> (Pod, Process, Pod) {
    world.save("chat.yaml", &manifest::service("shop/chat", 8765, "http", "app: chat")).unwrap();
    world.start_control_plane().await.unwrap();
    let chat = world.pod("shop/chat-v1").ports(&[8765]).start().await.unwrap();
    let mut command = Command::new(python);
    command.arg(script("websocket_server.py")).args([chat.ip.to_string(), "8765".to_owned()]);
    let mut server = world.run("websocket-server", &command).unwrap();
    listens(chat.port(8765), &mut server).await;
    let web = world.pod("shop/web").start().await.unwrap();
    (chat, server, web)
}

/// RFC 8441: extended CONNECT for `protocol`.
fn extended_connect(protocol: &'static str) -> Request<Body> {
    let mut request = Request::connect("http://chat:8765/").body(empty()).unwrap();
    request.extensions_mut().insert(Protocol::from_static(protocol));
    request
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_a_server_that_knows_http_1_1_alone() {
    let python = match interpreter() {
        Ok(python) => python,
        Err(missing) => skip!(format!("{missing:#}")),
    };
    let mut world = World::new().unwrap();
    let (chat, _server, web) = chat(&mut world, &python).await;
    let mut client = Client::http2(web.outbound()).await.unwrap();
    // The sidecar's SETTINGS have come with the answer to this; RFC 6455 has 426 for it.
    assert_eq!(client.get("chat:8765", "/").await.unwrap().status, 426);

    let mut response = client.open(extended_connect("websocket")).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}: {:?}", response.headers());
    }
    let mut socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    // A masked text frame and its echo, then both sides' Close (RFC 6455, 5.2): the mask is zero.
    socket.write_all(b"\x81\x85\0\0\0\0hello").await.unwrap();
    let mut echo = [0; 7];
    socket.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"\x81\x05hello");
    socket.write_all(b"\x88\x82\0\0\0\0\x03\xe8").await.unwrap();
    let mut close = Vec::new();
    socket.read_to_end(&mut close).await.unwrap();
    assert_eq!(close, b"\x88\x02\x03\xe8");

    let refused = client.send(extended_connect("connect-udp")).await.unwrap();
    assert_eq!((refused.status, refused.reason()), (400, "BadRequest"));
    assert!(refused.text().contains("connect-udp"), "{}", refused.text());
    // The connection is none the worse for it.
    assert_eq!(client.get("chat:8765", "/").await.unwrap().status, 426);
    let served = chat.scrape().await.unwrap();
    let mtls = [("heddle_mtls", "true")];
    assert!(served.sum("http_server_request_duration_seconds_count", &mtls) >= 3.0, "{}", served.text);
}

#[tokio::test]
async fn websockets_echo_through_the_mesh() {
    let python = match interpreter() {
        Ok(python) => python,
        Err(missing) => skip!(format!("{missing:#}")),
    };
    let mut world = World::new().unwrap();
    let (_chat, _server, web) = chat(&mut world, &python).await;
    let mut client = Command::new(&python);
    client.arg(script("websocket_client.py")).args([
        web.ip.to_string(),
        "15001".to_owned(),
        "chat:8765".to_owned(),
    ]);
    let said = says(&client).await;
    assert!(said.ends_with("all ok\n"), "{said}");
}
