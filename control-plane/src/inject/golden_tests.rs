//! Pods in, injected pods out, as files: `inject/golden/*.yaml` beside `*.out`.
//!
//! `HEDDLE_REWRITE=1` writes what comes out now; the diff is the review. Whatever comes out must come out unchanged when
//! it is put in again, and its flags must be flags that `heddle-proxy` has.

use std::{fs, path::Path};

use clap::Parser as _;
use serde_json::Value;

use super::{Settings, offline};

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
            let (_, again) = inject(&injected.yaml().unwrap());
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
                        text.parse::<heddle_api::probe::Probes>().unwrap();
                    }
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 12, "{seen} containers");
}
