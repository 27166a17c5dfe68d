//! What files' changes make of the objects, and what is said of the broken ones.

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
                // As the directory source does it: what is known of the file is not read again.
                let known = self.0.documents(Path::new(path));
                let documents = |text| parse(text, |digest| known.get(&digest).cloned());
                let found = text.map_or(Found::Gone, |text| Found::Documents(documents(text)));
                (PathBuf::from(path), found)
            })
            .collect::<Vec<_>>();
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
        world.problems().iter().any(|p| p.contains("1.yaml:10: Pod shop/b: spec.contianers: is not a field"))
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
    let found = [Found::Recalled(parse(&good, |_| None)), Found::Documents(parse(&wrong, |_| None))];
    let mut changes = world.0.apply(found.map(|found| (path.clone(), found)));
    changes.retain(|change| matches!(change, Change::Upsert(_)));
    assert_eq!(changes.len(), 2, "each object once: {changes:?}");
    let said = "; the last good state of it, from before the control plane started, stays";
    assert!(world.problems()[0].ends_with(said), "{:?}", world.problems());
    let kept = world.0.documents(&path);
    assert!(kept.values().any(|object| object.name == "b"), "what was recalled need not be read again");
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
fn a_broken_document_of_one_part_gives_way_to_a_good_one_of_a_later_part() {
    let policy = |action: &str| {
        format!(
            "kind: AccessPolicy\napiVersion: heddle.dev/v1alpha1\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: reviews}}], action: {action}}}\n"
        )
    };
    let found = |path: &str, text: &str| [(PathBuf::from(path), Found::Documents(parse(text, |_| None)))];
    let mut catalog = Catalog::default();
    assert_eq!(catalog.apply_part(found("1.yaml", &policy("Alow"))), []);
    let changes = catalog.apply(found("2.yaml", &policy("Allow")));
    let used = changes.iter().find_map(|change| match change {
        Change::Upsert(Object::AccessPolicy(policy)) => Some(policy.spec.action),
        _ => None,
    });
    assert_eq!(used, Some(heddle_api::resources::AccessAction::Allow));
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
