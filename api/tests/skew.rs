//! The wire protocol among versions: what older ones wrote is kept in `recorded/` and must be read for ever, and what
//! newer ones may add must not be in the way.
//!
//! `recorded/0.1/Destination.bin` is a Destination with every field set, as 0.1 wrote it, and `.txt` says what is in it;
//! a message with a choice (`oneof`) has a file for each. `HEDDLE_REWRITE=1 cargo test --workspace --test skew every_field`
//! records those of the present minor version anew; those of older ones are never written again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use heddle_api::v1;
use prost::{DecodeError, Message};
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage as _, Value,
    prost_types::{
        FieldDescriptorProto, FileDescriptorSet,
        field_descriptor_proto::{Label, Type},
    },
};

/// A message of the protocol as this version knows it.
struct Known {
    /// Reads it, and writes what was understood.
    again: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
    /// What is in it, for people.
    show: fn(&[u8]) -> Result<String, DecodeError>,
}

macro_rules! known {
    ($($name:ident)*) => {
        /// All of them, by name.
        fn known() -> BTreeMap<&'static str, Known> {
            BTreeMap::from([$((stringify!($name), Known {
                again: |bytes| Ok(v1::$name::decode(bytes)?.encode_to_vec()),
                show: |bytes| Ok(format!("{:#?}\n", v1::$name::decode(bytes)?)),
            })),*])
        }
    };
}

known! {
    DiscoveryRequest DiscoveryResponse Hello HeldResource Refusal Resource ResourceName
    JoinRequest RenewRequest Certificate
    Destination HttpRoute PathMatch ValueMatch HttpRule WeightedBackend HttpFilter HeaderModifier Header Redirect
    UrlRewrite PathModifier Mirror Backend TrafficPolicy OutlierEjection RetryPolicy
    Endpoints EndpointsDelta EndpointKey Endpoint
    Inbound InboundPort AccessRule AccessClause AccessSource AccessOperation TrustBundle
}

fn descriptors() -> FileDescriptorSet {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let files = ["resources", "discovery", "identity"].map(|file| format!("{proto}/heddle/v1/{file}.proto"));
    protox::compile(files, [proto]).unwrap()
}

fn pool(descriptors: FileDescriptorSet) -> DescriptorPool {
    DescriptorPool::from_file_descriptor_set(descriptors).unwrap()
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("heddle.v1.{name}")).unwrap_or_else(|| panic!("no message {name}"))
}

/// Which member of each `oneof` a sample has: the `n`th, counted round.
fn full(of: &MessageDescriptor, n: usize) -> DynamicMessage {
    let mut sample = DynamicMessage::new(of.clone());
    for field in of.fields() {
        if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
            let members = oneof.fields().count();
            if oneof.fields().nth(n % members).is_some_and(|member| member.number() != field.number()) {
                continue;
            }
        }
        let value = if field.is_list() {
            Value::List((0..2).map(|more| value(&field, n + more)).collect())
        } else {
            value(&field, n)
        };
        sample.set_field(&field, value);
    }
    sample
}

/// Never a default, which would not be written.
fn value(field: &FieldDescriptor, n: usize) -> Value {
    let number = field.number() * 100 + 1 + u32::try_from(n).unwrap();
    match field.kind() {
        Kind::Bool => Value::Bool(true),
        Kind::Uint32 => Value::U32(number),
        Kind::Uint64 => Value::U64(u64::from(number) << 32),
        Kind::Int64 => Value::I64(i64::from(number) << 32),
        Kind::String => Value::String(format!("{} {number}", field.name())),
        Kind::Bytes => Value::Bytes(format!("{} {number}", field.name()).into_bytes().into()),
        Kind::Enum(of) => Value::EnumNumber(some_number(&of, n)),
        Kind::Message(of) => Value::Message(full(&of, n)),
        other => panic!("{}: this test knows no {other:?} yet", field.full_name()),
    }
}

fn some_number(of: &EnumDescriptor, n: usize) -> i32 {
    let numbers: Vec<i32> = of.values().map(|value| value.number()).filter(|number| *number != 0).collect();
    numbers[n % numbers.len()]
}

fn members(of: &MessageDescriptor) -> usize {
    of.oneofs().filter(|oneof| !oneof.is_synthetic()).map(|oneof| oneof.fields().count()).max().unwrap_or(1)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

/// Of this version.
fn present() -> PathBuf {
    folder().join(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR")))
}

/// Everything that was recorded: a message's name, a file, its bytes.
fn recorded(folders: impl IntoIterator<Item = PathBuf>) -> Vec<(String, PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for folder in folders {
        let files =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for file in files.map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|end| end == "bin") {
                let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
                let name = stem.split('-').next().unwrap().to_owned();
                let bytes = std::fs::read(&file).unwrap();
                all.push((name, file, bytes));
            }
        }
    }
    all.sort();
    all
}

fn all_recorded() -> Vec<(String, PathBuf, Vec<u8>)> {
    recorded(std::fs::read_dir(folder()).unwrap().map(|folder| folder.unwrap().path()))
}

fn record() {
    let (pool, folder) = (pool(descriptors()), present());
    let _before = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, known) in known() {
        let of = message(&pool, name);
        let members = members(&of);
        for n in 0..members {
            let stem = if members == 1 { name.to_owned() } else { format!("{name}-{}", n + 1) };
            let bytes = (known.again)(&full(&of, n).encode_to_vec()).unwrap();
            std::fs::write(folder.join(format!("{stem}.txt")), (known.show)(&bytes).unwrap()).unwrap();
            std::fs::write(folder.join(format!("{stem}.bin")), bytes).unwrap();
        }
    }
}

#[test]
fn every_field_of_every_message_is_recorded() {
    if std::env::var_os("HEDDLE_REWRITE").is_some() {
        record();
    }
    let (pool, known) = (pool(descriptors()), known());
    let named: BTreeSet<String> = pool.all_messages().map(|message| message.name().to_owned()).collect();
    assert_eq!(named, known.keys().map(|name| (*name).to_owned()).collect(), "the list in this file");
    let mut lacking: BTreeSet<String> = pool
        .all_messages()
        .flat_map(|message| message.fields().map(|field| field.full_name().to_owned()).collect::<Vec<_>>())
        .collect();
    for (name, file, bytes) in recorded([present()]) {
        let sample = DynamicMessage::decode(message(&pool, &name), &*bytes).unwrap();
        for field in sample.descriptor().fields().filter(|field| sample.has_field(field)) {
            lacking.remove(field.full_name());
        }
        let said = std::fs::read_to_string(file.with_extension("txt")).unwrap();
        assert_eq!(said, (known[&*name].show)(&bytes).unwrap(), "{}", file.display());
    }
    assert!(lacking.is_empty(), "not recorded, so record anew (see the head of this file): {lacking:#?}");
}

#[test]
fn what_older_versions_wrote_is_read_whole() {
    let known = known();
    let all = all_recorded();
    assert!(all.len() >= known.len());
    for (name, file, bytes) in all {
        let message = known.get(&*name).unwrap_or_else(|| panic!("{}: no such message", file.display()));
        // What is lost on the way, or means something else by its type now, is not written again.
        let again = (message.again)(&bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(
            again == bytes,
            "{} is not what it was:\n{}",
            file.display(),
            (message.show)(&bytes).unwrap()
        );
    }
}

#[test]
fn whatever_is_missing_has_its_default() {
    for (name, message) in known() {
        assert_eq!((message.again)(&[]).unwrap(), Vec::<u8>::new(), "{name}");
    }
}

/// Numbers of fields that no version has yet.
const FUTURE: std::ops::Range<i32> = 1990..1993;

/// The protocol as a later version may have it: each message has more fields, and each choice one more member.
fn future() -> DescriptorPool {
    let mut descriptors = descriptors();
    for message in descriptors.file.iter_mut().flat_map(|file| &mut file.message_type) {
        let own = format!(".heddle.v1.{}", message.name());
        let kinds = [(Type::String, None), (Type::Uint64, None), (Type::Message, Some(own))];
        for (number, (kind, type_name)) in FUTURE.zip(kinds) {
            message.field.push(FieldDescriptorProto {
                name: Some(format!("from_the_future_{number}")),
                number: Some(number),
                label: Some(Label::Optional.into()),
                r#type: Some(kind.into()),
                type_name,
                ..FieldDescriptorProto::default()
            });
        }
        // The first is a real one wherever there is any.
        let real = message.oneof_decl.first().is_some_and(|oneof| !oneof.name().starts_with('_'));
        if real {
            message.field.push(FieldDescriptorProto {
                name: Some("another_choice".to_owned()),
                number: Some(FUTURE.end),
                label: Some(Label::Optional.into()),
                r#type: Some(Type::String.into()),
                oneof_index: Some(0),
                ..FieldDescriptorProto::default()
            });
        }
    }
    pool(descriptors)
}

/// Changes a message and all within it.
fn everywhere(message: &mut DynamicMessage, change: &dyn Fn(&mut DynamicMessage)) {
    let set: Vec<FieldDescriptor> = message.descriptor().fields().filter(|f| message.has_field(f)).collect();
    for field in set {
        match message.get_field_mut(&field) {
            Value::Message(inner) => everywhere(inner, change),
            Value::List(list) => {
                for inner in list.iter_mut() {
                    if let Value::Message(inner) = inner {
                        everywhere(inner, change);
                    }
                }
            }
            _ => {}
        }
    }
    change(message);
}

#[test]
fn what_newer_versions_add_is_ignored_wherever_it_stands() {
    let (future, known) = (future(), known());
    for (name, file, bytes) in all_recorded() {
        let of = message(&future, &name);
        let mut newer = DynamicMessage::decode(of, &*bytes).unwrap();
        everywhere(&mut newer, &|message| {
            let inner = DynamicMessage::new(message.descriptor());
            let [text, number, within] = [1990, 1991, 1992];
            message.set_field_by_number(text, Value::String("soon".to_owned()));
            message.set_field_by_number(number, Value::U64(u64::MAX));
            message.set_field_by_number(within, Value::Message(inner));
        });
        let newer = newer.encode_to_vec();
        assert!(newer.len() > bytes.len());
        assert!((known[&*name].again)(&newer).unwrap() == bytes, "{}", file.display());
    }
}

#[test]
fn numbers_of_enums_that_only_newer_versions_know_are_read_as_numbers() {
    let (pool, known) = (pool(descriptors()), known());
    for (name, file, bytes) in all_recorded() {
        let mut newer = DynamicMessage::decode(message(&pool, &name), &*bytes).unwrap();
        everywhere(&mut newer, &|message| {
            for field in message.descriptor().fields() {
                let number = Value::EnumNumber(99);
                match field.kind() {
                    Kind::Enum(_) if field.is_list() => message.set_field(&field, Value::List(vec![number])),
                    Kind::Enum(_) => message.set_field(&field, number),
                    _ => {}
                }
            }
        });
        let newer = newer.encode_to_vec();
        assert!((known[&*name].again)(&newer).unwrap() == newer, "{}", file.display());
    }
}

#[test]
fn a_choice_that_only_newer_versions_know_is_read_as_none() {
    let (future, known) = (future(), known());
    let mut choices = 0;
    for (name, _, _) in recorded([present()]) {
        let of = message(&future, &name);
        if let Some(choice) = of.get_field_by_name("another_choice") {
            let mut newer = DynamicMessage::new(of);
            newer.set_field(&choice, Value::String("soon".to_owned()));
            assert_eq!((known[&*name].again)(&newer.encode_to_vec()).unwrap(), Vec::<u8>::new(), "{name}");
            choices += 1;
        }
    }
    assert!(choices >= 5, "Resource, PathMatch, ValueMatch, HttpFilter, PathModifier: {choices}");
}
