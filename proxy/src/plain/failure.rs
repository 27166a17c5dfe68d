//! What hyper's errors mean for the caller: the reason, and whether the application may have seen the request.

use std::{error::Error, net::SocketAddr};

use crate::{
    carrier::{SendError, Sent},
    reason::Reason,
};

/// The error of a request that hyper had taken.
pub(super) fn of_exchange(address: SocketAddr, error: &hyper::Error) -> SendError {
    let (reason, sent) = classify(error);
    SendError { reason, sent, source: format!("{address}: {}", chain(error)) }
}

/// The error of a request that was sent once more after it had `before`: that the second was
/// not received says nothing of the first.
pub(super) fn after(mut before: SendError, error: SendError) -> SendError {
    if error.sent == Sent::Maybe {
        return error;
    }
    before.source = format!("{}; once more: {}", before.source, error.source);
    before
}

/// The error of an answer that Heddle does not pass on.
pub(super) fn of_answer(address: SocketAddr, error: super::edge::Malformed) -> SendError {
    SendError {
        reason: Reason::BadResponse,
        sent: Sent::Maybe,
        source: format!("{address} answered: {error}"),
    }
}

/// Whether a connection ended before an answer, for no fault that either side could name.
pub(super) fn is_reset(error: &hyper::Error) -> bool {
    classify(error).0 == Reason::UpstreamReset
}

fn classify(error: &hyper::Error) -> (Reason, Sent) {
    if let Some(h2) = find::<h2::Error>(error) {
        return classify_http2(h2);
    }
    if error.is_parse() {
        (Reason::BadResponse, Sent::Maybe)
    } else if error.is_user() {
        // The caller's body broke off.
        (Reason::BadRequest, Sent::Maybe)
    } else {
        (Reason::UpstreamReset, Sent::Maybe)
    }
}

fn classify_http2(error: &h2::Error) -> (Reason, Sent) {
    let reason = error.reason();
    // RFC 9113, 8.7: a refused stream was not processed, nor was one above the last that GOAWAY names; only such
    // a stream ends by a remote GOAWAY without error.
    let refused = error.is_remote()
        && (reason == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)));
    if refused {
        (Reason::UpstreamReset, Sent::No)
    } else if error.is_library() {
        // It is we who found that the application breaks HTTP/2.
        (Reason::BadResponse, Sent::Maybe)
    } else {
        (Reason::UpstreamReset, Sent::Maybe)
    }
}

/// An error among the sources of another.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The error with its sources in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
