//! `Max-Forwards`: how many more times an OPTIONS or a TRACE may be passed on (RFC 9110, 7.6.2). No sockets here.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header::MAX_FORWARDS};

use super::edge::{Malformed, decimal};

/// Counts a request that may be passed on; the answer to an OPTIONS that may not. A field that is no number is left
/// alone.
///
/// # Errors
/// For a TRACE that may not be passed on: what a sidecar saw of a request is no business of its sender's.
pub fn last(method: &Method, headers: &mut HeaderMap) -> Result<Option<Response<()>>, Malformed> {
    if *method != Method::OPTIONS && *method != Method::TRACE {
        return Ok(None);
    }
    let Some(left) = headers.get(MAX_FORWARDS).and_then(|value| decimal(value.as_bytes())) else {
        return Ok(None);
    };
    let Some(left) = left.checked_sub(1) else {
        if *method == Method::TRACE {
            return Err(Malformed::Trace);
        }
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return Ok(Some(answer));
    };
    headers.insert(MAX_FORWARDS, HeaderValue::from(left));
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a request with this field, and of the field.
    fn passed(method: &Method, field: &'static str) -> (Result<Option<StatusCode>, Malformed>, String) {
        let mut headers = HeaderMap::from_iter([(MAX_FORWARDS, HeaderValue::from_static(field))]);
        let last = last(method, &mut headers).map(|answer| answer.map(|answer| answer.status()));
        (last, headers[MAX_FORWARDS].to_str().unwrap().to_owned())
    }

    #[test]
    fn each_hop_takes_one() {
        for method in [&Method::OPTIONS, &Method::TRACE] {
            assert_eq!(passed(method, "2"), (Ok(None), "1".to_owned()));
            assert_eq!(passed(method, "1"), (Ok(None), "0".to_owned()));
        }
    }

    #[test]
    fn what_may_go_no_further_is_answered() {
        assert_eq!(passed(&Method::OPTIONS, "0").0, Ok(Some(StatusCode::NO_CONTENT)));
        assert_eq!(passed(&Method::TRACE, "0").0, Err(Malformed::Trace));
    }

    #[test]
    fn other_methods_and_other_values_are_left_alone() {
        assert_eq!(passed(&Method::GET, "0"), (Ok(None), "0".to_owned()));
        for field in ["", "-1", "1, 0", "all", "99999999999999999999"] {
            assert_eq!(passed(&Method::OPTIONS, field), (Ok(None), field.to_owned()));
        }
        assert_eq!(last(&Method::OPTIONS, &mut HeaderMap::new()).unwrap().map(|_| ()), None);
    }
}
