//! Which objects the files hold, with their last good state. Pure: files' contents in, changes and problems out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    document::{Document, Parsed, Subject},
    kept::Kept,
};
use crate::{
    diagnostics::{Diagnostic, FieldError, Place, Reason, Severity},
    few::Few,
    object::{Change, Object, ObjectRef},
};

/// What was found at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// A file with these documents.
    Documents(Vec<Document>),
    /// What the file held when it was last good, before this process began. What it is now comes next, in the same part.
    Recalled(Vec<Document>),
    /// A file that cannot be read, and why. What it held stays.
    Unreadable(String),
    /// Nothing any more.
    Gone,
}

impl Found {
    /// Whether something there cannot be used.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Documents(documents) => documents.iter().any(Document::is_broken),
            Self::Unreadable(_) => true,
            Self::Recalled(_) | Self::Gone => false,
        }
    }
}

/// All files' objects.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: BTreeMap<Arc<Path>, File>,
    objects: HashMap<Arc<ObjectRef>, Entry>,
    /// Objects that are in more than one file.
    doubled: BTreeSet<Arc<ObjectRef>>,
    /// Files with problems.
    troubled: BTreeSet<Arc<Path>>,
    /// Broken documents whose object the file did not have: it may have moved here from another file of the transaction.
    strays: Vec<Stray>,
}

/// An object.
#[derive(Debug, Default)]
struct Entry {
    /// In which files it is; the first by name is the one that holds.
    owners: Few<Arc<Path>>,
    /// What was sent on.
    current: Option<(Kept, Place)>,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<Arc<ObjectRef>, Slot>,
    problems: Vec<Diagnostic>,
    /// What is kept of it is from before this process began.
    recalled: bool,
}

/// An object of a file.
#[derive(Clone, Debug)]
struct Slot {
    object: Kept,
    line: u32,
    /// Of the document that it was read from, where that holds nothing else.
    digest: Option<u64>,
}

impl Catalog {
    /// Takes what changed in one transaction, or the last part of one.
    pub(super) fn apply(&mut self, found: impl IntoIterator<Item = (PathBuf, Found)>) -> Vec<Change> {
        let mut touched = self.take_in(found);
        for stray in std::mem::take(&mut self.strays) {
            self.adopt(&stray, &mut touched);
        }
        self.settle_all(touched)
    }

    /// Takes a part of a transaction that [`Catalog::apply`] will end. Nobody may look at its changes before that.
    pub(super) fn apply_part(&mut self, found: impl IntoIterator<Item = (PathBuf, Found)>) -> Vec<Change> {
        let touched = self.take_in(found);
        self.settle_all(touched)
    }

    fn take_in(&mut self, found: impl IntoIterator<Item = (PathBuf, Found)>) -> BTreeSet<Arc<ObjectRef>> {
        let mut touched = BTreeSet::new();
        for (path, found) in found {
            let (path, old) = match self.files.remove_entry(&*path) {
                Some((path, file)) => (path, file),
                None => (path.into(), File::default()),
            };
            self.troubled.remove(&path);
            touched.extend(old.objects.keys().cloned());
            for reference in old.objects.keys() {
                if let Some(entry) = self.objects.get_mut(reference) {
                    entry.owners.remove(&path);
                }
            }
            let new = match found {
                Found::Gone => continue,
                Found::Unreadable(message) => unreadable(&path, old, &message),
                Found::Documents(documents) => read(&path, old, documents, &mut self.strays),
                Found::Recalled(documents) => {
                    File { recalled: true, ..read(&path, old, documents, &mut self.strays) }
                }
            };
            for reference in new.objects.keys() {
                self.own(reference, &path);
                if !touched.contains(reference) {
                    touched.insert(Arc::clone(reference));
                }
            }
            if !new.problems.is_empty() {
                self.troubled.insert(Arc::clone(&path));
            }
            self.files.insert(path, new);
        }
        touched
    }

    fn settle_all(&mut self, touched: BTreeSet<Arc<ObjectRef>>) -> Vec<Change> {
        let mut changes = Vec::new();
        // Once for each object, however often its file was found.
        for reference in touched {
            self.settle(&reference, &mut changes);
        }
        changes
    }

    /// Whether something was read from the path.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| !file.objects.is_empty())
    }

    /// The objects that were read from the file's documents, by the documents' digests.
    pub(super) fn documents(&self, path: &Path) -> HashMap<u64, Arc<ObjectRef>> {
        let objects = self.files.get(path).into_iter().flat_map(|file| &file.objects);
        objects.filter_map(|(reference, slot)| Some((slot.digest?, Arc::clone(reference)))).collect()
    }

    /// Everything that is wrong, in the order of files and lines.
    pub(super) fn problems(&self) -> Vec<Diagnostic> {
        let troubled = self.troubled.iter().filter_map(|path| self.files.get(path));
        let mut problems: Vec<_> = troubled.flat_map(|file| file.problems.iter().cloned()).collect();
        for reference in &self.doubled {
            let mut files = self.objects.get(reference).into_iter().flat_map(|entry| &entry.owners);
            let Some(first) = files.next() else { continue };
            for other in files {
                let slot = self.files.get(other).and_then(|file| file.objects.get(reference));
                let message = format!("is in {} too, which comes first by name and holds", first.display());
                let place = Place { file: Arc::clone(other), line: slot.map_or(1, |slot| slot.line) };
                problems.push(FieldError::error("", message).of(reference, Some(&place)));
            }
        }
        problems.sort();
        problems
    }

    fn own(&mut self, reference: &Arc<ObjectRef>, path: &Arc<Path>) {
        if let Some(entry) = self.objects.get_mut(reference) {
            entry.owners.insert(Arc::clone(path));
        } else {
            let mut entry = Entry::default();
            entry.owners.insert(Arc::clone(path));
            self.objects.insert(Arc::clone(reference), entry);
        }
    }

    /// Keeps the last good state of an object whose document is broken in its new file, unless a file has it whole.
    fn adopt(&mut self, stray: &Stray, touched: &mut BTreeSet<Arc<ObjectRef>>) {
        let known = self.objects.get_key_value(&stray.object);
        if known.is_some_and(|(_, entry)| !entry.owners.is_empty()) {
            return;
        }
        let last = known.and_then(|(_, entry)| entry.current.as_ref()).map(|(object, _)| object.clone());
        let Some(object) = last.or_else(|| stray.closed.clone().map(Kept::Whole)) else { return };
        let reference =
            known.map_or_else(|| Arc::new(stray.object.clone()), |(reference, _)| Arc::clone(reference));
        if let Some(file) = self.files.get_mut(&stray.path) {
            let slot = Slot { object, line: stray.line, digest: None };
            file.objects.insert(Arc::clone(&reference), slot);
            self.own(&reference, &stray.path);
            touched.insert(reference);
        }
    }

    /// Adds what is to be sent on of an object, after its files changed.
    fn settle(&mut self, reference: &Arc<ObjectRef>, changes: &mut Vec<Change>) {
        let Some(entry) = self.objects.get_mut(reference) else { return };
        if entry.owners.len() > 1 {
            self.doubled.insert(Arc::clone(reference));
        } else {
            self.doubled.remove(reference);
        }
        let first = entry.owners.iter().next();
        let held = first.and_then(|path| Some((path, self.files.get_mut(path)?.objects.get_mut(reference)?)));
        let Some((path, slot)) = held else {
            if self.objects.remove(reference).is_some_and(|entry| entry.current.is_some()) {
                changes.push(Change::Remove(ObjectRef::clone(reference)));
            }
            return;
        };
        let place = Place { file: Arc::clone(path), line: slot.line };
        let whole = if let Kept::Whole(object) = &slot.object { Some(object.clone()) } else { None };
        if let Some(object) = &whole {
            slot.object = Kept::pack(object);
        }
        let (same_object, same_place) = match &entry.current {
            Some((object, old_place)) => (*object == slot.object, *old_place == place),
            None => (false, false),
        };
        if !same_place {
            changes.push(Change::Place(ObjectRef::clone(reference), place.clone()));
        }
        if !same_object {
            changes.extend(whole.or_else(|| slot.object.object()).map(Change::Upsert));
        }
        if !same_object || !same_place {
            entry.current = Some((slot.object.clone(), place));
        }
    }
}

/// A broken document whose object its file did not hold before.
#[derive(Debug)]
struct Stray {
    path: Arc<Path>,
    line: u32,
    object: ObjectRef,
    closed: Option<Object>,
}

fn unreadable(path: &Path, old: File, message: &str) -> File {
    let kept = match (old.objects.is_empty(), old.recalled) {
        (true, _) => "",
        (_, false) => "; the last good state of its objects stays",
        (_, true) => "; the last good state of its objects, from before the control plane started, stays",
    };
    let problem = Diagnostic {
        severity: Severity::Error,
        reason: Reason::Invalid,
        file: Some(path.to_owned()),
        line: None,
        object: None,
        field: None,
        message: format!("cannot be read: {message}{kept}"),
    };
    File { objects: old.objects, problems: vec![problem], recalled: old.recalled }
}

fn read(path: &Arc<Path>, mut old: File, documents: Vec<Document>, strays: &mut Vec<Stray>) -> File {
    let mut new = File::default();
    let mut broken = Vec::new();
    for document in documents {
        let (reference, slot) = match document {
            Document::Same { line, object } => {
                let slot = old.objects.get(&object).or_else(|| new.objects.get(&object));
                let slot = slot.map(|slot| Slot { line, ..slot.clone() });
                (object, slot)
            }
            Document::Read(Parsed { line, digest, outcome }) => match outcome {
                Ok(object) => {
                    let slot = Slot { line, digest, object: Kept::Whole(object.clone()) };
                    (Arc::new(object.reference()), Some(slot))
                }
                Err(problem) => {
                    broken.push((line, problem));
                    continue;
                }
            },
        };
        let Some(slot) = slot else { continue };
        if let Some(first) = new.objects.get(&reference) {
            let place = Place { file: Arc::clone(path), line: slot.line };
            let message = format!("is on line {} too, which comes first and holds", first.line);
            new.problems.push(FieldError::error("", message).of(&reference, Some(&place)));
        } else {
            new.objects.insert(reference, slot);
        }
    }
    // Only what no good document of the file says anew can be the last good state of a broken one.
    old.objects.retain(|reference, _| !new.objects.contains_key(reference));
    for (line, problem) in broken {
        let was = |reference: &ObjectRef| match &problem.subject {
            Subject::Known(known) => known == reference,
            Subject::Named(name) => {
                reference.name == name.name
                    && (!reference.kind.is_namespaced() || reference.namespace == name.namespace)
            }
            Subject::Any(_) => true,
        };
        let kept: Vec<_> = old.objects.iter().filter(|(reference, _)| was(reference)).collect();
        new.recalled |= old.recalled && !kept.is_empty();
        let consequence = match (&problem.subject, kept.is_empty(), &problem.closed) {
            (_, false, _) if old.recalled => {
                "; the last good state of it, from before the control plane started, stays"
            }
            (Subject::Any(_), false, _) => "; the last good state of the file's objects stays",
            (_, false, _) => "; the last good state of it stays",
            (_, true, Some(Object::MeshPolicy(_))) => {
                "; until it is mended its last good state holds, or, where it has none, what can be read of it, and Strict where that is in doubt"
            }
            (_, true, Some(_)) => {
                "; until it is mended its last good state holds, or, where it has none, everything is denied to what it guards"
            }
            (_, true, None) => "; it is not used",
        };
        for (reference, held) in kept {
            new.objects.entry(Arc::clone(reference)).or_insert_with(|| held.clone());
        }
        let object = match &problem.subject {
            Subject::Known(known) => Some(known.clone()),
            Subject::Any(looks_like) => looks_like.clone(),
            Subject::Named(_) => None,
        };
        if let Some(object) = object.clone().filter(|object| !new.objects.contains_key(object)) {
            strays.push(Stray { path: Arc::clone(path), line, object, closed: problem.closed });
        }
        for (line, error) in problem.errors {
            new.problems.push(Diagnostic {
                severity: error.severity,
                reason: error.reason,
                file: Some(path.to_path_buf()),
                line: Some(line),
                object: object.clone(),
                field: (!error.field.is_empty()).then_some(error.field),
                message: format!("{}{consequence}", error.message),
            });
        }
    }
    new
}

#[cfg(test)]
mod tests;
