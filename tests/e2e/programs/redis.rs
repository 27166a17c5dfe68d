//! redis-server and redis-cli through an opaque port.

use std::process::Command;

use heddle_tests::{World, manifest, need};

use super::{listens, output, says};

#[tokio::test]
async fn redis_works_through_an_opaque_port() {
    let (server, cli) = (need!("redis-server"), need!("redis-cli"));
    let mut world = World::new().unwrap();
    // 6379 is opaque without being declared.
    world.save("cache.yaml", &manifest::service("shop/cache", 6379, "", "app: cache")).unwrap();
    world.start_control_plane().await.unwrap();
    let cache = world.pod("shop/cache-0").ports(&[6379]).start().await.unwrap();
    let mut command = Command::new(server);
    command.args(["--bind", &cache.ip.to_string(), "--port", "6379", "--save", "", "--appendonly", "no"]);
    command.args(["--protected-mode", "no", "--dir"]).arg(world.directory());
    let mut redis = world.run("redis", &command).unwrap();
    listens(cache.port(6379), &mut redis).await;
    let ip = world.new_address();
    let forward = format!("{ip}:6379=cache:6379");
    let web = world.pod("shop/web").at(ip).sidecar_args(["--forward", &forward]).start().await.unwrap();

    let redis_cli = |args: &[&str]| {
        let mut command = Command::new(&cli);
        command.args(["-h", &ip.to_string(), "-p", "6379"]).args(args);
        command
    };
    assert_eq!(says(&redis_cli(&["PING"])).await.trim(), "PONG");
    let value = "w".repeat(300_000);
    assert_eq!(says(&redis_cli(&["SET", "cloth", &value[..100_000]])).await.trim(), "OK");
    assert_eq!(says(&redis_cli(&["STRLEN", "cloth"])).await.trim(), "100000");
    assert_eq!(says(&redis_cli(&["--csv", "GET", "cloth"])).await.trim().trim_matches('"').len(), 100_000);
    let many = says(&redis_cli(&["-r", "200", "INCR", "count"])).await;
    assert_eq!(many.lines().last(), Some("200"));
    if let Some(benchmark) = heddle_tests::program::find("redis-benchmark") {
        let mut command = Command::new(benchmark);
        command.args(["-h", &ip.to_string(), "-p", "6379", "-n", "2000", "-c", "20", "-q", "-t", "get,set"]);
        let report = output(&command).await;
        assert!(report.status.success(), "{report:?}");
    }
    let scrape = web.scrape().await.unwrap();
    assert!(scrape.sum("heddle_tcp_bytes_total", &[]) > 200_000.0, "{}", scrape.text);
    let tls = [("direction", "inbound"), ("tls", "true")];
    assert!(cache.scrape().await.unwrap().sum("heddle_connections_total", &tls) >= 1.0);
}
