//! How a case is stated: routes and their conditions, requests and what becomes of them.

/// The namespace of the echo servers, as the Gateway API's suite calls it.
pub(super) const MESH: &str = "gateway-conformance-mesh";
/// The namespace of a client that has routes of its own.
pub(super) const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// A case.
pub(super) struct Case {
    /// What it shows.
    pub what: &'static str,
    /// The Gateway API's test of the same; none where it has none, though the profile or the specification asks for it.
    pub upstream: Option<&'static str>,
    /// What is applied before and deleted after.
    pub routes: &'static [Route],
    /// Other objects, likewise, as YAML.
    pub others: &'static [&'static str],
    /// The requests.
    pub rows: &'static [Row],
    /// How requests spread.
    pub spreads: &'static [Spread],
}

impl Case {
    pub(super) const NONE: Self =
        Self { what: "", upstream: None, routes: &[], others: &[], rows: &[], spreads: &[] };

    pub(super) fn name(&self) -> &'static str {
        self.upstream.unwrap_or("of our own")
    }
}

/// A route, and what its status must say.
pub(super) struct Route {
    pub kind: &'static str,
    pub name: &'static str,
    pub namespace: &'static str,
    /// The parent references as YAML, indented by two.
    pub parents: &'static str,
    /// The rules as YAML, indented by two.
    pub rules: &'static str,
    /// The reason of the condition Accepted; another than `Accepted` means that it is false.
    pub accepted: &'static str,
    /// The reason of ResolvedRefs, likewise.
    pub resolved: &'static str,
}

/// What most cases ask: port 80 of the Service `echo`.
pub(super) const ECHO: &str = r#"  - {group: "", kind: Service, name: echo, port: 80}"#;

impl Route {
    /// An HTTPRoute that holds.
    pub(super) const fn http(name: &'static str, parents: &'static str, rules: &'static str) -> Self {
        Self {
            kind: "HTTPRoute",
            name,
            namespace: MESH,
            parents,
            rules,
            accepted: "Accepted",
            resolved: "ResolvedRefs",
        }
    }

    pub(super) fn yaml(&self) -> String {
        let Self { kind, name, namespace, parents, rules, .. } = self;
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  parentRefs:\n{parents}\n  rules:\n{}\n",
            rules.trim_matches('\n')
        )
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    V1,
    V2,
    Consumer,
}

/// A request and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub from: From,
    /// `V2` in the place of the host is the address of the pod `echo-v2`.
    pub url: &'static str,
    pub method: &'static str,
    /// Sent beside what the client always sends.
    pub headers: &'static [(&'static str, &'static str)],
    pub http2: bool,
    pub status: u16,
    /// The pod that answers; empty: whichever, or none.
    pub backend: &'static str,
    /// Headers as the backend saw them; several values joined by commas.
    pub seen: &'static [(&'static str, &'static str)],
    /// Headers that the backend did not see.
    pub unseen: &'static [&'static str],
    /// Path and query as the backend saw them; none: as they were sent.
    pub path: Option<&'static str>,
    /// Headers of the response.
    pub answer: &'static [(&'static str, &'static str)],
    /// Headers that the response does not have.
    pub unanswered: &'static [&'static str],
}

/// A GET of nothing from `echo-v1` that is answered.
pub(super) const GET: Row = Row {
    from: From::V1,
    url: "http://echo/",
    method: "GET",
    headers: &[],
    http2: false,
    status: 200,
    backend: "",
    seen: &[],
    unseen: &[],
    path: None,
    answer: &[],
    unanswered: &[],
};

impl Row {
    /// A GET that this pod answers.
    pub(super) const fn to(url: &'static str, backend: &'static str) -> Self {
        Self { url, backend, ..GET }
    }

    /// A GET that gets this status from nobody's application.
    pub(super) const fn refused(url: &'static str, status: u16) -> Self {
        Self { url, status, ..GET }
    }

    /// A GET that is sent elsewhere.
    pub(super) const fn redirected(
        url: &'static str,
        status: u16,
        location: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { url, status, answer: location, ..GET }
    }
}

/// Which share of many requests goes where.
#[derive(Debug)]
pub(super) struct Spread {
    pub url: &'static str,
    pub shares: &'static [(&'static str, f64)],
}
