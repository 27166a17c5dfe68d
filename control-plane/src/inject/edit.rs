//! Changes to a pod, gathered as a JSON Patch. Paths are lists of names, so that none is escaped twice or not at all.

use std::collections::BTreeSet;

use json_patch::{
    AddOperation, Patch, PatchOperation, ReplaceOperation,
    jsonptr::{PointerBuf, Token},
};
use serde::Serialize;
use serde_json::{Value, json};

/// The changes so far.
#[derive(Debug)]
pub struct Edits<'a> {
    original: &'a Value,
    /// Maps and lists that are there by an edit.
    made: BTreeSet<String>,
    operations: Vec<PatchOperation>,
}

impl<'a> Edits<'a> {
    /// None yet, to this.
    #[must_use]
    pub fn new(original: &'a Value) -> Self {
        Self { original, made: BTreeSet::new(), operations: Vec::new() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Replaces what is there.
    pub fn replace(&mut self, path: &[&str], value: Value) {
        self.operations.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value }));
    }

    /// Sets an entry of a map of strings, which is made if it is not there.
    pub fn map_entry(&mut self, map: &[&str], key: &str, value: &str) {
        self.make(map, json!({}));
        let path: Vec<&str> = map.iter().copied().chain([key]).collect();
        self.push_add(&path, Value::from(value));
    }

    /// Puts an entry at the end of a list, which is made if it is not there.
    pub fn append(&mut self, list: &[&str], value: &impl Serialize) {
        self.insert_at(list, "-", value);
    }

    /// Puts an entry at the head of a list, which is made if it is not there.
    pub fn prepend(&mut self, list: &[&str], value: &impl Serialize) {
        self.insert_at(list, "0", value);
    }

    fn insert_at(&mut self, list: &[&str], place: &str, value: &impl Serialize) {
        self.make(list, json!([]));
        let path: Vec<&str> = list.iter().copied().chain([place]).collect();
        let value = serde_json::to_value(value).expect("Kubernetes' types are JSON");
        self.push_add(&path, value);
    }

    /// The patch.
    #[must_use]
    pub fn into_patch(self) -> Patch {
        Patch(self.operations)
    }

    fn make(&mut self, path: &[&str], empty: Value) {
        // null is how some generators write nothing.
        let at = pointer(path);
        let there = self.original.pointer(at.as_str()).is_some_and(|value| !value.is_null());
        if there || !self.made.insert(at.as_str().to_owned()) {
            return;
        }
        if let Some((_, parent)) = path.split_last()
            && !parent.is_empty()
        {
            self.make(parent, json!({}));
        }
        self.push_add(path, empty);
    }

    fn push_add(&mut self, path: &[&str], value: Value) {
        self.operations.push(PatchOperation::Add(AddOperation { path: pointer(path), value }));
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied().map(Token::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(mut to: Value, edit: impl FnOnce(&mut Edits<'_>)) -> Value {
        let original = to.clone();
        let mut edits = Edits::new(&original);
        edit(&mut edits);
        json_patch::patch(&mut to, &edits.into_patch()).unwrap();
        to
    }

    #[test]
    fn what_is_missing_on_the_way_is_made_once() {
        let edit = |edits: &mut Edits<'_>| {
            edits.map_entry(&["metadata", "labels"], "heddle.dev/a~b", "1");
            edits.map_entry(&["metadata", "labels"], "c", "2");
            edits.append(&["spec", "volumes"], &"last");
            edits.prepend(&["spec", "volumes"], &"first");
        };
        let expected = json!({"heddle.dev/a~b": "1", "c": "2"});
        let made = applied(json!({"spec": {"volumes": ["middle"]}}), edit);
        assert_eq!(
            made,
            json!({"metadata": {"labels": expected}, "spec": {"volumes": ["first", "middle", "last"]}})
        );
        let made = applied(json!({"metadata": {"labels": null}, "spec": {}}), edit);
        assert_eq!(made, json!({"metadata": {"labels": expected}, "spec": {"volumes": ["first", "last"]}}));
    }
}
