//! Why the sidecar itself refused: one word, the same in the `heddle-reason` header, the log and the metric.

use http::StatusCode;

/// The header that carries the word, only on answers that the sidecar made.
pub const HEADER: http::HeaderName = http::HeaderName::from_static("heddle-reason");

/// Why the sidecar refused or gave up. The variant's name is the word (contract: users see it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request breaks HTTP's rules, or asks the sidecar itself for what it does not do (TRACE).
    BadRequest,
    /// Names and values of the headers exceed the limit.
    HeadersTooLarge,
    /// No authority and no original destination: nowhere to go.
    NoDestination,
    /// The control plane gave no answer in 5 s.
    DiscoveryUnavailable,
    /// Routes are attached, and none matches.
    NoRoute,
    /// The route names a backend that does not exist.
    NoBackend,
    /// The backend has no endpoints.
    NoEndpoints,
    /// The endpoint has no sidecar though its namespace is Strict.
    PeerNotMeshed,
    /// The peer showed no certificate, or one of another identity or authority.
    PeerIdentity,
    /// The connection could not be made.
    ConnectFailed,
    /// The connection was not made in time.
    ConnectTimeout,
    /// No response in time.
    RequestTimeout,
    /// The client sent next to nothing of the request's body while it was waited for.
    RequestStalled,
    /// The peer reset the stream or closed before a response.
    UpstreamReset,
    /// The application answered something that is not HTTP.
    BadResponse,
    /// An access policy forbids it.
    AccessDenied,
    /// Plaintext, and the port is Strict.
    PlaintextRefused,
    /// The sidecar's own port was asked for.
    OwnPort,
    /// The source is not this pod.
    ForeignSource,
    /// The original address is not this pod's.
    ForeignAddress,
    /// The connection's server name does not allow this.
    NotOnThisConnection,
    /// The name does not resolve.
    UnknownHost,
    /// The sidecar is not ready: no certificate or no Inbound yet.
    NotReady,
}

impl Reason {
    /// All of them, for metrics made beforehand.
    pub const ALL: [Self; 23] = [
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::NoDestination,
        Self::DiscoveryUnavailable,
        Self::NoRoute,
        Self::NoBackend,
        Self::NoEndpoints,
        Self::PeerNotMeshed,
        Self::PeerIdentity,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::RequestTimeout,
        Self::RequestStalled,
        Self::UpstreamReset,
        Self::BadResponse,
        Self::AccessDenied,
        Self::PlaintextRefused,
        Self::OwnPort,
        Self::ForeignSource,
        Self::ForeignAddress,
        Self::NotOnThisConnection,
        Self::UnknownHost,
        Self::NotReady,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::HeadersTooLarge => "HeadersTooLarge",
            Self::NoDestination => "NoDestination",
            Self::DiscoveryUnavailable => "DiscoveryUnavailable",
            Self::NoRoute => "NoRoute",
            Self::NoBackend => "NoBackend",
            Self::NoEndpoints => "NoEndpoints",
            Self::PeerNotMeshed => "PeerNotMeshed",
            Self::PeerIdentity => "PeerIdentity",
            Self::ConnectFailed => "ConnectFailed",
            Self::ConnectTimeout => "ConnectTimeout",
            Self::RequestTimeout => "RequestTimeout",
            Self::RequestStalled => "RequestStalled",
            Self::UpstreamReset => "UpstreamReset",
            Self::BadResponse => "BadResponse",
            Self::AccessDenied => "AccessDenied",
            Self::PlaintextRefused => "PlaintextRefused",
            Self::OwnPort => "OwnPort",
            Self::ForeignSource => "ForeignSource",
            Self::ForeignAddress => "ForeignAddress",
            Self::NotOnThisConnection => "NotOnThisConnection",
            Self::UnknownHost => "UnknownHost",
            Self::NotReady => "NotReady",
        }
    }

    /// The status of an HTTP answer that carries it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::NoDestination => StatusCode::BAD_REQUEST,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::AccessDenied
            | Self::PlaintextRefused
            | Self::OwnPort
            | Self::ForeignSource
            | Self::ForeignAddress => StatusCode::FORBIDDEN,
            Self::NotOnThisConnection => StatusCode::MISDIRECTED_REQUEST,
            Self::RequestTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::RequestStalled => StatusCode::REQUEST_TIMEOUT,
            Self::BadResponse | Self::UnknownHost => StatusCode::BAD_GATEWAY,
            Self::DiscoveryUnavailable
            | Self::NoEndpoints
            | Self::PeerNotMeshed
            | Self::PeerIdentity
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamReset
            | Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
