//! Which objects the files hold, with their last good state. Pure: files' contents in, changes and problems out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use super::document::{Parsed, Subject};
use crate::{
    diagnostics::{Diagnostic, FieldError, Place, Reason, Severity},
    object::{Change, Object, ObjectRef},
};

/// What was found at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// A file with these documents.
    Documents(Vec<Parsed>),
    /// What the file held when it was last good, before this process began. What it is now comes next.
    Recalled(Vec<Parsed>),
    /// A file that cannot be read, and why. What it held stays.
    Unreadable(String),
    /// Nothing any more.
    Gone,
}

impl Found {
    /// Whether something there cannot be used.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Documents(documents) => documents.iter().any(|parsed| parsed.outcome.is_err()),
            Self::Unreadable(_) => true,
            Self::Recalled(_) | Self::Gone => false,
        }
    }
}

/// All files' objects.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: BTreeMap<PathBuf, File>,
    /// In which files an object is; the first by name is the one that holds.
    owners: BTreeMap<ObjectRef, BTreeSet<PathBuf>>,
    /// What was sent on.
    current: HashMap<ObjectRef, (Object, Place)>,
    /// Objects that are in more than one file.
    doubled: BTreeSet<ObjectRef>,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectRef, (Object, u32)>,
    problems: Vec<Diagnostic>,
    /// What is kept of it is from before this process began.
    recalled: bool,
}

impl Catalog {
    /// Takes what changed in one transaction.
    pub(super) fn apply(&mut self, found: Vec<(PathBuf, Found)>) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        // Broken documents whose object the file did not have: it may just have moved here from another file.
        let mut strays = Vec::new();
        for (path, found) in found {
            let old = self.files.remove(&path).unwrap_or_default();
            touched.extend(old.objects.keys().cloned());
            for reference in old.objects.keys() {
                self.disown(reference, &path);
            }
            let new = match found {
                Found::Gone => continue,
                Found::Unreadable(message) => unreadable(&path, old, &message),
                Found::Documents(documents) => read(&path, old, documents, &mut strays),
                Found::Recalled(documents) => {
                    File { recalled: true, ..read(&path, old, documents, &mut strays) }
                }
            };
            for reference in new.objects.keys() {
                self.owners.entry(reference.clone()).or_default().insert(path.clone());
            }
            touched.extend(new.objects.keys().cloned());
            self.files.insert(path, new);
        }
        for stray in strays {
            self.adopt(&stray, &mut touched);
        }
        // Once for each object, however often its file is in `found`.
        touched.into_iter().flat_map(|reference| self.settle(&reference)).collect()
    }

    /// Whether something was read from the path.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| !file.objects.is_empty())
    }

    /// Everything that is wrong, in the order of files and lines.
    pub(super) fn problems(&self) -> Vec<Diagnostic> {
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        for reference in &self.doubled {
            let mut files = self.owners.get(reference).into_iter().flatten();
            let Some(first) = files.next() else { continue };
            for other in files {
                let line = self
                    .files
                    .get(other)
                    .and_then(|file| file.objects.get(reference))
                    .map_or(1, |(_, line)| *line);
                let message = format!("is in {} too, which comes first by name and holds", first.display());
                let place = Place { file: other.clone(), line };
                problems.push(FieldError::error("", message).of(reference, Some(&place)));
            }
        }
        problems.sort();
        problems
    }

    fn disown(&mut self, reference: &ObjectRef, path: &Path) {
        if let Some(paths) = self.owners.get_mut(reference) {
            paths.remove(path);
            if paths.is_empty() {
                self.owners.remove(reference);
            }
        }
    }

    /// Keeps the last good state of an object whose document is broken in its new file, unless a file has it whole.
    fn adopt(&mut self, stray: &Stray, touched: &mut BTreeSet<ObjectRef>) {
        if self.owners.contains_key(&stray.object) {
            return;
        }
        let last = self.current.get(&stray.object).map(|(object, _)| object.clone());
        let Some(object) = last.or_else(|| stray.closed.clone()) else { return };
        if let Some(file) = self.files.get_mut(&stray.path) {
            file.objects.insert(stray.object.clone(), (object, stray.line));
            self.owners.entry(stray.object.clone()).or_default().insert(stray.path.clone());
            touched.insert(stray.object.clone());
        }
    }

    /// What is to be sent on of an object, after its files changed.
    fn settle(&mut self, reference: &ObjectRef) -> Vec<Change> {
        let owners = self.owners.get(reference);
        if owners.is_some_and(|paths| paths.len() > 1) {
            self.doubled.insert(reference.clone());
        } else {
            self.doubled.remove(reference);
        }
        let first = owners.and_then(|paths| paths.first());
        let held = first.and_then(|path| Some((path, self.files.get(path)?.objects.get(reference)?)));
        let Some((path, (object, line))) = held else {
            return self
                .current
                .remove(reference)
                .map(|_| Change::Remove(reference.clone()))
                .into_iter()
                .collect();
        };
        let place = Place { file: path.clone(), line: *line };
        let old = self.current.insert(reference.clone(), (object.clone(), place.clone()));
        let (same_object, same_place) = old.map_or((false, false), |(o, p)| (o == *object, p == place));
        let mut changes = Vec::new();
        if !same_place {
            changes.push(Change::Place(reference.clone(), place));
        }
        if !same_object {
            changes.push(Change::Upsert(object.clone()));
        }
        changes
    }
}

/// A broken document whose object its file did not hold before.
struct Stray {
    path: PathBuf,
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

fn read(path: &Path, mut old: File, documents: Vec<Parsed>, strays: &mut Vec<Stray>) -> File {
    let mut new = File::default();
    let mut broken = Vec::new();
    for Parsed { line, outcome } in documents {
        match outcome {
            Ok(object) => {
                let reference = object.reference();
                if let Some((_, first)) = new.objects.get(&reference) {
                    let place = Place { file: path.to_owned(), line };
                    let message = format!("is on line {first} too, which comes first and holds");
                    new.problems.push(FieldError::error("", message).of(&reference, Some(&place)));
                } else {
                    new.objects.insert(reference, (object, line));
                }
            }
            Err(problem) => broken.push((line, problem)),
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
            new.objects.entry(reference.clone()).or_insert_with(|| held.clone());
        }
        let object = match &problem.subject {
            Subject::Known(known) => Some(known.clone()),
            Subject::Any(looks_like) => looks_like.clone(),
            Subject::Named(_) => None,
        };
        if let Some(object) = object.clone().filter(|object| !new.objects.contains_key(object)) {
            strays.push(Stray { path: path.to_owned(), line, object, closed: problem.closed });
        }
        for (line, error) in problem.errors {
            new.problems.push(Diagnostic {
                severity: error.severity,
                reason: error.reason,
                file: Some(path.to_owned()),
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
mod tests {
    use super::{super::document::parse, *};

    fn pod(name: &str, image: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: {image}, containers: []}}\n"
        )
    }

    const BROKEN: &str = "---\nkind: [\n";

    struct World(Catalog);

    impl World {
        fn new() -> Self {
            Self(Catalog::default())
        }

        /// Writes files and says what changed: `+name` or `-name`.
        fn write(&mut self, files: &[(&str, Option<&str>)]) -> Vec<String> {
            let found = files
                .iter()
                .map(|(path, text)| {
                    let found = text.map_or(Found::Gone, |text| Found::Documents(parse(text)));
                    (PathBuf::from(path), found)
                })
                .collect();
            let changes = self.0.apply(found).into_iter().filter_map(|change| match change {
                Change::Upsert(object) => Some(format!("+{}", object.reference().name)),
                Change::Remove(reference) => Some(format!("-{}", reference.name)),
                Change::Place(..) => None,
            });
            changes.collect()
        }

        fn problems(&self) -> Vec<String> {
            self.0.problems().iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn only_what_changed_is_sent_on() {
        let mut world = World::new();
        let two = pod("a", "x") + &pod("b", "x");
        assert_eq!(world.write(&[("1.yaml", Some(&two))]), ["+a", "+b"]);
        assert_eq!(world.write(&[("1.yaml", Some(&two))]), [""; 0]);
        assert_eq!(world.write(&[("1.yaml", Some(&(pod("a", "x") + &pod("b", "y"))))]), ["+b"]);
        assert_eq!(world.write(&[("1.yaml", Some(&pod("b", "y")))]), ["-a"]);
        assert_eq!(world.write(&[("1.yaml", None)]), ["-b"]);
    }

    #[test]
    fn a_document_that_breaks_keeps_its_last_good_state_until_it_is_mended_or_deleted() {
        let mut world = World::new();
        world.write(&[("1.yaml", Some(&(pod("a", "x") + &pod("b", "x"))))]);
        let wrong = pod("b", "x").replace("containers", "contianers");
        assert_eq!(world.write(&[("1.yaml", Some(&(pod("a", "y") + &wrong)))]), ["+a"]);
        assert!(
            world
                .problems()
                .iter()
                .any(|p| p.contains("1.yaml:10: Pod shop/b: spec.contianers: is not a field"))
        );
        assert!(world.problems()[0].ends_with("; the last good state of it stays"));
        assert_eq!(world.write(&[("1.yaml", Some(BROKEN))]), [""; 0], "all of the file stays");
        assert_eq!(world.write(&[("1.yaml", Some(&pod("a", "z")))]), ["+a", "-b"]);
        assert!(world.problems().is_empty());
    }

    #[test]
    fn a_misspelt_kind_keeps_the_object_of_that_name_alone() {
        let mut world = World::new();
        world.write(&[("1.yaml", Some(&(pod("a", "x") + &pod("b", "x"))))]);
        let wrong = pod("a", "x").replace("kind: Pod", "kind: Pdo");
        assert_eq!(world.write(&[("1.yaml", Some(&wrong))]), ["-b"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_everything() {
        let mut world = World::new();
        world.write(&[("1.yaml", Some(&pod("a", "x")))]);
        let changes = world.0.apply(vec![("1.yaml".into(), Found::Unreadable("permission denied".into()))]);
        assert_eq!(changes, []);
        assert_eq!(
            world.problems(),
            ["1.yaml: cannot be read: permission denied; the last good state of its objects stays"]
        );
    }

    #[test]
    fn a_broken_file_begins_with_what_was_recalled_of_it() {
        let mut world = World::new();
        let good = pod("a", "x") + &pod("b", "x");
        let wrong = pod("a", "y") + &pod("b", "x").replace("containers", "contianers");
        let path = PathBuf::from("1.yaml");
        let found = [Found::Recalled(parse(&good)), Found::Documents(parse(&wrong))];
        let mut changes = world.0.apply(found.map(|found| (path.clone(), found)).into());
        changes.retain(|change| matches!(change, Change::Upsert(_)));
        assert_eq!(changes.len(), 2, "each object once: {changes:?}");
        let said = "; the last good state of it, from before the control plane started, stays";
        assert!(world.problems()[0].ends_with(said), "{:?}", world.problems());
        // As long as it is broken.
        assert_eq!(world.write(&[("1.yaml", Some(BROKEN))]), [""; 0]);
        assert!(world.problems()[0].ends_with(said), "{:?}", world.problems());
        assert_eq!(world.write(&[("1.yaml", Some(&pod("b", "z")))]), ["-a", "+b"]);
        assert_eq!(world.write(&[("1.yaml", Some(BROKEN))]), [""; 0]);
        assert!(world.problems()[0].ends_with("state of the file's objects stays"), "{:?}", world.problems());
    }

    #[test]
    fn of_an_object_in_two_files_the_first_by_name_holds_and_both_are_named() {
        let mut world = World::new();
        world.write(&[("2.yaml", Some(&pod("a", "second")))]);
        assert_eq!(world.write(&[("1.yaml", Some(&pod("a", "first")))]), ["+a"]);
        assert_eq!(
            world.problems(),
            ["2.yaml:2: Pod shop/a: is in 1.yaml too, which comes first by name and holds"]
        );
        assert_eq!(world.write(&[("2.yaml", Some(&pod("a", "third")))]), [""; 0]);
        assert_eq!(world.write(&[("1.yaml", None)]), ["+a"]);
        assert!(world.problems().is_empty());
    }

    #[test]
    fn an_object_that_moves_to_another_file_is_not_removed_in_between() {
        let mut world = World::new();
        world.write(&[("1.yaml", Some(&pod("a", "x")))]);
        assert_eq!(world.write(&[("1.yaml", None), ("2.yaml", Some(&pod("a", "x")))]), [""; 0]);
        let wrong = pod("a", "x").replace("containers", "contianers");
        assert_eq!(
            world.write(&[("2.yaml", None), ("3.yaml", Some(&wrong))]),
            [""; 0],
            "not even when it breaks"
        );
    }

    #[test]
    fn an_access_policy_that_was_never_good_denies() {
        let policy = |action: &str| {
            format!(
                "kind: AccessPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: reviews}}], action: {action}}}\n"
            )
        };
        let mut world = World::new();
        assert_eq!(world.write(&[("1.yaml", Some(&policy("Alow")))]), ["+p"]);
        assert!(world.problems()[0].contains("everything is denied"), "{:?}", world.problems());
        assert_eq!(world.write(&[("1.yaml", Some(&policy("Allow")))]), ["+p"]);
        assert_eq!(world.write(&[("1.yaml", Some(&policy("Alow")))]), [""; 0], "the last good one stays");
    }
}
