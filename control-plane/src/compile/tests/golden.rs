//! Manifests in, mesh config out, as files: `compile/golden/*.yaml` beside `*.txt`.
//!
//! The questions are lines of the manifests that begin with `#?`. `HEDDLE_REWRITE=1` writes what comes out now; the
//! diff is the review.

use std::{fmt::Write, fs, path::Path};

use heddle_api::v1;

use super::mesh;
use crate::compile::Mesh;

#[test]
fn the_manifests_of_each_file_compile_to_the_text_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compile/golden");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() > 3, "the folder is there");
    let mut wrong = Vec::new();
    for path in files {
        let manifests = fs::read_to_string(&path).unwrap();
        let text = answers(&manifests);
        let expected_path = path.with_extension("txt");
        if std::env::var_os("HEDDLE_REWRITE").is_some() {
            fs::write(&expected_path, &text).unwrap();
        } else if fs::read_to_string(&expected_path).unwrap_or_default() != text {
            wrong.push(format!("{}\n{text}", path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "another config than expected (HEDDLE_REWRITE=1 accepts it):\n{}",
        wrong.join("\n")
    );
}

fn answers(manifests: &str) -> String {
    let mesh = mesh(manifests);
    let mut out = String::new();
    for question in manifests.lines().filter_map(|line| line.strip_prefix("#? ")) {
        writeln!(out, "{question}").unwrap();
        match question.split(' ').collect::<Vec<_>>()[..] {
            ["destination", caller, name] => destination(&mesh, caller, name, &mut out),
            ["endpoints", key] => endpoints(&mesh, key, &mut out),
            ["inbound", pod] => inbound(&mesh, pod, &mut out),
            ["problems"] => {
                for problem in mesh.diagnostics() {
                    writeln!(out, "  {:?} {problem}", problem.severity).unwrap();
                }
            }
            _ => panic!("{question:?} is not a question"),
        }
    }
    out
}

fn destination(mesh: &Mesh, caller: &str, name: &str, out: &mut String) {
    let Some(d) = mesh.destination(caller, name).value else {
        return writeln!(out, "  not in the mesh").unwrap();
    };
    writeln!(out, "  {} {} default {}", d.service, d.protocol().as_str_name(), d.default_backend).unwrap();
    for route in &d.http_routes {
        let path = route.path.as_ref().and_then(|path| path.kind.as_ref());
        writeln!(
            out,
            "  route {} -> rule {}: {:?} {:?} headers {:?} query {:?}",
            route.name, route.rule, path, route.method, route.headers, route.query
        )
        .unwrap();
    }
    for (index, rule) in d.http_rules.iter().enumerate() {
        writeln!(
            out,
            "  rule {index} {:?} request {:?} backend {:?}",
            rule.name, rule.request_timeout_ms, rule.backend_timeout_ms
        )
        .unwrap();
        if let Some(retry) = &rule.retry {
            writeln!(out, "    {retry:?}").unwrap();
        }
        for filter in rule.filters.iter().filter_map(|filter| filter.kind.as_ref()) {
            writeln!(out, "    {filter:?}").unwrap();
        }
        weights(&rule.backends, out);
    }
    if !d.tcp_backends.is_empty() {
        writeln!(out, "  tcp").unwrap();
        weights(&d.tcp_backends, out);
    }
    for backend in &d.backends {
        writeln!(out, "  backend {} {}", backend.key, backend.protocol().as_str_name()).unwrap();
        if let Some(policy) = &backend.policy {
            writeln!(out, "    {policy:?}").unwrap();
        }
    }
}

fn weights(backends: &[v1::WeightedBackend], out: &mut String) {
    for backend in backends {
        writeln!(out, "    {} {}", backend.weight, backend.backend).unwrap();
        for filter in backend.filters.iter().filter_map(|filter| filter.kind.as_ref()) {
            writeln!(out, "      {filter:?}").unwrap();
        }
    }
}

fn endpoints(mesh: &Mesh, key: &str, out: &mut String) {
    let Some(endpoints) = mesh.endpoints(key).value else {
        return writeln!(out, "  no such backend").unwrap();
    };
    for e in endpoints.endpoints {
        let must = if e.must_be_meshed { " must be meshed" } else { "" };
        let list = |what: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!(" for {what} {}", names.join(",")),
        };
        let hints = list("zones", &e.for_zones) + &list("nodes", &e.for_nodes);
        writeln!(
            out,
            "  {} {} {} pod {:?} as {:?} zone {:?} weight {}{must}{hints}",
            e.address,
            e.port,
            e.state().as_str_name(),
            e.pod,
            e.identity,
            e.zone,
            e.weight
        )
        .unwrap();
    }
}

fn inbound(mesh: &Mesh, pod: &str, out: &mut String) {
    let Some(inbound) = mesh.inbound(&pod.parse().unwrap()).value else {
        return writeln!(out, "  no such pod").unwrap();
    };
    let place = match (&*inbound.zone, &*inbound.node) {
        ("", "") => String::new(),
        (zone, node) => format!(" in zone {zone:?} on node {node:?}"),
    };
    writeln!(
        out,
        "  {} {} {} terminating {} opaque {:?}{place}",
        inbound.identity,
        inbound.mtls().as_str_name(),
        inbound.access_log().as_str_name(),
        inbound.terminating,
        inbound.opaque_ports
    )
    .unwrap();
    rules("other ports", &inbound.access, out);
    for port in &inbound.ports {
        writeln!(out, "  port {} {} {}", port.port, port.protocol().as_str_name(), port.mtls().as_str_name())
            .unwrap();
        writeln!(out, "    {}", port.authorities.join(" ")).unwrap();
        rules("  ", &port.access, out);
    }
}

fn rules(title: &str, rules: &[v1::AccessRule], out: &mut String) {
    for rule in rules {
        writeln!(out, "  {title} {} {}", rule.name, rule.action().as_str_name()).unwrap();
        for clause in &rule.clauses {
            writeln!(out, "      from {:?}", clause.from).unwrap();
            writeln!(out, "      to {:?}", clause.to).unwrap();
        }
    }
}
