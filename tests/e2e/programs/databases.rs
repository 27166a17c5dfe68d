//! MariaDB, a server that speaks first, and PostgreSQL, whose client asks for TLS in mid-protocol.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use heddle_tests::{Pod, World, eventually, manifest, need};

use super::{is_root, listens, output, owned_by, says};

/// `db` with nothing at its port yet, and `web`, whose own address and port lead there.
async fn world(port: u16) -> (World, Pod, Pod) {
    let mut world = World::new().unwrap();
    // Opaque without being declared: 3306 and 5432 are known.
    world.save("db.yaml", &manifest::service("shop/db", port, "", "app: db")).unwrap();
    world.start_control_plane().await.unwrap();
    let db = world.pod("shop/db-0").ports(&[port]).start().await.unwrap();
    let ip = world.new_address();
    let forward = format!("{ip}:{port}=db:{port}");
    let web = world.pod("shop/web").at(ip).sidecar_args(["--forward", &forward]).start().await.unwrap();
    (world, web, db)
}

/// A directory for the server's data that `user` may write, with short paths for its sockets.
fn data_directory(world: &World, user: &str) -> PathBuf {
    let data = world.directory().join("data");
    std::fs::create_dir(&data).unwrap();
    if is_root() {
        owned_by(&data, user);
        // The user must be able to pass through.
        std::fs::set_permissions(world.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    data
}

#[tokio::test]
async fn mariadb_speaks_first_and_is_heard() {
    let (server, install, client) = (need!("mariadbd"), need!("mariadb-install-db"), need!("mariadb"));
    let (world, web, db) = world(3306).await;
    let data = data_directory(&world, "mysql");
    let user: &[&str] = if is_root() { &["--user=mysql"] } else { &[] };
    let mut command = Command::new(install);
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]).args(user);
    command.arg(format!("--datadir={}", data.display()));
    says(&command).await;
    let mut command = Command::new(server);
    command.arg("--no-defaults").args(user).arg(format!("--datadir={}", data.display()));
    command.arg(format!("--socket={}", data.join("s").display()));
    command.args([&format!("--bind-address={}", db.ip), "--port=3306", "--skip-name-resolve"]);
    command.args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--skip-log-bin"]);
    let mut mariadb = world.run("mariadb", &command).unwrap();
    listens(db.port(3306), &mut mariadb).await;
    let local = |sql: &str| {
        let mut command = Command::new(&client);
        command.args([
            "--no-defaults",
            "-uroot",
            &format!("--socket={}", data.join("s").display()),
            "-e",
            sql,
        ]);
        command
    };
    says(&local(
        "CREATE DATABASE shop; CREATE USER web@'%' IDENTIFIED BY 'thread'; GRANT ALL ON shop.* TO web@'%'",
    ))
    .await;
    let over_mesh = |sql: &str| {
        let mut command = Command::new(&client);
        command.args(["--no-defaults", "--skip-ssl", "-uweb", "-pthread", "-N", "-h"]);
        command.args([&web.ip.to_string(), "-P3306", "shop", "-e", sql]);
        command
    };
    eventually("a query through the mesh", || async {
        let answer = output(&over_mesh("SELECT 6 * 7")).await;
        anyhow::ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "42");
        Ok(())
    })
    .await;
    says(&over_mesh("CREATE TABLE t (x LONGTEXT); INSERT INTO t VALUES (REPEAT('w', 500000))")).await;
    assert_eq!(says(&over_mesh("SELECT x FROM t")).await.trim().len(), 500_000);
    let tls = [("direction", "inbound"), ("tls", "true")];
    assert!(db.scrape().await.unwrap().sum("heddle_connections_total", &tls) >= 1.0);
}

#[tokio::test]
async fn postgresql_is_reached_also_when_its_client_asks_for_tls_midway() {
    let (server, initdb, client) = (need!("postgres"), need!("initdb"), need!("psql"));
    let (world, web, db) = world(5432).await;
    let data = data_directory(&world, "postgres");
    // PostgreSQL refuses to run as root.
    let as_user = |program: &PathBuf| {
        if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        }
    };
    let mut command = as_user(&initdb);
    command.args(["-U", "web", "-A", "trust", "--no-sync", "-D"]).arg(&data);
    says(&command).await;
    let mut access = std::fs::read_to_string(data.join("pg_hba.conf")).unwrap();
    access.push_str("host all all 127.0.0.0/8 trust\n");
    std::fs::write(data.join("pg_hba.conf"), access).unwrap();
    let mut command = as_user(&server);
    command.arg("-D").arg(&data).args(["-p", "5432", "-c", &format!("listen_addresses={}", db.ip)]);
    command.args(["-c", &format!("unix_socket_directories={}", data.display()), "-c", "fsync=off"]);
    let mut postgres = world.run("postgres", &command).unwrap();
    listens(db.port(5432), &mut postgres).await;
    // `prefer` sends SSLRequest first and goes on in the clear when the server says N.
    for mode in ["prefer", "disable"] {
        let over_mesh = |sql: &str| {
            let mut command = Command::new(&client);
            let target = format!(
                "host={} port=5432 user=web dbname=postgres sslmode={mode} gssencmode=disable",
                web.ip
            );
            command.args(["-X", "-At", "-c", sql]).arg(target);
            command
        };
        eventually("a query through the mesh", || async {
            let answer = output(&over_mesh("SELECT 6 * 7")).await;
            anyhow::ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
            assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "42");
            Ok(())
        })
        .await;
        assert_eq!(says(&over_mesh("SELECT repeat('w', 500000)")).await.trim().len(), 500_000);
    }
}
