//! All I/O of `heddle check`: an API server asked, or a directory read.

use std::path::Path;

use anyhow::Context as _;
use heddle_api::GROUP;
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::Deployment,
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
            SubjectAccessReviewSpec,
        },
        core::v1::{ConfigMap, Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    core::DynamicObject,
};
use serde::de::DeserializeOwned;

use super::{Facts, Finding, Lacking, Level, Report, judge, objects, pods};
use crate::{
    cluster::{
        rights::{RIGHTS, Scope},
        root,
    },
    compile::{Mesh, Options},
    inject::webhook::registration,
    object::{Change, Kind, Object},
    source,
};

const CONTROL_PLANE: &str = "heddle-control-plane";
/// What `helm install` makes besides what [`RIGHTS`] are about: group, plural, and whether in Heddle's namespace.
const MADE: [(&str, &str, bool); 10] = [
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("apps", "deployments", true),
    ("", "services", true),
    ("", "serviceaccounts", true),
    // Helm keeps its releases in them.
    ("", "secrets", true),
];

/// A cluster, judged.
///
/// # Errors
/// When the API server does not answer at all.
pub(super) async fn cluster(client: Client, system: &str) -> anyhow::Result<Report> {
    let mut facts = Facts { system: system.to_owned(), ..Facts::default() };
    let version = client.apiserver_version().await.context(
        "the API server does not answer: is the cluster up, and is it the one that KUBECONFIG, --kubeconfig and --context name?",
    )?;
    // `29+` on some clouds.
    let digits =
        |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
    facts.version = Some((digits(&version.major), digits(&version.minor), version.git_version));
    let all = Api::<CustomResourceDefinition>::all(client.clone()).list(&ListParams::default()).await;
    if let Some(all) = facts.seen("definitions", all) {
        let concerned = |crd: &CustomResourceDefinition| {
            crd.spec.group == GROUP || crd.spec.group == "gateway.networking.k8s.io"
        };
        facts.definitions = all.items.into_iter().filter(concerned).collect();
    }
    let found = Api::<Deployment>::namespaced(client.clone(), system).get_opt(CONTROL_PLANE).await;
    facts.deployment = facts.seen("control-plane", found).flatten();
    let found = Api::<MutatingWebhookConfiguration>::all(client.clone()).get_opt(registration::NAME).await;
    facts.webhook = facts.seen("webhook", found).flatten();
    let found = Api::<ConfigMap>::namespaced(client.clone(), system).get_opt(root::BUNDLE).await;
    let bundle = facts.seen("webhook", found).flatten();
    facts.roots = bundle.and_then(|bundle| bundle.data?.remove(crate::inject::settings::CA_KEY));
    objects_of(&client, &mut facts).await;
    rights_of(&client, &mut facts).await;
    Ok(judge(&facts))
}

impl Facts {
    /// What came back, or a word of why it did not.
    fn seen<T>(&mut self, check: &'static str, result: kube::Result<T>) -> Option<T> {
        match result {
            Ok(found) => Some(found),
            Err(error) => {
                let why = match error {
                    kube::Error::Api(status) => status.message,
                    error => error.to_string(),
                };
                self.unseen.entry(check).or_default().push(why);
                None
            }
        }
    }
}

fn typed<T: DeserializeOwned>(objects: &[DynamicObject]) -> Vec<T> {
    let read = |object: &DynamicObject| {
        let mut value = serde_json::to_value(object).ok()?;
        // Left out in a list; the types want them.
        let fields = value.as_object_mut()?;
        fields.remove("apiVersion");
        fields.remove("kind");
        serde_json::from_value(value).ok()
    };
    objects.iter().filter_map(read).collect()
}

/// Everything that the mesh is made of, and what the compiler says of it.
async fn objects_of(client: &Client, facts: &mut Facts) {
    let (mut changes, mut broken) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        let listed = source::kubernetes::list(client, kind).await;
        let Some(objects) = facts.seen("objects", listed).flatten() else { continue };
        match kind {
            Kind::Namespace => facts.namespaces = typed::<Namespace>(&objects),
            Kind::Pod => facts.pods = typed::<Pod>(&objects),
            Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TcpRoute
            | Kind::TrafficPolicy
            | Kind::AccessPolicy
            | Kind::MeshPolicy => {
                facts.attached.insert(kind, objects.clone());
            }
            Kind::Node | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy | Kind::ReferenceGrant => {
            }
        }
        for object in objects {
            match source::kubernetes::object(kind, object) {
                Ok(object) => changes.push(Change::Upsert(object)),
                Err(problem) => broken.push(problem),
            }
        }
    }
    let mut mesh = Mesh::new(Options::default());
    mesh.apply(changes);
    broken.extend(mesh.diagnostics());
    facts.diagnostics = broken;
}

/// Before an install: what the caller may not do and an install does. After it: what the control plane may not do and must.
async fn rights_of(client: &Client, facts: &mut Facts) {
    let system = facts.system.clone();
    let mut asked: Vec<(ResourceAttributes, Lacking)> = Vec::new();
    let mut ask = |group: &str, resource: &str, name: Option<&str>, verb: &str, namespace: Option<&str>| {
        let (plural, subresource) = resource.split_once('/').unzip();
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(plural.unwrap_or(resource).to_owned()),
            subresource: subresource.map(str::to_owned),
            name: name.map(str::to_owned),
            verb: Some(verb.to_owned()),
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let slash = if group.is_empty() { "" } else { "/" };
        let within = namespace.map_or(String::new(), |namespace| format!(" in {namespace}"));
        let what = format!("{group}{slash}{resource}{within}");
        asked.push((attributes, Lacking { verb: verb.to_owned(), what }));
    };
    if !facts.installed() {
        for (group, resource, own) in MADE {
            ask(group, resource, None, "create", own.then_some(&*system));
        }
    }
    // Who makes a role must have what it grants.
    for right in &RIGHTS {
        for resource in right.resources {
            for verb in right.verbs {
                let own = (right.scope == Scope::Own).then_some(&*system);
                ask(right.group, resource, right.names.first().copied(), verb, own);
            }
        }
    }
    for (attributes, lacking) in asked {
        let allowed = if facts.installed() {
            let user = format!("system:serviceaccount:{system}:{CONTROL_PLANE}");
            let groups = [
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{system}"),
                "system:authenticated".to_owned(),
            ];
            let spec = SubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                user: Some(user),
                groups: Some(groups.to_vec()),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer =
                Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await;
            answer.map(|answer| answer.status.is_some_and(|status| status.allowed))
        } else {
            let spec =
                SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer = Api::<SelfSubjectAccessReview>::all(client.clone())
                .create(&PostParams::default(), &review)
                .await;
            answer.map(|answer| answer.status.is_some_and(|status| status.allowed))
        };
        match facts.seen("rights", allowed) {
            Some(true) => {}
            Some(false) => facts.lacking.push(lacking),
            // The next question would get the same answer.
            None => return,
        }
    }
}

/// A directory of manifests, judged: what needs no cluster.
///
/// # Errors
/// When it cannot be read.
pub(super) fn directory(dir: &Path) -> anyhow::Result<Report> {
    let (changes, mut problems) = source::directory::read(dir)
        .with_context(|| format!("--manifests {}: cannot be read", dir.display()))?;
    let namespaces: Vec<Namespace> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Upsert(Object::Namespace(namespace)) => Some((**namespace).clone()),
            _ => None,
        })
        .collect();
    let objects = changes.iter().filter(|change| matches!(change, Change::Upsert(_))).count();
    let mut mesh = Mesh::new(Options::default());
    mesh.apply(changes);
    problems.extend(mesh.diagnostics());
    let mut findings =
        vec![Finding::new("manifests", Level::Ok, format!("{objects} objects in {}", dir.display()))];
    findings.extend(pods::security(&namespaces));
    findings.extend(objects::diagnostics(&problems));
    Ok(Report { findings })
}
