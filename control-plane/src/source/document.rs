//! Text to objects: each YAML document on its own, so that a broken one spoils no other.

mod closed;
mod guess;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use gateway_api::experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute, tcproutes::TcpRoute};
use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde::{Deserialize, Deserializer};
use serde_norway::Value;

use crate::{
    diagnostics::FieldError,
    object::{Kind, Name, Object, ObjectRef, check::check},
};

/// What a document of a file holds.
#[derive(Debug)]
pub(super) enum Document {
    /// This object, as before: no byte of the document is another.
    Same {
        /// The line on which it begins now, from 1.
        line: u32,
        /// Which object.
        object: Arc<ObjectRef>,
    },
    /// Something that was read.
    Read(Parsed),
}

/// What became of one object of a file.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The line on which its document begins, from 1.
    pub line: u32,
    /// Of the document, where it holds this object alone.
    pub digest: Option<u64>,
    /// Itself, or what is wrong.
    pub outcome: Result<Object, Broken>,
}

/// A document that cannot be used.
#[derive(Debug)]
pub(super) struct Broken {
    /// Which of the file's objects it was, as far as that can be read.
    pub subject: Subject,
    /// What is wrong, each with its line in the file.
    pub errors: Vec<(u32, FieldError)>,
    /// What to use when there is no last good state: a policy that guards something does so even when it is broken.
    pub closed: Option<Object>,
}

/// Which object a broken document was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// This one.
    Known(ObjectRef),
    /// One of this name, of whatever kind.
    Named(Name),
    /// Any of the file; by the look of its lines, this one.
    Any(Option<ObjectRef>),
}

/// Reads all objects of a file but for those of documents whose digest is `known`: a file of twenty pods of which one
/// changed costs one.
pub(super) fn parse(text: &str, known: impl Fn(u64) -> Option<Arc<ObjectRef>>) -> Vec<Document> {
    let mut all = Vec::new();
    for (line, document) in split(text) {
        let digest = digest(document);
        if let Some(object) = known(digest) {
            all.push(Document::Same { line: line + lead(document), object });
            continue;
        }
        let mut parsed = parse_document(line, document);
        if let [Parsed { digest: place, outcome: Ok(_), .. }] = &mut parsed[..] {
            *place = Some(digest);
        }
        all.extend(parsed.into_iter().map(Document::Read));
    }
    all
}

/// Reads all objects of a text.
#[cfg(test)]
pub(super) fn parse_all(text: &str) -> Vec<Parsed> {
    let read = |document| match document {
        Document::Read(parsed) => parsed,
        Document::Same { .. } => unreachable!("nothing is known"),
    };
    parse(text, |_| None).into_iter().map(read).collect()
}

/// What tells one text from another.
pub(super) fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Cuts at `---`, which at the start of a line means nothing else in YAML, not even inside a block scalar.
fn split(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut begin, mut begin_line) = (0, 1);
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > begin {
            documents.push((begin_line, &text[begin..offset]));
            (begin, begin_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((begin_line, &text[begin..]));
    documents
}

fn parse_document(line: u32, text: &str) -> Vec<Parsed> {
    let value: Value = match serde_norway::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            let (at, mut problem) = located(line, &error);
            problem.message.push_str(hint(text, &error));
            let looks_like = guess::object(text);
            let closed = looks_like.as_ref().and_then(|reference| closed::policy(reference, &Value::Null));
            return vec![broken(line, Subject::Any(looks_like), vec![(at, problem)], closed)];
        }
    };
    if value.is_null() {
        return Vec::new();
    }
    let is = |key: &str, what: &str| value.get(key).and_then(Value::as_str) == Some(what);
    if is("kind", "List") && is("apiVersion", "v1") {
        let items = value.get("items").and_then(Value::as_sequence).map(Vec::as_slice).unwrap_or_default();
        return items.iter().map(|item| parse_object(line, None, item)).collect();
    }
    vec![parse_object(line, Some(text), &value)]
}

/// `text`: the document, when it holds this object alone; errors then have lines.
fn parse_object(line: u32, text: Option<&str>, value: &Value) -> Parsed {
    let begin = line;
    let line = begin + text.map_or(0, lead);
    let at = |field: &str| text.and_then(|text| line_of(text, field)).map_or(line, |offset| begin + offset);
    let string = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let meta = value.get("metadata");
    let name = string(meta.and_then(|m| m.get("name")));
    let namespace =
        meta.and_then(|m| m.get("namespace")).and_then(Value::as_str).unwrap_or("default").to_owned();
    let named = || {
        if name.is_empty() { Subject::Any(None) } else { Subject::Named(Name::new(&namespace, &name)) }
    };
    let fail = |subject, field: &str, message: String| {
        broken(line, subject, vec![(at(field), FieldError::error(field, message))], None)
    };
    if !value.is_mapping() {
        return fail(
            Subject::Any(None),
            "",
            "is not an object with apiVersion, kind and metadata".to_owned(),
        );
    }
    let kind_text = string(value.get("kind"));
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == kind_text) else {
        let close = Kind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(&kind_text));
        let meant = match close {
            Some(kind) => format!("write {kind}"),
            None => Kind::ALL.map(Kind::as_str).join(", "),
        };
        return fail(named(), "kind", format!("{kind_text:?} is not a kind that the mesh reads: {meant}"));
    };
    if name.is_empty() {
        return fail(Subject::Any(None), "metadata.name", "is missing".to_owned());
    }
    let reference = ObjectRef {
        kind,
        namespace: if kind == Kind::Namespace { String::new() } else { namespace.clone() },
        name: name.clone(),
    };
    let closed = || closed::policy(&reference, value);
    let version = string(value.get("apiVersion"));
    if !kind.api_versions().contains(&version.as_str()) {
        let meant = kind.api_versions()[0];
        let error = FieldError::error("apiVersion", format!("{version:?} has no {kind}, it is in {meant}"));
        let errors = vec![(at("apiVersion"), error)];
        let closed = closed();
        return broken(line, Subject::Known(reference), errors, closed);
    }
    let mut errors: Vec<(u32, FieldError)> = Vec::new();
    match read(kind, text, value) {
        Err(Unread { path, error }) => {
            let (error_line, mut problem) = match text {
                Some(_) => located(begin, &error),
                None => (line, field_error(&error.to_string())),
            };
            // The longer path says more.
            if path != "." && path.starts_with(&problem.field) {
                problem.field = path;
            }
            errors.push((error_line, problem));
        }
        Ok((object, unknown)) => {
            let unknown = unknown
                .into_iter()
                .map(|field| FieldError::error(field, "is not a field that is known here"));
            for error in unknown.chain(check(&object)) {
                errors.push((at(&error.field), error));
            }
            if errors.is_empty() {
                return Parsed { line, digest: None, outcome: Ok(object) };
            }
        }
    }
    let closed = closed();
    broken(line, Subject::Known(reference), errors, closed)
}

fn broken(line: u32, subject: Subject, errors: Vec<(u32, FieldError)>, closed: Option<Object>) -> Parsed {
    Parsed { line, digest: None, outcome: Err(Broken { subject, errors, closed }) }
}

/// How many lines come before the first that says something.
fn lead(text: &str) -> u32 {
    let silent = |line: &&str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with("---") || line.starts_with('%')
    };
    // Counts lines of a file that is at most some megabytes long.
    text.lines().take_while(silent).count() as u32
}

/// Why an object could not be read: the field's path, as far as that goes, and the parser's error.
struct Unread {
    path: String,
    error: serde_norway::Error,
}

/// Reads an object, and the fields that nobody asked for.
fn read(kind: Kind, text: Option<&str>, value: &Value) -> Result<(Object, Vec<String>), Unread> {
    fn typed<'de, T: Deserialize<'de>>(
        source: impl Deserializer<'de, Error = serde_norway::Error>,
    ) -> Result<(T, Vec<String>), Unread> {
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| {
            let field = field_path(&path.to_string());
            // The generated types take these two for granted; they were looked at before.
            if field != "apiVersion" && field != "kind" {
                unknown.push(field);
            }
        };
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(source, &mut track);
        match serde_ignored::deserialize(tracked, &mut note) {
            Ok(object) => Ok((object, unknown)),
            Err(error) => Err(Unread { path: track.path().to_string(), error }),
        }
    }
    macro_rules! object {
        ($variant:ident, $type:ty) => {{
            // The text is read a second time only where it is not plainly right: from it come the errors' lines, and
            // it takes `1` for a text where one belongs.
            let (mut object, unknown): ($type, _) = match (typed(value), text) {
                (Err(_), Some(text)) => typed(serde_norway::Deserializer::from_str(text))?,
                (read, _) => read?,
            };
            if kind != Kind::Namespace {
                object.metadata.namespace.get_or_insert_with(|| "default".to_owned());
            }
            (Object::$variant(object.into()), unknown)
        }};
    }
    Ok(match kind {
        Kind::Namespace => object!(Namespace, Namespace),
        Kind::Pod => object!(Pod, Pod),
        Kind::Service => object!(Service, Service),
        Kind::EndpointSlice => object!(EndpointSlice, EndpointSlice),
        Kind::HttpRoute => object!(HttpRoute, HttpRoute),
        Kind::GrpcRoute => object!(GrpcRoute, GrpcRoute),
        Kind::TcpRoute => object!(TcpRoute, TcpRoute),
        Kind::TrafficPolicy => object!(TrafficPolicy, TrafficPolicy),
        Kind::AccessPolicy => object!(AccessPolicy, AccessPolicy),
        Kind::MeshPolicy => object!(MeshPolicy, MeshPolicy),
    })
}

/// What a newcomer may want to know of a mistake in the YAML itself.
fn hint(text: &str, error: &serde_norway::Error) -> &'static str {
    let line = error.location().and_then(|location| text.lines().nth(location.line().saturating_sub(1)));
    let message = error.to_string();
    if line.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t')) {
        " (YAML takes no tabs to indent: use spaces)"
    } else if ["mapping values are not allowed", "did not find expected key"]
        .iter()
        .any(|m| message.contains(m))
    {
        " (is the line indented as its neighbours are?)"
    } else {
        ""
    }
}

/// An error of a document that begins on `line`, with every position in its message counted from the file's start.
fn located(line: u32, error: &serde_norway::Error) -> (u32, FieldError) {
    let at = error.location().map_or(line, |location| line + location.line() as u32 - 1);
    let message = error.to_string();
    // "… at line 3 column 5": each number after "line " moves down by the lines above the document.
    let mut parts = message.split(" line ");
    let mut shifted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        shifted.push_str(" line ");
        match part[..digits].parse::<u32>() {
            Ok(number) => shifted.push_str(&(number + line - 1).to_string()),
            Err(_) => shifted.push_str(&part[..digits]),
        }
        shifted.push_str(&part[digits..]);
    }
    (at, field_error(&shifted))
}

/// Takes `spec.rules[0].weight: invalid type` apart.
fn field_error(message: &str) -> FieldError {
    let path = |c: char| c.is_ascii_alphanumeric() || "._[]-/".contains(c);
    match message.split_once(": ") {
        Some((field, rest)) if !field.is_empty() && field.chars().all(path) => FieldError::error(field, rest),
        _ => FieldError::error("", message),
    }
}

/// `spec.?.rules.0.weigth`, as serde_ignored has it, to `spec.rules[0].weigth`.
fn field_path(path: &str) -> String {
    let mut field = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            field.push_str(&format!("[{part}]"));
        } else {
            if !field.is_empty() {
                field.push('.');
            }
            field.push_str(part);
        }
    }
    field
}

/// The line (from 0) on which a field stands, or the nearest one around it whose key is there only once: no guess is
/// better than a wrong one.
fn line_of(text: &str, field: &str) -> Option<u32> {
    field.rsplit('.').find_map(|part| only_line_of(text, part.split('[').next()?))
}

fn only_line_of(text: &str, key: &str) -> Option<u32> {
    if key.is_empty() {
        return None;
    }
    let mut found = None;
    for (number, line) in (0..).zip(text.lines()) {
        for (at, _) in line.match_indices(key) {
            let starts =
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-' || c == '.' || c == '/');
            let ends = line[at + key.len()..].trim_start_matches(['"', '\'']).starts_with(':');
            if starts && ends && found.replace(number).is_some() {
                return None;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
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
            ("kind: Potato\napiVersion: v1\nmetadata: {name: x}\n".to_owned(), "1: kind: \"Potato\" is not a kind that the mesh reads: Namespace, Pod,"),
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
        let Err(Broken { closed: Some(Object::AccessPolicy(policy)), .. }) =
            parse_all(text).remove(0).outcome
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
}
