//! Filters of rules and of shares.

use heddle_api::v1;
use http::{
    HeaderName, HeaderValue, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::{ConvertError, Within, destination::Backends, each, port};
use crate::config::{Filter, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};

/// Headers that say where a message ends or belong to one connection: a filter that changed them would split or
/// mend messages. HTTP's edges own them.
const FRAMING: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

pub(super) fn filters(messages: &[v1::HttpFilter], backends: &Backends) -> Result<Vec<Filter>, ConvertError> {
    each("filters", messages, |message| filter(message, backends))
}

fn filter(message: &v1::HttpFilter, backends: &Backends) -> Result<Filter, ConvertError> {
    use v1::http_filter::Kind;
    match &message.kind {
        // Leaving a filter out would serve what it was to prevent.
        None => Err(ConvertError::new("kind", "is one that this version does not know")),
        Some(Kind::RequestHeaders(headers)) => {
            modifier(headers, true).map(Filter::RequestHeaders).within("request_headers")
        }
        Some(Kind::ResponseHeaders(headers)) => {
            modifier(headers, false).map(Filter::ResponseHeaders).within("response_headers")
        }
        Some(Kind::Redirect(message)) => redirect(message).map(Filter::Redirect).within("redirect"),
        Some(Kind::Rewrite(message)) => rewrite(message).map(Filter::Rewrite).within("rewrite"),
        Some(Kind::Mirror(message)) => mirror(message, backends).map(Filter::Mirror).within("mirror"),
    }
}

fn modifier(message: &v1::HeaderModifier, may_set_host: bool) -> Result<HeaderModifier, ConvertError> {
    let pair = |header: &v1::Header, may_be_host: bool| {
        let name = name(&header.name, may_be_host).within("name")?;
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| ConvertError::new("value", format!("{:?} is not a header's value", header.value)))?;
        if name == header::HOST && Authority::try_from(value.as_bytes()).is_err() {
            return Err(ConvertError::new("value", format!("{:?} is not a host", header.value)));
        }
        Ok((name, value))
    };
    Ok(HeaderModifier {
        set: each("set", &message.set, |header| pair(header, may_set_host))?,
        // A second Host, or none, would be a bad request (RFC 9112, 3.2).
        add: each("add", &message.add, |header| pair(header, false))?,
        remove: each("remove", &message.remove, |text| name(text, false))?,
    })
}

fn name(text: &str, may_be_host: bool) -> Result<HeaderName, ConvertError> {
    let name = text
        .parse::<HeaderName>()
        .map_err(|_| ConvertError::new("", format!("{text:?} is not a header's name")))?;
    if FRAMING.contains(&name) || name == header::HOST && !may_be_host {
        return Err(ConvertError::new("", format!("{name} cannot be changed by a filter")));
    }
    Ok(name)
}

fn redirect(message: &v1::Redirect) -> Result<Redirect, ConvertError> {
    let scheme = match message.scheme.as_str() {
        "" => None,
        "http" | "https" => Some(message.scheme.clone()),
        other => return Err(ConvertError::new("scheme", format!("{other:?} is neither http nor https"))),
    };
    let hostname = match message.hostname.as_str() {
        "" => None,
        text => Some(hostname(text)?.as_str().to_owned()),
    };
    let status = match message.status {
        // The Gateway API's default.
        0 => StatusCode::FOUND,
        301 => StatusCode::MOVED_PERMANENTLY,
        302 => StatusCode::FOUND,
        303 => StatusCode::SEE_OTHER,
        307 => StatusCode::TEMPORARY_REDIRECT,
        308 => StatusCode::PERMANENT_REDIRECT,
        other => {
            return Err(ConvertError::new("status", format!("{other} is not 301, 302, 303, 307 or 308")));
        }
    };
    let port = match message.port {
        0 => None,
        number => Some(port("port", number)?),
    };
    Ok(Redirect { scheme, hostname, port, path: path(message.path.as_ref())?, status })
}

fn rewrite(message: &v1::UrlRewrite) -> Result<Rewrite, ConvertError> {
    let hostname = match message.hostname.as_str() {
        "" => None,
        text => HeaderValue::from_str(hostname(text)?.as_str()).ok(),
    };
    Ok(Rewrite { hostname, path: path(message.path.as_ref())? })
}

/// A host, with a port at most.
fn hostname(text: &str) -> Result<Authority, ConvertError> {
    Authority::try_from(text)
        .ok()
        .filter(|authority| !authority.host().is_empty() && !text.contains('@'))
        .ok_or_else(|| ConvertError::new("hostname", format!("{text:?} is not a host")))
}

fn path(message: Option<&v1::PathModifier>) -> Result<Option<PathModifier>, ConvertError> {
    use v1::path_modifier::Kind;
    let Some(message) = message else { return Ok(None) };
    let (field, text) = match &message.kind {
        None => return Err(ConvertError::new("path", "is of a kind that this version does not know")),
        Some(Kind::Full(text)) => ("path.full", text),
        Some(Kind::Prefix(text)) => ("path.prefix", text),
    };
    let text = if text.starts_with('/') { text.clone() } else { format!("/{text}") };
    if text.contains(['?', '#']) || PathAndQuery::try_from(text.as_str()).is_err() {
        return Err(ConvertError::new(field, format!("{text:?} is not a path")));
    }
    Ok(Some(match message.kind {
        Some(Kind::Prefix(_)) => PathModifier::Prefix(text.strip_suffix('/').unwrap_or(&text).to_owned()),
        _ => PathModifier::Full(text),
    }))
}

fn mirror(message: &v1::Mirror, backends: &Backends) -> Result<Mirror, ConvertError> {
    let (numerator, denominator) = match (message.numerator, message.denominator) {
        (_, 0) => (1, 1),
        (numerator, denominator) if numerator <= denominator => (numerator, denominator),
        (numerator, denominator) => {
            let problem = format!("{numerator} of {denominator} is more than all");
            return Err(ConvertError::new("numerator", problem));
        }
    };
    Ok(Mirror { backend: backends.get(&message.backend).cloned(), numerator, denominator })
}
