//! Programs that know of no mesh: netfilter leads their connections through the sidecar, as it does in a cluster.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::ensure;
use heddle_tests::{
    app::{HttpApp, TcpApp},
    client::{Client, Raw},
    eventually, manifest, need,
    netns::{Family, Namespace, NetPod, Wire, missing},
    skip,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Ends the test where pods cannot be namespaces.
macro_rules! need_namespaces {
    () => {
        if let Some(what) = missing() {
            skip!(what);
        }
    };
}

/// `web` calls `reviews`, at a Service address that is nobody's and at the pod's own.
struct Shop {
    wire: Wire,
    service: SocketAddr,
    reviews: NetPod,
    app: HttpApp,
    web: NetPod,
}

async fn shop(family: Family) -> Shop {
    let wire = Wire::new(family).await.unwrap();
    let service = SocketAddr::new(wire.service("reviews", 10, 9080, "", "reviews").unwrap(), 9080);
    let reviews = wire.pod("reviews", 3, &[9080], &[]).await.unwrap();
    let app = reviews.inside.run(HttpApp::start(reviews.app(), "v1")).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    Shop { wire, service, reviews, app, web }
}

/// What curl printed of an answer that must be one.
async fn curl(from: &Namespace, args: &[&str]) -> String {
    let output = from.curl(args).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "curl {args:?}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Requests that the pod's sidecar took in over mTLS, or in plaintext.
async fn taken(shop: &Shop, mtls: bool) -> f64 {
    let labels = [("heddle_mtls", if mtls { "true" } else { "false" })];
    let scrape = shop.reviews.scrape(&shop.wire).await.unwrap();
    scrape.sum("http_server_request_duration_seconds_count", &labels)
}

/// An unmodified curl in both versions of HTTP, whatever Host it names.
async fn curl_reaches_reviews_over_mtls(family: Family) {
    let shop = shop(family).await;
    let url = format!("http://{}/from-curl", shop.service);
    let one = curl(&shop.web.inside, &[&url]).await;
    assert!(one.starts_with("HTTP/1.1 200"), "{one}");
    let two = curl(&shop.web.inside, &["--http2-prior-knowledge", &url]).await;
    assert!(two.starts_with("HTTP/2 200"), "{two}");
    // Where the connection was going decides, not what the request says about itself.
    let named = curl(&shop.web.inside, &["-H", "Host: elsewhere.example", &url]).await;
    assert!(named.starts_with("HTTP/1.1 200"), "{named}");

    let seen = shop.app.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(seen[0].headers["host"], shop.service.to_string());
    assert_eq!(seen[2].headers["host"], "elsewhere.example");
    assert_eq!((taken(&shop, true).await, taken(&shop, false).await), (3.0, 0.0));
}

#[tokio::test]
async fn curl_to_a_service_address_goes_over_mtls() {
    need_namespaces!();
    curl_reaches_reviews_over_mtls(Family::V4).await;
}

#[tokio::test]
async fn curl_to_a_service_address_goes_over_mtls_on_ipv6() {
    need_namespaces!();
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        skip!("IPv6");
    }
    curl_reaches_reviews_over_mtls(Family::V6).await;
}

#[tokio::test]
async fn a_headless_pod_is_called_at_its_own_address_and_nothing_is_readable_on_the_wire() {
    need_namespaces!();
    need!("tcpdump");
    let shop = shop(Family::V4).await;
    shop.wire.headless("ratings", 9080, "http", "ratings").unwrap();
    let ratings = shop.wire.pod("ratings-0", 4, &[9080], &[]).await.unwrap();
    let app = ratings.inside.run(HttpApp::start(ratings.app(), "zero")).await.unwrap();
    let (_tcpdump, file) = shop.wire.record(&ratings).await.unwrap();

    let answer = curl(&shop.web.inside, &[&format!("http://{}/in-the-mesh", ratings.app())]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let labels = [("heddle_mtls", "true")];
    let scrape = ratings.scrape(&shop.wire).await.unwrap();
    assert!(scrape.sum("http_server_request_duration_seconds_count", &labels) >= 1.0, "{}", scrape.text);

    // From outside the mesh it is readable, which shows that the recording would have shown the other too.
    curl(&shop.wire.outside, &[&format!("http://{}/from-outside", ratings.app())]).await;
    eventually("the request from outside is recorded", || async {
        ensure!(contains(&std::fs::read(&file)?, b"/from-outside"), "not yet");
        Ok(())
    })
    .await;
    assert!(!contains(&std::fs::read(&file).unwrap(), b"/in-the-mesh"), "plaintext on the wire");
    assert_eq!(app.requests(), 2);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_pod_may_call_itself_through_its_own_service() {
    need_namespaces!();
    let shop = shop(Family::V4).await;
    let answer = curl(&shop.reviews.inside, &[&format!("http://{}/", shop.service)]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!((taken(&shop, true).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn redis_is_captured() {
    need_namespaces!();
    let (server, _) = (need!("redis-server"), need!("redis-cli"));
    let wire = Wire::new(Family::V4).await.unwrap();
    let service = wire.service("cache", 12, 6379, "", "cache").unwrap().to_string();
    let cache = wire.pod("cache", 5, &[6379], &[]).await.unwrap();
    let mut command = cache.inside.command(&server.to_string_lossy());
    command.args(["--bind", &cache.ip.to_string(), "--port", "6379", "--save", "", "--appendonly", "no"]);
    command.args(["--protected-mode", "no", "--dir"]).arg(wire.world.directory());
    let redis = wire.world.run("redis", &command).unwrap();
    eventually("redis listens", || async {
        ensure!(redis.log().contains("Ready to accept connections"), "{}", redis.log());
        Ok(())
    })
    .await;
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    let say = |args: &[&str]| {
        web.inside.must("redis-cli", &[&["-h", &service], args].concat()).map(|said| said.trim().to_owned())
    };
    assert_eq!(say(&["SET", "cloth", "wool"]).unwrap(), "OK");
    assert_eq!(say(&["GET", "cloth"]).unwrap(), "wool");
    let scrape = cache.scrape(&wire).await.unwrap();
    let tls = [("direction", "inbound"), ("tls", "true")];
    assert!(scrape.sum("heddle_connections_total", &tls) >= 1.0, "{}", scrape.text);
    assert!(scrape.sum("heddle_tcp_bytes_total", &[("direction", "inbound")]) > 0.0, "{}", scrape.text);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_by_the_mesh_and_by_outsiders() {
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    // Nothing says what the port speaks.
    let service = SocketAddr::new(wire.service("greeter", 13, 7000, "", "greeter").unwrap(), 7000);
    let greeter = wire.pod("greeter", 6, &[7000], &[]).await.unwrap();
    let greets = TcpApp::start(greeter.port(7000), |mut stream| async move {
        stream.write_all(b"welcome").await?;
        let mut name = [0; 3];
        stream.read_exact(&mut name).await?;
        stream.write_all(&name).await?;
        stream.shutdown().await
    });
    let _app = greeter.inside.run(greets).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    web.inside.run(is_greeted(service)).await.unwrap();
    let tls = [("direction", "inbound"), ("tls", "true")];
    let meshed = greeter.scrape(&wire).await.unwrap().sum("heddle_connections_total", &tls);
    assert!((meshed - 1.0).abs() < f64::EPSILON, "{meshed}");
    // And through 15006.
    wire.outside.run(is_greeted(greeter.port(7000))).await.unwrap();
}

async fn is_greeted(address: SocketAddr) -> anyhow::Result<()> {
    let mut connection = Raw::connect(address).await?;
    ensure!(connection.read_exact(7).await? == b"welcome");
    connection.send("joe").await?;
    ensure!(connection.read_to_end().await? == "joe");
    Ok(())
}

#[tokio::test]
async fn what_is_outside_the_mesh_is_passed_through_untouched() {
    const REQUEST: &str = "GET /Outside HTTP/1.1\r\nhOST: Outside.Example\r\nX-odd:  two  spaces\r\n\r\n";
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    let outside = SocketAddr::new(wire.family().host(1), 8080);
    let _app = wire.outside.run(TcpApp::echo(outside)).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    let back = web.inside.run(async move {
        let mut connection = Raw::connect(outside).await?;
        connection.send(REQUEST).await?;
        connection.finish().await?;
        connection.read_to_end().await
    });
    // The server says "bye" only after our FIN.
    assert_eq!(back.await.unwrap(), format!("{REQUEST}bye"));
    // They are counted when the connection has ended on both sides.
    eventually("it went through the sidecar", || async {
        let scrape = web.scrape(&wire).await?;
        let passed = scrape.sum("heddle_tcp_bytes_total", &[("direction", "outbound")]);
        ensure!(passed >= (2 * REQUEST.len()) as f64, "{}", scrape.text);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn plaintext_from_outside_is_taken_until_the_policy_is_strict() {
    need_namespaces!();
    let shop = shop(Family::V4).await;
    let url = format!("http://{}/plain", shop.reviews.app());
    let answer = curl(&shop.wire.outside, &[&url]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = curl(&shop.wire.outside, &["--http2-prior-knowledge", &url]).await;
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert_eq!((taken(&shop, false).await, taken(&shop, true).await), (2.0, 0.0));

    let strict = manifest::policy("MeshPolicy", "shop/strict", "  mtls: Strict\n");
    shop.wire.world.save("strict.yaml", &strict).unwrap();
    eventually("plaintext is refused", || async {
        let output = shop.wire.outside.curl(&[&url]).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success() || text.contains("PlaintextRefused"), "{text}");
        Ok(())
    })
    .await;
    let before = shop.app.requests();
    let _ = shop.wire.outside.curl(&[&url]).await.unwrap();
    assert_eq!(shop.app.requests(), before);
    shop.reviews.refused(&shop.wire, "inbound", "PlaintextRefused", 1.0).await;
    let answer = curl(&shop.web.inside, &[&format!("http://{}/", shop.service)]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn the_outbound_port_serves_nobody_but_its_pod() {
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    let service = wire.service("reviews", 10, 9080, "http", "reviews").unwrap();
    let reviews = wire.pod("reviews", 3, &[9080], &[]).await.unwrap();
    let app = reviews.inside.run(HttpApp::start(reviews.app(), "v1")).await.unwrap();
    let ip = wire.family().host(2);
    // It listens where others can reach it, as no cluster has it.
    let args = ["--pod-ip", &ip.to_string(), "--outbound-listen", &format!("127.0.0.1:15001,{ip}:15001")];
    let web = wire.pod("web", 2, &[], &args.map(str::to_owned)).await.unwrap();
    let answer = curl(&web.inside, &[&format!("http://{service}:9080/")]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let proxy = format!("http://{ip}:15001");
    let proxied = ["--noproxy", "", "--proxy", &proxy, "http://reviews:9080/"];
    let answer = curl(&web.inside, &proxied).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the pod itself may: {answer}");
    let before = app.requests();
    let output = wire.outside.curl(&proxied).await.unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    web.refused(&wire, "outbound", "ForeignSource", 1.0).await;
    // From another pod it is first that pod's sidecar that will not dial a sidecar's port.
    let output = reviews.inside.curl(&proxied).await.unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains(" 200"), "{output:?}");
    assert_eq!(app.requests(), before);
}

#[tokio::test]
async fn the_inbound_port_refuses_other_addresses_and_the_sidecars_own_ports() {
    need_namespaces!();
    let shop = shop(Family::V4).await;
    // A router that sends somebody else's packets here.
    let foreign = shop.wire.family().service(99).to_string();
    let reviews = shop.reviews.ip.to_string();
    shop.wire.outside.must("ip", &["route", "add", &foreign, "via", &reviews]).unwrap();
    // Rules as they are where the kernel cannot tell whose an address is.
    let rule =
        format!("insert rule inet heddle inbound ip daddr {foreign} tcp dport 9080 redirect to :15006");
    shop.reviews.inside.nft(&rule).unwrap();
    let output = shop.wire.outside.curl(&[&format!("http://{foreign}:9080/")]).await.unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains(" 200"), "{output:?}");
    shop.reviews.refused(&shop.wire, "inbound", "ForeignAddress", 1.0).await;

    // Rules that lack the exception for the sidecar's own ports.
    let rule = "insert rule inet heddle inbound tcp dport 15000-15001 redirect to :15006";
    shop.reviews.inside.nft(rule).unwrap();
    for (port, path) in [(15000, "config"), (15001, "")] {
        let output = shop.wire.outside.curl(&[&format!("http://{reviews}:{port}/{path}")]).await.unwrap();
        assert!(!String::from_utf8_lossy(&output.stdout).contains(" 200"), "{output:?}");
    }
    shop.reviews.refused(&shop.wire, "inbound", "OwnPort", 2.0).await;
    assert_eq!(shop.app.requests(), 0);
}

#[tokio::test]
async fn an_application_reaches_no_sidecars_port_through_capture() {
    need_namespaces!();
    let shop = shop(Family::V4).await;
    // Rules that lack the exceptions for what stays on the machine, and for other sidecars' metrics.
    let rule = "insert rule inet heddle outbound meta skuid != 2102 tcp dport 15000-15020 redirect to :15001";
    shop.web.inside.nft(rule).unwrap();
    let mut own = 0.0;
    for ip in [shop.web.ip, shop.reviews.ip] {
        for port in [15000, 15001, 15006, 15008, 15020] {
            let output = shop.web.inside.curl(&[&format!("http://{ip}:{port}/ready")]).await.unwrap();
            assert!(!String::from_utf8_lossy(&output.stdout).contains(" 200"), "{ip}:{port}: {output:?}");
            own += 1.0;
        }
    }
    shop.web.refused(&shop.wire, "outbound", "OwnPort", own).await;
    // What is the sidecar itself was refused before anybody was asked what it is.
    let user = ["--reuid=2102", "--clear-groups", "curl", "-sS", "--max-time", "5"];
    let config = [&user[..], &["http://127.0.0.1:15000/config"]].concat();
    let config = shop.web.inside.must("setpriv", &config).unwrap();
    assert!(config.contains(&format!("{}:15000", shop.reviews.ip)), "the other pod's was: {config}");
    assert!(!config.contains(&format!("{}:15000", shop.web.ip)), "{config}");
    // Only the proxy's own port is what it would be without a redirect: a proxy, which says no to the same things.
    let proxy = format!("http://{}:15001", shop.web.ip);
    let app = format!("http://{}/", shop.reviews.app());
    let answer = curl(&shop.web.inside, &["--noproxy", "", "--proxy", &proxy, &app]).await;
    assert!(answer.contains(" 200"), "{answer}");
    let admin = format!("http://{}:15000/config", shop.web.ip);
    let answer = curl(&shop.web.inside, &["--noproxy", "", "--proxy", &proxy, &admin]).await;
    assert!(answer.contains(" 403") && answer.contains("OwnPort"), "{answer}");
}

#[tokio::test]
async fn without_a_pod_address_what_speaks_for_the_pod_listens_on_loopback_only() {
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    // ss: LISTEN 0 4096 127.0.0.1:15000 0.0.0.0:*
    let table = web.inside.must("ss", &["-Hltn"]).unwrap();
    let local = |line: &str| line.split_whitespace().nth(3).and_then(|address| address.parse().ok());
    let listening: BTreeSet<SocketAddr> = table.lines().filter_map(local).collect();
    let mut expected: BTreeSet<SocketAddr> = ["127.0.0.1:15000", "127.0.0.1:15001"]
        .into_iter()
        .chain(["0.0.0.0:15006", "0.0.0.0:15008", "0.0.0.0:15020"])
        .map(|address| address.parse().unwrap())
        .collect();
    if listening.iter().any(SocketAddr::is_ipv6) {
        let six = ["[::1]:15000", "[::1]:15001", "[::]:15006", "[::]:15008", "[::]:15020"];
        expected.extend(six.map(|address| address.parse::<SocketAddr>().unwrap()));
    }
    assert_eq!(listening, expected);
    // Its own address it found by itself: a request from it to 15006 is for its own application.
    let _app = web.inside.run(HttpApp::start(web.app(), "web")).await.unwrap();
    let app = web.app();
    let answer = wire.outside.run(async move { Client::http1(app).await?.get("web", "/").await }).await;
    assert_eq!(answer.unwrap().answered_by(), "web");
}
