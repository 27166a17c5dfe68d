//! Whom the pool calls, and with whom a connection is shared.

use std::{cell::RefCell, net::Ipv4Addr, rc::Rc, sync::Arc, time::Duration};

use heddle_api::carrier::{Form, ServerName};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinSet, spawn_local},
};

use super::super::{
    Pool, Sent, ahead, respond,
    server::{self, AcceptError},
    testing::{Authority, SECOND, World, get, id, metrics, on_a_worker, shake_hands},
};
use crate::{identity::Credentials, reason::Reason};

async fn world() -> World {
    World::new(Form::Http1, |_, to| async move {
        let _gone = respond(to, Response::new(Full::from("fine"))).await;
    })
    .await
}

#[tokio::test]
async fn first_requests_that_come_together_share_one_dial() {
    on_a_worker(async {
        let world = Rc::new(world().await);
        let mut requests = JoinSet::new();
        for _ in 0..100 {
            let world = Rc::clone(&world);
            requests.spawn_local(async move { world.text("/").await });
        }
        assert!(requests.join_all().await.iter().all(|text| text == "fine"));
        assert_eq!(world.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_request_ahead_is_the_first_on_the_connection_that_others_use() {
    on_a_worker(async {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let hears = Rc::clone(&heard);
        let world = World::new(Form::Http1, move |request, to| {
            hears.borrow_mut().push((ahead::is_one(&request), request.uri().to_string()));
            async move {
                let _gone = respond(to, Response::new(Full::from("fine"))).await;
            }
        })
        .await;
        world.pool.ask_ahead(&world.peer, "reviews:9080".parse().unwrap(), SECOND).await.unwrap();
        world.text("/").await;
        let as_sent = |path| format!("http://reviews:9080{path}");
        assert_eq!(*heard.borrow(), [(true, as_sent("*")), (false, as_sent("/"))]);
        assert_eq!(world.accepted.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_shared_only_for_the_same_port_form_and_identity() {
    on_a_worker(async {
        let mut world = world().await;
        for (form, port) in [(Form::Http1, 1), (Form::Http1, 2), (Form::Http2, 1), (Form::Http1, 1)] {
            world.peer.name = ServerName { form, port };
            assert_eq!(world.text("/").await, "fine");
        }
        assert_eq!(world.accepted.get(), 3);
        world.peer.identity = id("other");
        assert_eq!(world.get("/").await.unwrap_err().reason, Reason::PeerIdentity);
    })
    .await;
}

#[tokio::test]
async fn a_peer_of_another_identity_or_authority_gets_no_byte() {
    on_a_worker(async {
        let mut world = world().await;
        world.peer.identity = id("ratings");
        let error = world.get("/").await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::PeerIdentity, Sent::No));
        assert!(error.source.contains("reviews") && error.source.contains("ratings"), "{error}");

        world.peer.identity = id("reviews");
        let stranger = Authority::new().credentials("web");
        let pool = Pool::with(move || Some(stranger.clone()), world.address.port(), metrics());
        let error = pool.send(&world.peer, get("/"), SECOND).await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::PeerIdentity, Sent::No));
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_the_server_does_not_believe_learns_it_before_it_sends() {
    on_a_worker(async {
        let world = world().await;
        // It trusts the server, but the server does not trust its authority.
        let stranger = Authority::new().credentials("web");
        let credentials = Arc::new(Credentials { trust: world.authority.trust(), ..(*stranger).clone() });
        let pool = Pool::with(move || Some(credentials.clone()), world.address.port(), metrics());
        let error = pool.send(&world.peer, get("/"), SECOND).await.unwrap_err();
        assert_eq!((error.reason, error.sent), (Reason::ConnectFailed, Sent::No));
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_old_ones_live_on() {
    on_a_worker(async {
        let world = world().await;
        let current = Rc::new(RefCell::new(world.authority.credentials("web")));
        let reads = Rc::clone(&current);
        let pool = Pool::with(move || Some(reads.borrow().clone()), world.address.port(), metrics());
        assert!(pool.send(&world.peer, get("/"), SECOND).await.is_ok());
        *current.borrow_mut() = Authority::new().credentials("web");
        assert!(pool.send(&world.peer, get("/"), SECOND).await.is_ok());
        pool.drain();
        let error = pool.send(&world.peer, get("/"), SECOND).await.unwrap_err();
        assert_eq!(error.reason, Reason::PeerIdentity);
    })
    .await;
}

#[tokio::test]
async fn failing_to_connect_says_how() {
    on_a_worker(async {
        let world = world().await;
        let send = async |pool: Rc<Pool>| {
            let error = pool.send(&world.peer, get("/"), SECOND / 10).await.unwrap_err();
            assert_eq!(error.sent, Sent::No);
            error.reason
        };
        assert_eq!(send(Pool::with(|| None, world.address.port(), metrics())).await, Reason::NotReady);

        let credentials = world.authority.credentials("web");
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = closed.local_addr().unwrap().port();
        let silent = Pool::with(move || Some(credentials.clone()), port, metrics());
        assert_eq!(send(Rc::clone(&silent)).await, Reason::ConnectTimeout);
        drop(closed);
        assert_eq!(send(silent).await, Reason::ConnectFailed);
    })
    .await;
}

#[tokio::test]
async fn a_server_name_that_names_no_port_is_refused() {
    on_a_worker(async {
        let world = world().await;
        for name in ["http3.9080.heddle", "reviews.shop", "127.0.0.1"] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let credentials = world.authority.credentials("web");
            let address = listener.local_addr().unwrap();
            let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let server = world.authority.credentials("reviews");
            let (_caller, refused) = tokio::join!(
                shake_hands(dialled.unwrap(), &credentials, name),
                Box::pin(server::handshake(accepted.unwrap().0, &server, crate::meter::STALL))
            );
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, AcceptError::ServerName(_) | AcceptError::NoServerName),
                "{name}: {refused}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn streams_beyond_the_peers_limit_wait_and_then_go_whole() {
    on_a_worker(async {
        let go = Rc::new(Semaphore::new(0));
        let world = World::one_at_a_time(Rc::clone(&go)).await;
        let post = |text: &'static str| {
            let request = Request::post("/").header("host", "reviews:9080").body(Full::from(text)).unwrap();
            let (pool, peer) = (Rc::clone(&world.pool), world.peer.clone());
            async move {
                let answer = pool.send(&peer, request, 5 * SECOND).await.unwrap();
                answer.into_body().collect().await.unwrap().to_bytes()
            }
        };
        let texts = ["first", "second", "third"];
        let mut sent = Vec::new();
        for text in texts {
            sent.push(spawn_local(post(text)));
            // Until it waits for what its body may take.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        go.add_permits(texts.len());
        for (sent, text) in sent.into_iter().zip(texts) {
            assert_eq!(sent.await.unwrap(), text);
        }
    })
    .await;
}
