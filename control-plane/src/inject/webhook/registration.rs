//! What the API server is told of the webhook, and why so.
//!
//! - `failurePolicy: Fail`: a pod that came up without its sidecar would speak plaintext where policy counts on mTLS, and
//!   in a Strict mesh nobody would answer it. So while no replica answers, pods of labelled namespaces wait to be made.
//!   Running pods are not concerned.
//! - Nothing else can be held up: namespaces opt in by label, and Kubernetes' own and Heddle's are left out whatever
//!   their labels are, so that the control plane can always come back. A pod annotated `disabled` is not even sent.
//! - `timeoutSeconds: 5`: an answer takes milliseconds; what takes longer is a replica that is gone, and the API
//!   server's client then tries the next one. The default, 10, would hold up a rollout twice as long.
//! - `reinvocationPolicy: IfNeeded`: another webhook may add a container with probes after us.
//! - `sideEffects: None`: the answer follows from the question, so dry runs may ask as well.
//! - `matchConditions` need Kubernetes 1.28.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{
        MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
        WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
};

use super::{NAMESPACE_PATH, POD_PATH};
use crate::inject::INJECT;

/// The configuration's name, by which its `caBundle` is found.
pub const NAME: &str = "heddle-injector";
/// How long the API server waits.
pub const TIMEOUT_SECONDS: u8 = 5;
/// Namespaces that are never concerned, beside Heddle's own.
pub const LEFT_OUT: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The label that Kubernetes itself gives each namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Between two looks at a bundle that is right: somebody may have written over it, as an upgrade by Helm does.
const CALM: Duration = Duration::from_secs(60);
/// After the first failure; doubled with each up to [`CALM`].
const RETRY: Duration = Duration::from_secs(1);

/// Where the webhook is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Heddle's namespace.
    pub namespace: String,
    /// The Service in it.
    pub service: String,
    /// Its port.
    pub port: u16,
}

/// The whole configuration. `roots` are PEM.
#[must_use]
pub fn configuration(place: &Place, roots: &str) -> MutatingWebhookConfiguration {
    let labelled = requirement(INJECT, "In", &["enabled"]);
    let unlabelled = requirement(INJECT, "NotIn", &["enabled"]);
    let annotated = |value: &str| {
        let all = "object.metadata.annotations";
        format!("has({all}) && '{INJECT}' in {all} && {all}['{INJECT}'] == '{value}'")
    };
    let [disabled, enabled] = ["disabled", "enabled"].map(annotated);
    let webhooks = vec![
        webhook("namespace", NAMESPACE_PATH, labelled, &format!("!({disabled})"), place, roots),
        webhook("pod", POD_PATH, unlabelled, &enabled, place, roots),
    ];
    MutatingWebhookConfiguration {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        webhooks: Some(webhooks),
    }
}

fn webhook(
    asked_by: &str,
    path: &str,
    selects: LabelSelectorRequirement,
    condition: &str,
    place: &Place,
    roots: &str,
) -> MutatingWebhook {
    let left_out: Vec<&str> = LEFT_OUT.into_iter().chain([place.namespace.as_str()]).collect();
    let service = ServiceReference {
        name: place.service.clone(),
        namespace: place.namespace.clone(),
        path: Some(path.to_owned()),
        port: Some(place.port.into()),
    };
    let strings = |all: &[&str]| Some(all.iter().map(|&text| text.to_owned()).collect());
    MutatingWebhook {
        name: format!("{asked_by}.inject.heddle.dev"),
        admission_review_versions: vec!["v1".to_owned()],
        client_config: WebhookClientConfig {
            ca_bundle: Some(ByteString(roots.as_bytes().to_vec())),
            service: Some(service),
            url: None,
        },
        failure_policy: Some("Fail".to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        match_conditions: Some(vec![MatchCondition {
            name: "asked-by-annotation".to_owned(),
            expression: condition.to_owned(),
        }]),
        namespace_selector: Some(LabelSelector {
            match_expressions: Some(vec![selects, requirement(NAMESPACE_NAME, "NotIn", &left_out)]),
            match_labels: None,
        }),
        object_selector: None,
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: strings(&[""]),
            api_versions: strings(&["v1"]),
            operations: strings(&["CREATE"]),
            resources: strings(&["pods"]),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS.into()),
    }
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.iter().map(|&value| value.to_owned()).collect()),
    }
}

/// The API server's side of the bundle.
pub trait CaBundle: Send + Sync + 'static {
    /// Makes `roots` (PEM) the `caBundle` of every webhook of the configuration [`NAME`], where it is not yet.
    fn publish(&self, roots: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Keeps the bundle right for ever. `roots` is asked anew each time, since roots rotate.
pub async fn keep_published(bundle: Arc<impl CaBundle>, roots: impl Fn() -> String + Send) {
    let mut pause = RETRY;
    loop {
        match bundle.publish(&roots()).await {
            Ok(()) => pause = CALM,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the webhook's caBundle could not be written: trying again"
                );
                pause = if pause >= CALM { RETRY } else { (pause * 2).min(CALM) };
            }
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Fails so often, then takes everything.
    struct Fake {
        failures: Mutex<u32>,
        taken: Mutex<Vec<String>>,
    }

    impl CaBundle for Fake {
        async fn publish(&self, roots: &str) -> anyhow::Result<()> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                anyhow::bail!("the API server is away");
            }
            self.taken.lock().unwrap().push(roots.to_owned());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_bundle_is_written_when_the_api_server_is_back_and_again_when_the_roots_change() {
        let fake = Arc::new(Fake { failures: Mutex::new(3), taken: Mutex::default() });
        let roots = Arc::new(Mutex::new("old".to_owned()));
        let now = Arc::clone(&roots);
        let keeping = tokio::spawn(keep_published(Arc::clone(&fake), move || now.lock().unwrap().clone()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(*fake.taken.lock().unwrap(), ["old"]);
        "new".clone_into(&mut roots.lock().unwrap());
        tokio::time::sleep(CALM).await;
        assert_eq!(*fake.taken.lock().unwrap(), ["old", "new"]);
        keeping.abort();
    }

    #[test]
    fn kubernetes_own_namespaces_and_heddles_are_never_concerned() {
        let place = Place { namespace: "mesh".to_owned(), service: "heddle-injector".to_owned(), port: 443 };
        for webhook in configuration(&place, "PEM").webhooks.unwrap() {
            let selector = webhook.namespace_selector.unwrap().match_expressions.unwrap();
            let left_out = selector.iter().find(|one| one.key == NAMESPACE_NAME).unwrap();
            assert_eq!(left_out.operator, "NotIn");
            assert_eq!(
                *left_out.values.as_ref().unwrap(),
                ["kube-system", "kube-public", "kube-node-lease", "mesh"]
            );
        }
    }
}
