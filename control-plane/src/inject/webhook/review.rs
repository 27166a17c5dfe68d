//! One question of the API server's, answered. Pure, but for what namespaces are labelled.

use std::collections::BTreeMap;

use http::StatusCode;
use kube::core::{
    DynamicObject,
    admission::{
        AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND, Operation,
    },
};
use serde_json::Value;

use crate::inject::{Asked, Outcome, Settings, inject};

/// The label by which a namespace's Pod Security Standard is enforced.
pub const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// What is known of namespaces.
pub trait Namespaces: Send + Sync {
    /// The labels of one; none: it is not known (yet), and nothing depends on it but a warning.
    fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>>;
}

/// An answer, and the HTTP status that it goes with.
pub type Answer = (StatusCode, AdmissionReview<DynamicObject>);

/// Answers `body`. A pod that asks for a sidecar and cannot have it is denied with the reason; what is no new pod is let
/// through.
#[must_use]
pub fn review(body: &[u8], asked: Asked, settings: &Settings, namespaces: &dyn Namespaces) -> Answer {
    let review: AdmissionReview<DynamicObject> = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return nonsense(StatusCode::BAD_REQUEST, &format!("no AdmissionReview: {error}")),
    };
    if review.types.kind != META_KIND || review.types.api_version != META_API_VERSION_V1 {
        let (kind, version) = (&review.types.kind, &review.types.api_version);
        let text =
            format!("a {kind} of {version}, and {META_KIND} of {META_API_VERSION_V1} is what is understood");
        return nonsense(StatusCode::BAD_REQUEST, &text);
    }
    let Ok(request): Result<AdmissionRequest<DynamicObject>, _> = review.try_into() else {
        return nonsense(StatusCode::BAD_REQUEST, "an AdmissionReview without a request");
    };
    (StatusCode::OK, decide(&request, asked, settings, namespaces).into_review())
}

/// The answer to what is no question.
#[must_use]
pub fn nonsense(status: StatusCode, reason: &str) -> Answer {
    tracing::warn!(reason, "the injector was sent something that is no admission request");
    (status, AdmissionResponse::invalid(format!("heddle's injector: {reason}")).into_review())
}

fn decide(
    request: &AdmissionRequest<DynamicObject>,
    asked: Asked,
    settings: &Settings,
    namespaces: &dyn Namespaces,
) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let resource = &request.resource;
    let is_new_pod = request.operation == Operation::Create
        && (resource.group.as_str(), resource.resource.as_str()) == ("", "pods")
        && request.sub_resource.is_none();
    if !is_new_pod {
        return response;
    }
    let namespace = request.namespace.as_deref().unwrap_or("default");
    let deny = |reason: &dyn std::fmt::Display| {
        let name = pod_name(request);
        tracing::info!(namespace, name, %reason, "a pod was refused");
        response.clone().deny(format!(
            "heddle cannot inject its sidecar into pod {name} of namespace {namespace}: {reason}"
        ))
    };
    let Some(object) = &request.object else { return deny(&"the request holds no object") };
    let pod: Value = match serde_json::to_value(object) {
        Ok(pod) => pod,
        Err(error) => return deny(&error),
    };
    match inject(&pod, asked, settings) {
        Ok(Outcome::Unchanged) => response,
        Ok(Outcome::Patched { patch, mut warnings }) => {
            warnings.extend(pod_security(namespace, namespaces));
            let mut patched = match response.clone().with_patch(patch) {
                Ok(patched) => patched,
                Err(error) => return deny(&error),
            };
            if !warnings.is_empty() {
                // Longer ones the API server cuts itself (it takes 4 KiB in all).
                patched.warnings = Some(warnings.into_iter().map(|text| format!("heddle: {text}")).collect());
            }
            patched
        }
        Err(refusal) => deny(&refusal),
    }
}

fn pod_name(request: &AdmissionRequest<DynamicObject>) -> String {
    let metadata = request.object.as_ref().map(|object| &object.metadata);
    let given = metadata.and_then(|metadata| metadata.name.clone());
    let generated = metadata.and_then(|metadata| metadata.generate_name.clone()).map(|prefix| prefix + "…");
    given.or(generated).unwrap_or_else(|| "without a name".to_owned())
}

/// A namespace may enforce what an init container with `CAP_NET_ADMIN` breaks. It may also exempt its users from it, so
/// this is said and not refused; Kubernetes' own refusal comes after it and names the container.
fn pod_security(namespace: &str, namespaces: &dyn Namespaces) -> Option<String> {
    let labels = namespaces.labels(namespace)?;
    let level = labels.get(ENFORCE).filter(|level| *level != "privileged")?;
    Some(format!(
        "namespace {namespace} enforces the Pod Security Standard {level:?}, which forbids the capability NET_ADMIN that the \
         init container heddle-redirect needs (the sidecar itself keeps to \"restricted\"): label the namespace \
         {ENFORCE}=privileged, or exempt it"
    ))
}
