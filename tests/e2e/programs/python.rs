//! grpcio and websockets, the Python libraries, as clients and as servers.

use std::process::Command;

use heddle_tests::{
    World, manifest,
    python::{interpreter, script},
    skip,
};

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

#[tokio::test]
async fn websockets_echo_through_the_mesh() {
    let python = match interpreter() {
        Ok(python) => python,
        Err(missing) => skip!(format!("{missing:#}")),
    };
    let mut world = World::new().unwrap();
    world.save("chat.yaml", &manifest::service("shop/chat", 8765, "http", "app: chat")).unwrap();
    world.start_control_plane().await.unwrap();
    let chat = world.pod("shop/chat-v1").ports(&[8765]).start().await.unwrap();
    let mut command = Command::new(&python);
    command.arg(script("websocket_server.py")).args([chat.ip.to_string(), "8765".to_owned()]);
    let mut server = world.run("websocket-server", &command).unwrap();
    listens(chat.port(8765), &mut server).await;
    let web = world.pod("shop/web").start().await.unwrap();
    let mut client = Command::new(&python);
    client.arg(script("websocket_client.py")).args([
        web.ip.to_string(),
        "15001".to_owned(),
        "chat:8765".to_owned(),
    ]);
    let said = says(&client).await;
    assert!(said.ends_with("all ok\n"), "{said}");
}
