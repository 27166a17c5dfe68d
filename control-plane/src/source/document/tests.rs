//! Where documents begin, and what is said of a broken one.

use heddle_api::resources::{AccessAction, AccessRule, MtlsMode};

use super::*;

fn messages(text: &str) -> Vec<String> {
    let broken = |parsed: Parsed| parsed.outcome.err();
    let errors = parse_all(text).into_iter().filter_map(broken).flat_map(|broken| broken.errors);
    errors.map(|(line, e)| format!("{line}: {}: {}", e.field, e.message)).collect()
}

#[test]
fn documents_are_cut_at_their_markers_and_know_their_lines() {
    let text = "# a comment\n---\na: 1\n---\n\nb: |\n  ---\n  x\n--- # c\nc: 3\n";
    let lines: Vec<u32> = split(text).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 2, 4, 9]);
}

#[test]
fn a_document_that_is_known_is_not_read_again_wherever_it_stands_now() {
    let (first, second) = ("kind: [\n", "---\n\nkind: Pod\n");
    let shop = Arc::new(ObjectRef { kind: Kind::Pod, namespace: "shop".into(), name: "a".into() });
    let known = |d| (d == digest(second)).then(|| Arc::clone(&shop));
    let documents = parse(&format!("{first}{second}"), known);
    let [Document::Read(broken), Document::Same { line: 4, object }] = &documents[..] else {
        panic!("{documents:#?}");
    };
    assert!(broken.outcome.is_err());
    assert_eq!(*object, shop);
}

#[test]
fn a_broken_document_does_not_spoil_its_neighbours() {
    let text = "kind: Namespace\napiVersion: v1\nmetadata: {name: shop}\n---\nkind: [\n---\n\nkind: Pod\napiVersion: v1\nmetadata: {name: web, namespace: shop}\n";
    let parsed = parse_all(text);
    assert_eq!(parsed.iter().map(|p| p.outcome.is_ok()).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(parsed[2].line, 8);
    let message = &messages(text)[0];
    assert!(message.contains("line 6"), "{message}");
}

#[test]
fn each_mistake_is_named_with_line_and_field() {
    let route = |rules: &str| {
        format!(
            "# x\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: reviews}}]\n  rules:\n  - backendRefs:\n{rules}"
        )
    };
    for (text, expected) in [
        ("kind: Potato\napiVersion: v1\nmetadata: {name: x}\n".to_owned(), "1: kind: \"Potato\" is not a kind that the mesh reads: Namespace, Node, Pod,"),
        ("kind: HTTPRoute\napiVersion: v1\nmetadata: {name: x}\n".to_owned(), "2: apiVersion: \"v1\" has no HTTPRoute, it is in gateway.networking.k8s.io/v1"),
        ("kind: Pod\napiVersion: v1\n".to_owned(), "1: metadata.name: is missing"),
        (route("    - {name: a, port: 80, weight: -1}\n"), "10: spec.rules[0].backendRefs[0].weight: -1 is not within 0 to 1000000"),
        (route("    - {name: a, port: 80, weigth: 1}\n"), "10: spec.rules[0].backendRefs[0].weigth: is not a field that is known here"),
        (route("    - {name: a, port: 80, weight: many}\n"), "10: spec.rules[0].backendRefs[0].weight: invalid type: string \"many\""),
        (route("    - {name: a, port: 99999}\n"), "10: spec.rules[0].backendRefs[0].port: 99999 is not within 1 to 65535"),
        (route("    - {name: a, port: 80}\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Transfer-Encoding, value: chunked}]}}]\n"), "11: spec.rules[0].filters[0].requestHeaderModifier.set[0].name: Transfer-Encoding belongs to HTTP itself"),
        (route("    - {name: a, port: 80}\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Host]}}]\n"), "11: spec.rules[0].filters[0].requestHeaderModifier.remove[0]: Host belongs to HTTP itself"),
        (route("    - {name: a, port: 80}\n    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: 'a b'}]}}]\n"), "11: spec.rules[0].filters[0].requestHeaderModifier.set[0].value: \"a b\" cannot be sent"),
        (route("    - {name: a, port: 80}\n    filters: [{type: URLRewrite, urlRewrite: {hostname: 'a/b'}}]\n"), "11: spec.rules[0].filters[0].urlRewrite.hostname: \"a/b\" is not a host name"),
        (route("    - {name: a, port: 80}\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}}}]\n"), "11: spec.rules[0].filters[0].urlRewrite.path.replaceFullPath: \"/a?b\" is not a path"),
        (route("    - {name: a, port: 80}\n    matches: [{path: {type: RegularExpression, value: '/(\\w{300}){300}'}}]\n"), "11: spec.rules[0].matches[0].path.value: \"/(\\\\w{300}){300}\" is not a regular expression: Compiled regex exceeds size limit"),
        (route("    - {name: a, port: 80}\n    filters: [{type: RequestRedirect, requestRedirect: {port: 81}}]\n"), "11: spec.rules[0].filters[0].requestRedirect: answers by itself"),
        (route("    - {name: a, port: 80}\n    filters:\n    - {type: URLRewrite, urlRewrite: {hostname: a}}\n    - {type: URLRewrite, urlRewrite: {hostname: b}}\n"), "11: spec.rules[0].filters[1].type: URLRewrite is there twice"),
        (route("    - {name: a, port: 80}\n    timeouts: {request: 1s, backendRequest: 2s}\n"), "11: spec.rules[0].timeouts.backendRequest: 2s is longer than timeouts.request, 1s"),
        ("kind: HTTPRoute\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\nspec: {rules: []}\n".to_owned(), "4: spec.rules: names nothing: give at least one rule"),
        ("kind: TCPRoute\napiVersion: gateway.networking.k8s.io/v1alpha2\nmetadata: {name: x}\nspec: {rules: [{backendRefs: []}]}\n".to_owned(), "4: spec.rules[0].backendRefs: names nothing"),
        ("kind: TrafficPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  outlierEjection: {maxEjectedPercent: 150}\n".to_owned(), "6: spec.outlierEjection.maxEjectedPercent: 150 is not a percentage above nothing (1 to 100)"),
        ("kind: TrafficPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  rateLimit: {}\n".to_owned(), "6: spec.rateLimit: unknown field `rateLimit`, expected one of"),
        (
            "kind: HTTPRoute\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\nspecs: {}\nspec: {rules: [{}]}\n".to_owned(),
            "4: specs: is not a field that is known here",
        ),
        (
            "kind: TrafficPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  timeouts: {connect: 0s}\n".to_owned(),
            "6: spec.timeouts.connect: must be longer than 0s",
        ),
        (
            "kind: AccessPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  action: Allow\n  rules: [{from: [{}]}]\n".to_owned(),
            "7: spec.rules[0].from[0]: names nobody",
        ),
        (
            "kind: AccessPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  action: Allow\n  rules: [{from: [{serviceAccounts: [web]}]}]\n".to_owned(),
            "7: spec.rules[0].from[0].serviceAccounts[0]: \"web\" is not a service account written namespace/name",
        ),
        (
            "kind: MeshPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: x}\nspec: {mtls: Loose}\n".to_owned(),
            "4: spec.mtls: unknown variant `Loose`, expected one of `Permissive`",
        ),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: Web}\n".to_owned(), "3: metadata.name: \"Web\" is not a name of small letters"),
    ] {
        let messages = messages(&text);
        assert!(messages.len() == 1 && messages[0].starts_with(expected), "{expected}\n{messages:#?}");
    }
}

#[test]
fn the_items_of_a_list_are_objects_of_their_own() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b, nmae: c}}\n";
    let parsed = parse_all(text);
    assert!(parsed[0].outcome.is_ok());
    assert_eq!(messages(text), ["1: metadata.nmae: is not a field that is known here"]);
}

#[test]
fn an_access_policy_that_cannot_be_read_denies_what_it_was_to_guard() {
    let text = "kind: AccessPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: reviews}], action: Alow}\n";
    let Err(Broken { closed: Some(Object::AccessPolicy(policy)), .. }) = parse_all(text).remove(0).outcome
    else {
        panic!("no closed policy");
    };
    assert_eq!(policy.spec.target_refs[0].name, "reviews");
    assert_eq!(
        (policy.spec.action, &policy.spec.rules[..]),
        (AccessAction::Deny, &[AccessRule::default()][..])
    );
}

/// What is used of the one document where there is no last good state.
fn closed(text: &str) -> Option<Object> {
    parse_all(text).remove(0).outcome.unwrap_err().closed
}

#[test]
fn a_mesh_policy_that_cannot_be_read_is_as_strict_as_it_can_have_been_meant() {
    for (spec, expected) in [
        ("{mtls: Strict, logs: {acess: All}}", Some(MtlsMode::Strict)),
        ("{mtls: strict}", Some(MtlsMode::Strict)),
        ("{mtsl: Strict}", Some(MtlsMode::Strict)),
        ("{mtls: Permissive, opaquePort: [1]}", Some(MtlsMode::Permissive)),
        ("{logs: {access: Everything}}", None),
    ] {
        let text = format!(
            "kind: MeshPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        );
        let Some(Object::MeshPolicy(policy)) = closed(&text) else { panic!("{spec}: nothing") };
        assert_eq!(policy.spec.mtls, expected, "{spec}");
    }
    let text = "kind: MeshPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {name: p, namespace: shop}\nspec: {mtls: Permissive, ports: [{port: 1, mtls: Permissive}, {port: 2, mtls: Open}]}\n";
    let Some(Object::MeshPolicy(policy)) = closed(text) else { panic!("nothing") };
    let ports: Vec<_> = policy.spec.ports.iter().flatten().map(|p| (p.port.get(), p.mtls)).collect();
    assert_eq!(ports, [(1, MtlsMode::Permissive), (2, MtlsMode::Strict)]);
}

#[test]
fn a_policy_that_is_no_yaml_at_all_still_guards_its_namespace() {
    let text = "apiVersion: heddle.dev/v1alpha1\nkind: AccessPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n\taction: Deny\n";
    let Some(Object::AccessPolicy(policy)) = closed(text) else { panic!("nothing") };
    assert_eq!(policy.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(policy.spec.target_refs[0].name, "shop");
    assert_eq!(policy.spec.action, AccessAction::Deny);
    let Some(Object::MeshPolicy(policy)) = closed(&text.replace("AccessPolicy", "MeshPolicy")) else {
        panic!("nothing")
    };
    assert_eq!(policy.spec.mtls, Some(MtlsMode::Strict));
}

#[test]
fn a_mistake_in_the_yaml_itself_is_told_with_what_to_do() {
    for (text, expected) in [
        (
            "kind: Pod\nmetadata:\n\tname: a\n",
            "3: : found character that cannot start any token at line 3 column 1, while scanning for the next token (YAML takes no tabs to indent: use spaces)",
        ),
        (
            "kind: Pod\nmetadata:\n  name: a\n   namespace: b\n",
            "4: : mapping values are not allowed in this context at line 4 column 13 (is the line indented as its neighbours are?)",
        ),
        (
            "kind: Pod\nmetadata:\n  name: a\n  name: b\n",
            "3: metadata: duplicate entry with key \"name\" at line 3 column 3",
        ),
        (
            "kind: HttpRoute\nmetadata: {name: a}\n",
            "1: kind: \"HttpRoute\" is not a kind that the mesh reads: write HTTPRoute",
        ),
    ] {
        assert_eq!(messages(text), [expected]);
    }
}

/// kubectl reads YAML 1.1.
#[test]
fn booleans_and_octal_numbers_are_what_they_are_to_kubectl() {
    let pod = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\nspec:\n  hostNetwork: no\n  volumes: [{{name: a, secret: {{defaultMode: 0400}}}}]\n{spec}"
        )
    };
    let parsed = parse_all(&pod("  containers: [{name: web, image: web}]\n"));
    let Ok(Object::Pod(pod_)) = &parsed[0].outcome else { panic!("{parsed:?}") };
    let spec = pod_.spec.as_ref().unwrap();
    assert_eq!(spec.host_network, Some(false));
    let secret = spec.volumes.as_ref().unwrap()[0].secret.as_ref().unwrap();
    assert_eq!(secret.default_mode, Some(256));

    // Where something else is wrong, that is what is said.
    let wrong = messages(&pod("  containers:\n  - name: web\n    stdin: many\n"));
    assert!(wrong[0].starts_with("9: spec.containers[0].stdin: invalid type: string \"many\""), "{wrong:?}");
    // A number where a text belongs stays as it was written, unless nobody could say which it is.
    let text = pod("").replace("namespace: shop", "namespace: shop, labels: {zip: 0123}");
    let wrong = messages(&text);
    assert!(wrong[0].contains("invalid type: integer `83`, expected a string"), "{wrong:?}");
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {zip: 0123, a: yes}}\n";
    let parsed = parse_all(text);
    let Ok(Object::Namespace(namespace)) = &parsed[0].outcome else { panic!("{parsed:?}") };
    let labels = namespace.metadata.labels.as_ref().unwrap();
    assert_eq!((labels["zip"].as_str(), labels["a"].as_str()), ("0123", "yes"));
}
