//! Opaque TCP: bytes both ways, half-close, reset, servers that speak first.

use std::time::Duration;

use heddle_tests::{Pod, World, app::TcpApp, client::Raw, eventually, manifest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `client` reaches the Service `db`, an opaque port, at its own address and port 7000.
async fn world() -> (World, Pod, Pod) {
    declared("tcp").await
}

/// The same, where the port declares this.
async fn declared(app_protocol: &str) -> (World, Pod, Pod) {
    let mut world = World::new().unwrap();
    world.save("db.yaml", &manifest::service("shop/db", 7000, app_protocol, "app: db")).unwrap();
    world.start_control_plane().await.unwrap();
    let db = world.pod("shop/db-v1").ports(&[7000]).start().await.unwrap();
    let ip = world.new_address();
    let forward = format!("{ip}:7000=db:7000");
    let client = world.pod("shop/client").at(ip).sidecar_args(["--forward", &forward]).start().await.unwrap();
    (world, client, db)
}

#[tokio::test]
async fn fin_goes_one_way_while_bytes_go_the_other() {
    let (_world, client, db) = world().await;
    let _app = TcpApp::echo(db.port(7000)).await.unwrap();
    let mut connection = Raw::connect(client.port(7000)).await.unwrap();
    connection.send("hello").await.unwrap();
    assert_eq!(connection.read_exact(5).await.unwrap(), b"hello");
    // As they pass: a connection may be open for days.
    for (pod, direction) in [(&client, "outbound"), (&db, "inbound")] {
        eventually("both sidecars have counted the bytes", || async {
            let scrape = pod.scrape().await?;
            let bytes = scrape.sum("heddle_tcp_bytes_total", &[("direction", direction)]);
            anyhow::ensure!((bytes - 10.0).abs() < 0.1, "{}", scrape.text);
            Ok(())
        })
        .await;
    }
    connection.finish().await.unwrap();
    // The application says this only after our FIN, and on a connection that is still open its way.
    assert_eq!(connection.read_to_end().await.unwrap(), "bye");
}

#[tokio::test]
async fn a_connection_that_is_open_is_reset_when_an_access_policy_comes_to_deny_it() {
    let (world, client, db) = world().await;
    let _app = TcpApp::echo(db.port(7000)).await.unwrap();
    let mut connection = Raw::connect(client.port(7000)).await.unwrap();
    connection.send("hello").await.unwrap();
    assert_eq!(connection.read_exact(5).await.unwrap(), b"hello");
    let deny = |who: &str| {
        let rules = format!("  - from: [{{serviceAccounts: [{who}]}}]\n");
        let target = "  targetRefs: [{group: \"\", kind: Service, name: db}]\n";
        let spec = format!("{target}  action: Deny\n  rules:\n{rules}");
        world.save("deny.yaml", &manifest::policy("AccessPolicy", "shop/deny", &spec)).unwrap();
    };
    deny("shop/client");
    assert!(connection.read_exact(1).await.is_err(), "it must end");
    eventually("it is counted", || async {
        let scrape = db.scrape().await?;
        let denied = scrape.sum("heddle_refused_total", &[("reason", "AccessDenied")]);
        anyhow::ensure!(denied >= 1.0, "{}", scrape.text);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let (_world, client, db) = world().await;
    let _app = TcpApp::start(db.port(7000), |mut stream| async move {
        stream.write_all(b"welcome").await?;
        let mut name = [0; 3];
        stream.read_exact(&mut name).await?;
        stream.write_all(&name).await?;
        stream.shutdown().await
    })
    .await
    .unwrap();
    let mut connection = Raw::connect(client.port(7000)).await.unwrap();
    assert_eq!(connection.read_exact(7).await.unwrap(), b"welcome");
    connection.send("joe").await.unwrap();
    assert_eq!(connection.read_to_end().await.unwrap(), "joe");
}

#[tokio::test]
async fn a_client_that_sends_nothing_and_says_so_is_answered() {
    let (_world, client, db) = declared("").await;
    let _app = TcpApp::start(db.port(7000), |mut stream| async move {
        // Longer than a client may be silent before it is taken to wait for the server.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"the time").await?;
        stream.shutdown().await
    })
    .await
    .unwrap();
    for pause in [0, 200] {
        let mut connection = Raw::connect(client.port(7000)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        connection.finish().await.unwrap();
        assert_eq!(connection.read_to_end().await.unwrap(), "the time", "after {pause} ms");
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_at_the_other_end() {
    let (_world, client, db) = world().await;
    let (tx, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let _app = TcpApp::start(db.port(7000), move |mut stream| {
        let tx = tx.clone();
        async move {
            stream.write_all(b"x").await?;
            let mut byte = [0; 1];
            let end = stream.read(&mut byte).await.map_err(|error| error.kind());
            let _ = tx.send(end);
            Ok(())
        }
    })
    .await
    .unwrap();
    let mut connection = Raw::connect(client.port(7000)).await.unwrap();
    connection.read_exact(1).await.unwrap();
    connection.reset().unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), ended.recv()).await.unwrap().unwrap();
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "not a clean end");
}

#[tokio::test]
async fn an_applications_reset_is_a_reset_for_its_client() {
    let (_world, client, db) = world().await;
    let _app = TcpApp::start(db.port(7000), |mut stream| async move {
        stream.write_all(b"x").await?;
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).await?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    })
    .await
    .unwrap();
    let mut connection = Raw::connect(client.port(7000)).await.unwrap();
    connection.read_exact(1).await.unwrap();
    connection.send("y").await.unwrap();
    let end = connection.read_to_end().await;
    assert!(end.is_err(), "a clean end instead of a reset: {end:?}");
}

#[tokio::test]
async fn a_server_that_breaks_off_before_anybody_spoke_does_not_look_ended() {
    let mut world = World::new().unwrap();
    world.save("any.yaml", &manifest::service("shop/any", 7100, "", "app: any")).unwrap();
    world.start_control_plane().await.unwrap();
    let any = world.pod("shop/any-v1").ports(&[7100]).start().await.unwrap();
    let ip = world.new_address();
    let forward = format!("{ip}:7100=any:7100");
    let client = world.pod("shop/client").at(ip).sidecar_args(["--forward", &forward]).start().await.unwrap();
    let _app = TcpApp::start(any.port(7100), |stream| async move {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
    })
    .await
    .unwrap();
    // On a busy machine the reset comes as early as the connection itself.
    let end = async { Raw::connect(client.port(7100)).await?.read_to_end().await }.await;
    assert!(end.is_err(), "a clean end instead of a reset: {end:?}");
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_reset_not_ended() {
    let (_world, client, _db) = world().await;
    // Nobody listens at the application's port.
    let end = async {
        let mut connection = Raw::connect(client.port(7000)).await?;
        let _ = connection.send("anyone?").await;
        connection.read_to_end().await
    }
    .await;
    assert!(end.is_err(), "{end:?}");
    eventually("the refusal is counted", || async {
        let counted = client.scrape().await?.sum("heddle_refused_total", &[("direction", "outbound")]);
        anyhow::ensure!(counted >= 1.0, "not yet");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn much_passes_whole_both_ways_at_once() {
    const BYTES: usize = 8 << 20;
    let (_world, client, db) = world().await;
    let _app = TcpApp::echo(db.port(7000)).await.unwrap();
    let connection = Raw::connect(client.port(7000)).await.unwrap();
    let (mut read, mut write) = connection.stream.into_split();
    let sent: Vec<u8> = (0..BYTES).map(|n| (n * 31 % 251) as u8).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&copy).await?;
        write.shutdown().await
    });
    let mut back = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut back)).await.unwrap().unwrap();
    writing.await.unwrap().unwrap();
    assert_eq!(back.len(), BYTES + 3);
    assert!(back[..BYTES] == sent[..] && &back[BYTES..] == b"bye");
}

#[tokio::test]
async fn new_connections_share_the_mesh_connection() {
    let (_world, client, db) = world().await;
    let _app = TcpApp::echo(db.port(7000)).await.unwrap();
    for _ in 0..20 {
        let mut connection = Raw::connect(client.port(7000)).await.unwrap();
        connection.send("a").await.unwrap();
        assert_eq!(connection.read_exact(1).await.unwrap(), b"a");
    }
    let opened = db
        .scrape()
        .await
        .unwrap()
        .sum("heddle_connections_total", &[("direction", "inbound"), ("tls", "true")]);
    assert!((1.0..=2.0).contains(&opened), "{opened} handshakes for 20 connections");
}
