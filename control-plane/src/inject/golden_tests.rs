//! Pods in, injected pods out, as files: `inject/golden/*.yaml` beside `*.out`.
//!
//! `HEDDLE_REWRITE=1` writes what comes out now; the diff is the review. Whatever comes out must come out unchanged when
//! it is put in again, and its flags must be flags that `heddle-proxy` has.

use std::{fs, path::Path};

use clap::Parser as _;
use heddle_api::probe::{Probes, Token};
use serde_json::{Value, json};

use super::{Asked, Outcome, Settings, offline};
use crate::yaml;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/golden")
}

fn inputs() -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() > 8, "the folder is there");
    files
}

/// Warnings and refusals as comments, then the documents.
fn inject(text: &str) -> (String, offline::Injected) {
    let injected = offline::manifests(
        text,
        &Settings {
            version: "test".to_owned(),
            image: "heddle-proxy:test".to_owned(),
            ..Settings::default()
        },
        || Token::new([0x5e; 16]),
    )
    .unwrap();
    let mut out = String::new();
    for warning in &injected.warnings {
        out += &format!("# warning: {warning}\n");
    }
    for refusal in &injected.refusals {
        out += &format!("# refused: {refusal}\n");
    }
    // Of a refused pod nothing is used.
    if injected.refusals.is_empty() {
        out += &injected.yaml().unwrap();
    }
    (out, injected)
}

#[test]
fn the_manifests_of_each_file_become_the_text_beside_it() {
    let mut wrong = Vec::new();
    for path in inputs() {
        let (out, injected) = inject(&fs::read_to_string(&path).unwrap());
        let expected_path = path.with_extension("out");
        if std::env::var_os("HEDDLE_REWRITE").is_some() {
            fs::write(&expected_path, &out).unwrap();
        } else if fs::read_to_string(&expected_path).unwrap_or_default() != out {
            wrong.push(format!("{}\n{out}", path.display()));
        }
        if injected.refusals.is_empty() {
            let text = injected.yaml().unwrap();
            assert_eq!(yaml::read(&text), text, "{}: kubectl reads something else", path.display());
            let (_, again) = inject(&text);
            assert_eq!(again.documents, injected.documents, "{}: twice is not once", path.display());
        }
    }
    assert!(
        wrong.is_empty(),
        "another pod than expected (HEDDLE_REWRITE=1 accepts it):\n{}",
        wrong.join("\n")
    );
}

/// As kubelet expands what the downward API gives.
fn expanded(text: &str) -> String {
    let values = [("$(POD_NAME)", "web-0"), ("$(POD_NAMESPACE)", "shop"), ("$(POD_IPS)", "10.0.0.7,fd00::7")];
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[test]
fn the_containers_flags_are_those_of_heddle_proxy() {
    let mut seen = 0;
    for path in inputs() {
        let (_, injected) = inject(&fs::read_to_string(&path).unwrap());
        for document in &injected.documents {
            for template in ["", "/spec/template", "/spec/jobTemplate/spec/template"] {
                let at = format!("{template}/spec/initContainers");
                for container in document.pointer(&at).and_then(Value::as_array).into_iter().flatten() {
                    if !container["name"].as_str().is_some_and(|name| name.starts_with("heddle-")) {
                        continue;
                    }
                    let args = container["args"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|arg| expanded(arg.as_str().unwrap()));
                    let line: Vec<String> = ["heddle-proxy".to_owned()].into_iter().chain(args).collect();
                    let parsed = heddle_proxy::cli::Cli::try_parse_from(&line);
                    assert!(parsed.is_ok(), "{}: {}", path.display(), parsed.unwrap_err());
                    let probes = container["env"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .find(|env| env["name"] == "HEDDLE_PROBES");
                    if let Some(text) = probes.and_then(|env| env["value"].as_str()) {
                        text.parse::<Probes>().unwrap();
                    }
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 12, "{seen} containers");
}

/// What a pod's hook asks for, and what its sidecar knows.
fn asked_and_known(pod: &Value, container: usize) -> (String, Probes) {
    let hook = &pod["spec"]["containers"][container]["lifecycle"]["preStop"];
    let path = hook["httpGet"]["path"].as_str().unwrap();
    let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let probes = env.iter().find(|env| env["name"] == "HEDDLE_PROBES").unwrap()["value"].as_str().unwrap();
    (path.strip_prefix("/probe/").unwrap().to_owned(), probes.parse().unwrap())
}

fn patched(mut pod: Value) -> Value {
    match super::inject(&pod, Asked::ByNamespace, &Settings::default()).unwrap() {
        Outcome::Unchanged => {}
        Outcome::Patched { patch, .. } => json_patch::patch(&mut pod, &patch).unwrap(),
    }
    pod
}

#[test]
fn each_pod_has_a_token_of_its_own_and_keeps_it() {
    let container = |name: &str| {
        let probe = json!({"tcpSocket": {"port": 8080}});
        json!({"name": name, "livenessProbe": probe, "lifecycle": {"preStop": {"httpGet": {"port": 8080}}}})
    };
    let plain = json!({"metadata": {}, "spec": {"containers": [container("web")]}});
    let pod = patched(plain.clone());
    let (path, probes) = asked_and_known(&pod, 0);
    assert!(path.starts_with("web/preStop?") && probes.find(&path).is_some(), "{path}");
    assert!(probes.find("web/preStop").is_none() && probes.find("web/liveness").is_some());
    assert_ne!(asked_and_known(&patched(plain), 0).0, path, "it can be guessed");

    // Asked again, as it is and with what another webhook added.
    assert_eq!(patched(pod.clone()), pod);
    let mut extended = pod;
    extended["spec"]["containers"].as_array_mut().unwrap().push(container("late"));
    let extended = patched(extended);
    let (late, all) = asked_and_known(&extended, 1);
    assert_eq!(asked_and_known(&extended, 0).0, path);
    assert_eq!(late, path.replace("web", "late"), "one token for all of the pod's");
    assert!(all.find(&path).is_some() && all.find(&late).is_some());
}

#[test]
fn hooks_from_before_there_were_tokens_stay_as_they_are() {
    let old = r#"{"web":{"preStop":{"httpGet":{"port":8080,"path":"/"},"timeoutSeconds":1}}}"#;
    let pod = json!({"metadata": {}, "spec": {
        "initContainers": [
            {"name": "heddle-redirect"},
            {"name": "heddle-proxy", "restartPolicy": "Always", "env": [{"name": "HEDDLE_PROBES", "value": old}]},
        ],
        "containers": [
            {"name": "web", "lifecycle": {"preStop": {"httpGet": {"path": "/probe/web/preStop", "port": 15020}}}},
            {"name": "late", "lifecycle": {"preStop": {"httpGet": {"port": 8081}}}},
        ],
    }});
    let pod = patched(pod);
    let (path, probes) = asked_and_known(&pod, 0);
    assert_eq!(path, "web/preStop");
    let (late, _) = asked_and_known(&pod, 1);
    assert!(probes.find(&path).is_some() && probes.find(&late).is_some(), "{late}");
    assert_ne!(late, "late/preStop");
}
