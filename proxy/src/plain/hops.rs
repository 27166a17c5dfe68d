//! `Max-Forwards`: how many more times an OPTIONS or a TRACE may be passed on (RFC 9110, 7.6.2). No sockets here.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header::MAX_FORWARDS};

use super::edge::Malformed;

/// Takes one hop off a request that is to be passed on, if it counts them. Where none is left it must not be passed on: gives
/// the answer to an OPTIONS then. A field that is no number is left as it is.
///
/// # Errors
/// For a TRACE with no hop left. Its answer would be the request itself, with whatever others have added to it on the way.
pub fn last(method: &Method, headers: &mut HeaderMap) -> Result<Option<Response<()>>, Malformed> {
    if *method != Method::OPTIONS && *method != Method::TRACE {
        return Ok(None);
    }
    let Some(left) = hops_left(headers) else { return Ok(None) };
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

/// The number of the one field; the largest that there is here for a larger one.
fn hops_left(headers: &HeaderMap) -> Option<u64> {
    let mut fields = headers.get_all(MAX_FORWARDS).iter();
    let digits = fields.next().filter(|_| fields.next().is_none())?.to_str().ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
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
    fn more_than_can_be_counted_is_made_what_can() {
        let (last, left) = passed(&Method::OPTIONS, "99999999999999999999");
        assert_eq!((last, left), (Ok(None), (u64::MAX - 1).to_string()));
    }

    #[test]
    fn two_fields_are_no_number() {
        let mut headers = HeaderMap::new();
        for value in ["1", "0"] {
            headers.append(MAX_FORWARDS, HeaderValue::from_static(value));
        }
        let before = headers.clone();
        assert!(last(&Method::OPTIONS, &mut headers).unwrap().is_none());
        assert_eq!(headers, before);
    }

    #[test]
    fn what_may_go_no_further_is_answered() {
        assert_eq!(passed(&Method::OPTIONS, "0").0, Ok(Some(StatusCode::NO_CONTENT)));
        assert_eq!(passed(&Method::TRACE, "0").0, Err(Malformed::Trace));
    }

    #[test]
    fn other_methods_and_other_values_are_left_alone() {
        assert_eq!(passed(&Method::GET, "0"), (Ok(None), "0".to_owned()));
        for field in ["", "-1", "+1", "1, 0", "all"] {
            assert_eq!(passed(&Method::OPTIONS, field), (Ok(None), field.to_owned()));
        }
        assert_eq!(last(&Method::OPTIONS, &mut HeaderMap::new()).unwrap().map(|_| ()), None);
    }
}
