//! The program itself: what survives its end, and what it says when it cannot begin.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use heddle_api::v1::{ResourceType, resource::Body};
use heddle_control_plane::ca::{KEY_FILE, ROOTS_FILE};
use tokio::process::{Child, Command};

use crate::{
    client::{Stream, connect, held, join, name},
    world::{PATIENCE, World, until_ready},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-control-plane"));
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn start(world: &World, listen: SocketAddr, admin: SocketAddr) -> Child {
    let mut command = program();
    command.stderr(Stdio::inherit());
    command
        .args(["run", "--manifests"])
        .arg(world.path("manifests"))
        .arg("--state-dir")
        .arg(world.path("state"));
    command.args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()]);
    command.spawn().unwrap()
}

async fn token(state_dir: &Path, more: &[&str]) -> std::process::Output {
    let mut command = program();
    command.arg("token").arg("--state-dir").arg(state_dir).args(["--namespace", "shop"]).args(more);
    command.output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_started_again_it_has_the_same_root_and_sends_only_differences() {
    let world = World::shop();
    let (listen, admin) = (free_address(), free_address());
    let ca = world.path("state").join(ROOTS_FILE);
    let token = token(&world.path("state"), &["--service-account", "web"]).await;
    let token = String::from_utf8(token.stdout).unwrap();

    let mut first = start(&world, listen, admin);
    until_ready(admin).await;
    let root = std::fs::read(&ca).unwrap();
    let leaf = join(listen, &ca, token.trim(), "shop/web-0").await.unwrap();
    let channel = connect(listen, &ca, Some(&leaf)).await.unwrap();
    let subscribe = vec![
        name(ResourceType::Destination, "reviews:9080"),
        name(ResourceType::Inbound, "shop/web-0"),
        name(ResourceType::TrustBundle, "cluster.local"),
    ];
    let mut stream = Stream::open(channel, "shop/web-0", vec![], subscribe).await.unwrap();
    let before = stream.accept().await;
    first.kill().await.unwrap();
    assert!(stream.next().await.is_err());

    let mut second = start(&world, listen, admin);
    until_ready(admin).await;
    assert_eq!(std::fs::read(&ca).unwrap(), root);
    // The certificate from before, the same versions after.
    let channel = connect(listen, &ca, Some(&leaf)).await.unwrap();
    let unknown = name(ResourceType::Destination, "example.com:80");
    let mut stream = Stream::open(channel, "shop/web-0", held(&before), vec![unknown.clone()]).await.unwrap();
    let after = stream.accept().await;
    assert_eq!((after.changed.len(), after.absent), (0, vec![unknown]));
    second.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_of_its_first_start_it_starts_again() {
    let world = World::shop();
    let (listen, admin) = (free_address(), free_address());
    let ca = world.path("state").join(ROOTS_FILE);
    let mut root = None;
    for pause in (0..12).map(|n| std::time::Duration::from_millis(n * 3)) {
        let mut child = start(&world, listen, admin);
        tokio::time::sleep(pause).await;
        child.kill().await.unwrap();
        let now = std::fs::read(&ca).ok();
        assert!(root.is_none() || now == root, "the root changed");
        root = now;
    }
    let mut child = start(&world, listen, admin);
    until_ready(admin).await;
    join(listen, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_with_success_and_its_streams_with_a_word() {
    let world = World::shop();
    let (listen, admin) = (free_address(), free_address());
    let mut child = start(&world, listen, admin);
    until_ready(admin).await;
    let ca = world.path("state").join(ROOTS_FILE);
    let leaf = join(listen, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    let channel = connect(listen, &ca, Some(&leaf)).await.unwrap();
    let subscribe = vec![name(ResourceType::Inbound, "shop/web-0")];
    let mut stream = Stream::open(channel, "shop/web-0", vec![], subscribe).await.unwrap();
    stream.accept().await;
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = stream.next().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message().contains("stopping")),
        (tonic::Code::Unavailable, true),
        "{status}"
    );
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named_with_its_flag() {
    let world = World::shop();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    for (flag, listen, admin) in
        [("--listen", taken, free_address()), ("--admin-listen", free_address(), taken)]
    {
        let mut command = program();
        command
            .args(["run", "--manifests"])
            .arg(world.path("manifests"))
            .arg("--state-dir")
            .arg(world.path("state"));
        command.args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()]);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("{flag} {taken}: the address is in use")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_command_line_says_what_is_wrong() {
    let world = World::shop();
    let output = token(&world.path("state"), &[]).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.contains("--service-account")), (Some(2), true), "{text}");
    let output = token(&world.path("state"), &["--service-account", "we/b"]).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.contains("we/b")), (Some(1), true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_rotated_without_a_gap() {
    let (world, other) = (World::shop(), World::shop());
    let ca = world.path("state").join(ROOTS_FILE);
    let running = world.start().await;
    let old = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    let trust = name(ResourceType::TrustBundle, "cluster.local");
    let channel = connect(running.address, &ca, Some(&old)).await.unwrap();
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![trust.clone()]).await.unwrap();
    let one_root = held(&stream.accept().await);
    running.stop().await;

    // First the new root is trusted beside the old one, and everyone is told.
    other.start().await.stop().await;
    let roots =
        [&ca, &other.path("state").join(ROOTS_FILE)].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&ca, roots.concat()).unwrap();
    let running = world.start().await;
    let channel = connect(running.address, &ca, Some(&old)).await.unwrap();
    let mut stream = Stream::open(channel, "shop/web-0", one_root, vec![]).await.unwrap();
    let told = stream.accept().await;
    let Some(Body::TrustBundle(bundle)) = &told.changed[0].body else { panic!("{told:?}") };
    assert_eq!(bundle.roots.len(), 2);
    running.stop().await;

    // Then it signs; who has a certificate of the old one is served as before, and renews into the new one.
    std::fs::copy(other.path("state").join(KEY_FILE), world.path("state").join(KEY_FILE)).unwrap();
    let running = world.start().await;
    let new = old.renew(running.address, &ca).await.unwrap();
    let new_root_alone = other.path("state").join(ROOTS_FILE);
    let channel = connect(running.address, &new_root_alone, Some(&new)).await.unwrap();
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![trust]).await.unwrap();
    assert_eq!(held(&stream.accept().await), held(&told));
    running.stop().await;
}
