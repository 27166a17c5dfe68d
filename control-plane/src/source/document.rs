//! Text to objects: each YAML document on its own, so that a broken one spoils no other.

pub(super) mod closed;
mod guess;

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use gateway_api::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant, tcproutes::TcpRoute,
};
use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_norway::Value;

use crate::{
    diagnostics::FieldError,
    object::{Kind, Name, Object, ObjectRef, check::check},
    yaml,
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

impl Document {
    /// Whether it cannot be used.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Read(Parsed { outcome: Err(_), .. }))
    }
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
    let value: Value = match serde_norway::from_str(&yaml::read(text)) {
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
        namespace: if kind.is_namespaced() { namespace.clone() } else { String::new() },
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
    // The text is read again only where it is not plainly right: from it come the errors' lines, and as it stands it
    // takes `1` and `0400` for a text where one belongs.
    fn again<T: DeserializeOwned>(text: &str, error: Unread) -> Result<(T, Vec<String>), Unread> {
        let as_kubectl_reads = match (typed(serde_norway::Deserializer::from_str(text)), yaml::read(text)) {
            (Err(_), Cow::Owned(text)) => text,
            (read, _) => return read,
        };
        match typed::<T>(serde_norway::Deserializer::from_str(&as_kubectl_reads)) {
            // As it stands it has no boolean where one belongs, and as kubectl reads it no text.
            Ok(_) => Err(error),
            Err(located) => Err(located),
        }
    }
    macro_rules! object {
        ($variant:ident, $type:ty) => {{
            let (mut object, unknown): ($type, _) = match (typed(value), text) {
                (Err(error), Some(text)) => again(text, error)?,
                (read, _) => read?,
            };
            if kind.is_namespaced() {
                object.metadata.namespace.get_or_insert_with(|| "default".to_owned());
            }
            (Object::$variant(object.into()), unknown)
        }};
    }
    Ok(match kind {
        Kind::Namespace => object!(Namespace, Namespace),
        Kind::Node => object!(Node, Node),
        Kind::Pod => object!(Pod, Pod),
        Kind::Service => object!(Service, Service),
        Kind::EndpointSlice => object!(EndpointSlice, EndpointSlice),
        Kind::NetworkPolicy => object!(NetworkPolicy, NetworkPolicy),
        Kind::HttpRoute => object!(HttpRoute, HttpRoute),
        Kind::GrpcRoute => object!(GrpcRoute, GrpcRoute),
        Kind::TcpRoute => object!(TcpRoute, TcpRoute),
        Kind::ReferenceGrant => object!(ReferenceGrant, ReferenceGrant),
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
mod tests;
