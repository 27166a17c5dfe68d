//! The application of the Gateway API's mesh conformance: a [`server`] that says what it saw of a request, and a
//! [`client`] that prints what came back.
//!
//! Both speak in the lines of Istio's echo application, `[0] StatusCode=200` and `[0 body] Hostname=echo-v1`, since that
//! is what the Gateway API's own suite reads (`conformance/utils/echo/parse.go`); [`report`] reads them for ours. The
//! gRPC service is Istio's `proto.EchoTestService`, so either side may be the other's.

pub mod client;
mod grpc;
pub mod report;
pub mod server;

use std::fmt::{Display, Write as _};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The text of an answer: a line for each thing to say.
#[derive(Debug, Default)]
struct Lines(String);

impl Lines {
    fn say(&mut self, field: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _written = writeln!(self.0, "{field}={value}");
    }

    /// A line for each value of each header, in the order of their names, spelt by `spell`.
    fn say_headers(&mut self, field: &str, headers: &HeaderMap, spell: impl Fn(&HeaderName) -> String) {
        let mut all: Vec<_> = headers.iter().map(|(name, value)| (spell(name), text(value))).collect();
        // A stable sort: values of one name stay in their order.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, value) in all {
            self.say(field, format_args!("{name}:{value}"));
        }
    }
}

/// A header's name as Go's programs write it: `X-Header-Set`.
fn capitalised(name: &HeaderName) -> String {
    let part = |part: &str| match part.split_at_checked(1) {
        Some((first, rest)) => first.to_ascii_uppercase() + rest,
        None => String::new(),
    };
    name.as_str().split('-').map(part).collect::<Vec<_>>().join("-")
}

/// A header's value, what is no text of it replaced.
fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_by_name_and_their_values_in_their_order() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-b", "2"), ("a", "1"), ("x-b", "1")] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut lines = Lines::default();
        lines.say_headers("RequestHeader", &headers, capitalised);
        assert_eq!(lines.0, "RequestHeader=A:1\nRequestHeader=X-B:2\nRequestHeader=X-B:1\n");
    }

    /// Each kind of port, asked by the client of its kind.
    #[tokio::test]
    async fn the_client_prints_what_the_server_saw_on_every_port() {
        let settings = server::Settings {
            ip: [127, 0, 0, 1].into(),
            http: vec![0],
            tls: Vec::new(),
            tcp: vec![0],
            grpc: vec![0],
            certificate: None,
            version: "v1".to_owned(),
            cluster: "c".to_owned(),
            hostname: "echo-v1-0".to_owned(),
        };
        let plain = server::Server::bind(&settings).await.unwrap();
        // Port 0 is every port's, so TLS has a server of its own.
        let secure = server::Settings { tls: vec![0], tcp: Vec::new(), grpc: Vec::new(), ..settings };
        let secure = server::Server::bind(&secure).await.unwrap();
        let ([http, tcp, grpc], https) = (plain.addresses().try_into().unwrap(), secure.addresses()[0]);
        let _servers = [tokio::spawn(plain.run()), tokio::spawn(secure.run())];
        for (url, http2, proto, port) in [
            (format!("http://{http}/a?b=c"), false, "HTTP/1.1", http.port()),
            (format!("http://{http}/a?b=c"), true, "HTTP/2.0", http.port()),
            (format!("https://{https}/a?b=c"), false, "HTTP/1.1", https.port()),
            (format!("https://{https}/a?b=c"), true, "HTTP/2.0", https.port()),
            (format!("grpc://{grpc}"), false, "GRPC", grpc.port()),
            (format!("tcp://{tcp}"), false, "TCP", tcp.port()),
        ] {
            let question = client::Question {
                url: url.parse().unwrap(),
                method: http::Method::POST,
                headers: vec![
                    client::parse_header("x-a: 1").unwrap(),
                    client::parse_header("X-A:2").unwrap(),
                    client::parse_header("Host:elsewhere").unwrap(),
                ],
                count: 2,
                timeout: std::time::Duration::from_secs(10),
                http2,
                message: "hello".to_owned(),
            };
            let output = client::ask(&question).await.unwrap();
            let reports = report::parse(&output).unwrap();
            assert_eq!(reports.len(), 2, "{output}");
            for report in reports {
                let field = |name| report.field(name);
                assert_eq!((report.status, field("Hostname"), field("Proto")), (200, "echo-v1-0", proto));
                assert_eq!((field("ServiceVersion"), field("ServicePort")), ("v1", &*port.to_string()));
                if proto != "TCP" {
                    assert_eq!(
                        (&*report.request_headers["x-a"], field("Host")),
                        ("1,2", "elsewhere"),
                        "{output}"
                    );
                }
                if proto.starts_with("HTTP") {
                    assert_eq!((field("Method"), field("URL")), ("POST", "/a?b=c"));
                    assert_eq!(report.response_headers["content-type"], "text/plain");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_request_without_an_answer_is_an_error_and_so_is_a_url_that_leads_nowhere() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (url, says) in [
            (format!("http://{}/", silent.local_addr().unwrap()), "no answer"),
            ("gopher://a:1/".to_owned(), "none of http"),
            ("grpc://a".to_owned(), "no port"),
        ] {
            let question = client::Question {
                url: url.parse().unwrap(),
                method: http::Method::GET,
                headers: Vec::new(),
                count: 1,
                timeout: std::time::Duration::from_millis(50),
                http2: false,
                message: String::new(),
            };
            let error = client::ask(&question).await.unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }
}
