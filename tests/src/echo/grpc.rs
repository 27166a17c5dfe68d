//! The service `proto.EchoTestService`: its messages, one call of it, and the answer.

use std::{
    future::{Ready, ready},
    net::IpAddr,
    sync::Arc,
};

use http::{HeaderMap, Request, Response, uri::PathAndQuery};
use hyper::body::Incoming;
use tonic::{Status, body::Body, server::UnaryService, transport::Channel};
use tonic_prost::ProstCodec;

use super::{Lines, server::About, text};

/// The one method that conformance calls.
pub(super) const ECHO: &str = "/proto.EchoTestService/Echo";

/// What is to be repeated.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EchoRequest {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// The lines that say what was seen.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EchoResponse {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// Calls it.
pub(super) async fn call(
    channel: Channel,
    request: tonic::Request<EchoRequest>,
) -> Result<tonic::Response<EchoResponse>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<EchoRequest, EchoResponse>::default();
    client.unary(request, PathAndQuery::from_static(ECHO), codec).await
}

/// Answers it.
pub(super) async fn answer(request: Request<Incoming>, about: Arc<About>, from: IpAddr) -> Response<Body> {
    if request.uri().path() != ECHO {
        return Status::unimplemented(format!("{} is not served here, {ECHO} is", request.uri().path()))
            .into_http();
    }
    let authority = request.uri().authority().map_or_else(String::new, ToString::to_string);
    let echo = Echo { about, from, authority, headers: request.headers().clone() };
    tonic::server::Grpc::new(ProstCodec::<EchoResponse, EchoRequest>::default()).unary(echo, request).await
}

/// One call.
struct Echo {
    about: Arc<About>,
    from: IpAddr,
    authority: String,
    headers: HeaderMap,
}

impl UnaryService<EchoRequest> for Echo {
    type Response = EchoResponse;
    type Future = Ready<Result<tonic::Response<EchoResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<EchoRequest>) -> Self::Future {
        let mut lines = Lines::default();
        lines.say("Host", &self.authority);
        // Metadata keeps its small letters, and what is binary is no text.
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers.iter().filter(|(name, _)| !name.as_str().ends_with("-bin")) {
            headers.append(name.clone(), value.clone());
        }
        lines.say_headers("RequestHeader", &headers, |name| name.as_str().to_owned());
        // That the call was answered at all: the suite counts in the numbers of HTTP.
        lines.say("StatusCode", 200);
        self.about.say(&mut lines);
        lines.say("IP", self.from);
        lines.say("Proto", "GRPC");
        lines.say("Echo", &request.get_ref().message);
        lines.say("Hostname", &self.about.hostname);
        ready(Ok(tonic::Response::new(EchoResponse { message: lines.0 })))
    }
}

/// The metadata of a response that is text.
pub(super) fn metadata(response: &tonic::Response<EchoResponse>) -> Vec<(String, String)> {
    let headers = response.metadata().clone().into_headers();
    let texts = headers.iter().filter(|(name, _)| !name.as_str().ends_with("-bin"));
    texts.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}
