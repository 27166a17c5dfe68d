//! What the sidecar itself answers to the pod's application.

use http::Response;

use super::body::ResponseBody;
use crate::{
    plain::refusal::{Form, refusal},
    reason::Reason,
};

/// Refuses a request, see [`refusal`].
pub fn refuse(reason: Reason, sentence: &str, form: Form) -> Response<ResponseBody> {
    refusal(reason, sentence, form)
        .map(|text| if text.is_empty() { ResponseBody::empty() } else { ResponseBody::full(text) })
}
