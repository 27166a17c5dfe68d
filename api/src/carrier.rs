//! What a mesh connection says about itself in its TLS server name, so that no header has to repeat it.

use std::{fmt, str::FromStr};

/// ALPN of the carrier: HTTP/2 as sidecars speak it among themselves.
pub const ALPN: &[u8] = b"heddle/1";

/// The domain of mesh server names.
const SUFFIX: &str = "heddle";

/// What the application at the far side is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// HTTP/1.1 requests, carried as HTTP/2 streams and turned back.
    Http1,
    /// HTTP/2 requests.
    Http2,
    /// Bytes: each stream is a CONNECT.
    Tcp,
}

impl Form {
    /// The label in a server name and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// The server name of a mesh connection, `<form>.<port>.heddle`: which port of the pod, and what it is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerName {
    /// What the application gets.
    pub form: Form,
    /// The application's port on the pod.
    pub port: u16,
}

/// A server name that is not `<form>.<port>.heddle`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadServerName(String);

impl fmt::Display for BadServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS server name {:?} is not <http1|http2|tcp>.<port>.heddle", self.0)
    }
}

impl std::error::Error for BadServerName {}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{SUFFIX}", self.form.as_str(), self.port)
    }
}

impl FromStr for ServerName {
    type Err = BadServerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadServerName(text.to_owned());
        let mut labels = text.split('.');
        let (Some(form), Some(port), Some(SUFFIX), None) =
            (labels.next(), labels.next(), labels.next(), labels.next())
        else {
            return Err(bad());
        };
        let form = match form {
            "http1" => Form::Http1,
            "http2" => Form::Http2,
            "tcp" => Form::Tcp,
            _ => return Err(bad()),
        };
        match port.parse() {
            // One spelling for one port: no sign, no leading zero.
            Ok(number) if number != 0 && port == format!("{number}") => Ok(Self { form, port: number }),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_reads_back_as_it_was_written() {
        for form in [Form::Http1, Form::Http2, Form::Tcp] {
            let name = ServerName { form, port: 9080 };
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn whatever_else_is_refused() {
        let bad = [
            "",
            "http1",
            "http1.9080",
            "http3.80.heddle",
            "http1.0.heddle",
            "http1.080.heddle",
            "http1.+80.heddle",
            "http1.65536.heddle",
            "http1.80.heddle.",
            "a.http1.80.heddle",
            "http1.80.example",
        ];
        for text in bad {
            assert!(text.parse::<ServerName>().is_err(), "{text}");
        }
    }
}
