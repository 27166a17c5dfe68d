//! curl and wrk as clients, nginx as the application.

use std::{path::PathBuf, process::Command};

use heddle_tests::{Pod, World, eventually, manifest, need, process::Process};

use super::{listens, output, says};

/// `web` and an nginx at `site:8000`.
struct Site {
    world: World,
    web: Pod,
    _nginx: Process,
}

async fn site(nginx: PathBuf) -> Site {
    let mut world = World::new().unwrap();
    world.save("site.yaml", &manifest::service("shop/site", 8000, "http", "app: site")).unwrap();
    world.start_control_plane().await.unwrap();
    let pod = world.pod("shop/site-v1").ports(&[8000]).start().await.unwrap();
    let home = world.directory().join("nginx");
    std::fs::create_dir_all(home.join("html")).unwrap();
    std::fs::write(home.join("html/index.html"), "warp and weft\n").unwrap();
    std::fs::write(home.join("html/big"), vec![b'b'; 2_000_000]).unwrap();
    let config = format!(
        "daemon off; master_process off; pid {home}/pid; error_log stderr;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  keepalive_requests 100000;
  server {{
    listen {address};
    root {home}/html;
    location /host {{ return 200 \"$http_host $server_protocol\"; }}
    location /gone {{ return 410; }}
  }}
}}
",
        home = home.display(),
        address = pod.port(8000)
    );
    std::fs::write(home.join("nginx.conf"), config).unwrap();
    // As root nginx would serve as another user, who may not enter the world's directory.
    let mut command = Command::new(nginx);
    command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
    if super::is_root() {
        command.args(["-g", "user root;"]);
    }
    let mut nginx = world.run("nginx", &command).unwrap();
    listens(pod.port(8000), &mut nginx).await;
    let web = world.pod("shop/web").start().await.unwrap();
    web.answers("site:8000", "/", |answer| answer.status == 200).await;
    Site { world, web, _nginx: nginx }
}

fn curl(program: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-sS", "--max-time", "20", "-w", "\n%{http_code} %{http_version}"]).args(args);
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY"] {
        command.env(proxy, "");
    }
    command
}

#[tokio::test]
async fn curl_reaches_nginx_in_every_way_it_knows() {
    let (program, nginx) = (need!("curl"), need!("nginx"));
    let site = site(nginx).await;
    let sidecar = format!("http://{}", site.web.outbound());
    let url = format!("{sidecar}/");

    let by_host = says(&curl(&program, &["-H", "Host: site:8000", &url])).await;
    assert_eq!(by_host, "warp and weft\n\n200 1.1");
    let by_http2 = says(&curl(&program, &["--http2-prior-knowledge", "-H", "Host: site:8000", &url])).await;
    assert_eq!(by_http2, "warp and weft\n\n200 2");
    let by_proxy = says(&curl(&program, &["-x", &sidecar, "http://site:8000/"])).await;
    assert_eq!(by_proxy, "warp and weft\n\n200 1.1");
    let by_tunnel = says(&curl(&program, &["-p", "-x", &sidecar, "http://site.shop:8000/"])).await;
    assert_eq!(by_tunnel, "warp and weft\n\n200 1.1");
    let by_upgrade = says(&curl(&program, &["--http2", "-H", "Host: site:8000", &url])).await;
    assert_eq!(by_upgrade, "warp and weft\n\n200 1.1");
    let old = says(&curl(&program, &["--http1.0", "-H", "Host: site:8000", &url])).await;
    assert!(old.starts_with("warp and weft\n\n200"), "{old}");
    let head = says(&curl(&program, &["-I", "-H", "Host: site:8000", &url])).await;
    assert_eq!(head.to_ascii_lowercase().matches("content-length: 14").count(), 1, "{head}");
    let host = says(&curl(&program, &["-H", "Host: site:8000", &format!("{sidecar}/host")])).await;
    assert!(host.starts_with("site:8000 HTTP/1.1"), "the application gets the Host as it was: {host}");
    let gone =
        says(&curl(&program, &["-o", "/dev/null", "-H", "Host: site:8000", &format!("{sidecar}/gone")]))
            .await;
    assert_eq!(gone, "\n410 1.1");
    let range = says(&curl(&program, &["-r", "0-3", "-H", "Host: site:8000", &url])).await;
    assert_eq!(range, "warp\n206 1.1");
    let big = output(&curl(&program, &["-H", "Host: site:8000", &format!("{sidecar}/big")])).await;
    assert_eq!(big.stdout.len(), 2_000_000 + "\n200 1.1".len());
    let unknown =
        says(&curl(&program, &["-o", "/dev/null", "-x", &sidecar, "http://no-such.invalid/"])).await;
    assert_eq!(unknown, "\n502 1.1");
}

#[tokio::test]
async fn wrk_finds_no_error_under_load() {
    let (wrk, nginx) = (need!("wrk"), need!("nginx"));
    let site = site(nginx).await;
    let mut command = Command::new(wrk);
    command.args(["-t1", "-c50", "-d3s", "--latency", "-H", "Host: site:8000"]);
    command.arg(format!("http://{}/", site.web.outbound()));
    let report = says(&command).await;
    println!("{report}");
    assert!(report.contains("Requests/sec"), "{report}");
    for trouble in ["Non-2xx", "Socket errors"] {
        assert!(!report.contains(trouble), "{report}");
    }
    eventually("the load is over mTLS, by the metrics", || async {
        let mtls = [("heddle_mtls", "true")];
        let requests = site.web.scrape().await?.sum("http_client_request_duration_seconds_count", &mtls);
        anyhow::ensure!(requests > 100.0, "{requests}");
        Ok(())
    })
    .await;
    assert!(site.world.diagnostics().await.is_ok());
}
