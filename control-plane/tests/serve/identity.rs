//! Who gets a certificate, and what is said to who does not.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use heddle_control_plane::{
    ca::{Authority, ROOTS_FILE},
    tls::peer::peer,
};
use tonic::Code;

use crate::{
    client::{Leaf, Stream, connect, join},
    world::{PATIENCE, World, get, pod, token},
};

const REFUSED: &str = "heddle_control_plane_refused_total{reason=\"ClientCertificate\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_joins_with_its_token_and_renews_with_its_certificate() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    for leaf in [leaf.renew(running.address, &ca).await.unwrap(), leaf] {
        let peer = peer(&leaf.chain, "cluster.local").unwrap();
        assert_eq!(peer.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(peer.pod.to_string(), "shop/web-0");
        assert_eq!(leaf.certificate.not_after - leaf.certificate.not_before, 3600);
        assert_eq!(
            (leaf.certificate.roots.len(), leaf.certificate.trust_domain.as_str()),
            (1, "cluster.local")
        );
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_refused_with_the_word_for_what_it_is() {
    let (world, other) = (World::shop(), tempfile::tempdir().unwrap());
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let good = world.token("web");
    let (head, _) = good.rsplit_once('.').unwrap();
    let another = world.token("reviews");
    let forged = format!("{head}.{}", another.rsplit_once('.').unwrap().1);
    let expired = token(&world.path("state"), "web", Duration::ZERO);
    let foreign = token(other.path(), "web", Duration::from_secs(60));
    for (token, word) in [
        (forged.as_str(), "forged"),
        (expired.as_str(), "expired"),
        (foreign.as_str(), "foreign"),
        ("hello", "malformed"),
    ] {
        let status = join(running.address, &ca, token, "shop/web-0").await.map(|_| ()).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(word), "{word}: {}", status.message());
    }
    let metrics = get(running.admin_address, "/metrics").await.unwrap();
    for reason in ["ForgedToken", "ExpiredToken", "ForeignToken", "MalformedToken"] {
        let line = format!("heddle_control_plane_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_pods_of_its_service_account_alone() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    for (account, pod, code, hint) in [
        ("web", "shop/reviews-0", Code::PermissionDenied, "--service-account reviews"),
        ("web", "bank/web-0", Code::PermissionDenied, "--namespace bank"),
        ("web", "shop/web-9", Code::NotFound, "no Pod shop/web-9"),
        ("plain", "shop/plain-0", Code::FailedPrecondition, "heddle.dev/sidecar"),
        ("web", "web-0", Code::InvalidArgument, "NAMESPACE/NAME"),
    ] {
        let status = join(running.address, &ca, &world.token(account), pod).await.map(|_| ()).unwrap_err();
        assert_eq!(status.code(), code, "{pod}: {status}");
        assert!(status.message().contains(hint), "{hint}: {}", status.message());
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_client_certificate_only_join_is_served() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let channel = connect(running.address, &ca, None).await.unwrap();
    let status = Stream::open(channel.clone(), "shop/web-0", vec![], vec![]).await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut client = heddle_api::v1::identity_client::IdentityClient::new(channel);
    let status = client.renew(heddle_api::v1::RenewRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let metrics = get(running.admin_address, "/metrics").await.unwrap();
    assert!(metrics.contains("{reason=\"NoClientCertificate\"} 2"), "{metrics}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_does_not_get_in() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let (life, now) = (Duration::from_secs(3600), SystemTime::now());
    let authority = Authority::open(&world.path("state"), "cluster.local", life, now).unwrap();
    let leaf = |now| Leaf::signed_by(&authority, "spiffe://cluster.local/ns/shop/sa/web", "shop/web-0", now);
    let channel = connect(running.address, &ca, Some(&leaf(now))).await.unwrap();
    assert!(Stream::open(channel, "shop/web-0", vec![], vec![]).await.is_ok());
    let refused = match connect(running.address, &ca, Some(&leaf(now - 2 * life))).await {
        Ok(channel) => Stream::open(channel, "shop/web-0", vec![], vec![]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    refusal_is_counted(running.admin_address).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_does_not_get_in() {
    let (world, other) = (World::shop(), World::shop());
    let (running, foreign) = (world.start().await, other.start().await);
    let other_ca = other.path("state").join(ROOTS_FILE);
    let leaf = join(foreign.address, &other_ca, &other.token("web"), "shop/web-0").await.unwrap();
    let ca = world.path("state").join(ROOTS_FILE);
    // In TLS 1.3 the client may learn of the refusal with the first answer only.
    let refused = match connect(running.address, &ca, Some(&leaf)).await {
        Ok(channel) => Stream::open(channel, "shop/web-0", vec![], vec![]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    refusal_is_counted(running.admin_address).await;
    // Nor does the other's CA pass for ours.
    assert!(connect(running.address, &other_ca, None).await.is_err());
    running.stop().await;
    foreign.stop().await;
}

/// The alert is on its way to the client before the refusal is counted.
async fn refusal_is_counted(admin: SocketAddr) {
    let counted = async {
        while !get(admin, "/metrics").await.unwrap().contains(REFUSED) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("the refusal is counted");
}

/// What a renewal is answered once it is refused.
async fn refusal(leaf: &Leaf, address: SocketAddr, ca: &std::path::Path) -> tonic::Status {
    let refused = async {
        loop {
            match leaf.renew(address, ca).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("still renewed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_finished_unmeshed_or_of_another_account_gets_no_certificate() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    let good = pod("web-0", "web", "127.0.1.1");
    for (text, code, word) in [
        (good.replace("serviceAccountName: web", "serviceAccountName: api"), Code::PermissionDenied, "api"),
        (good.replace("\"true\"", "\"false\""), Code::FailedPrecondition, "not meshed"),
        (good.replace("status: {", "status: {phase: Failed, "), Code::FailedPrecondition, "finished"),
    ] {
        world.write("web.yaml", &text);
        let status = refusal(&leaf, running.address, &ca).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{word}: {status}");
        let joined = join(running.address, &ca, &world.token("web"), "shop/web-0").await.map(|_| ());
        assert_eq!(joined.unwrap_err().code(), code);
        world.write("web.yaml", &good);
        let renewed = async {
            while leaf.renew(running.address, &ca).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, renewed).await.expect("not renewed again");
    }
    world.remove("web.yaml");
    assert_eq!(refusal(&leaf, running.address, &ca).await.code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_had_the_pods_name_under_another_account_gets_no_stream() {
    let world = World::shop();
    let (running, ca) = (world.start().await, world.path("state").join(ROOTS_FILE));
    let leaf = join(running.address, &ca, &world.token("web"), "shop/web-0").await.unwrap();
    world.write("web.yaml", &pod("web-0", "api", "127.0.1.1"));
    refusal(&leaf, running.address, &ca).await;
    let channel = connect(running.address, &ca, Some(&leaf)).await.unwrap();
    let mut stream = Stream::open(channel, "shop/web-0", vec![], vec![]).await.unwrap();
    let status = stream.next().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    running.stop().await;
}
