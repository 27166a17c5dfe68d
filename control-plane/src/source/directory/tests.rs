//! Real files, written as editors, shells and kubelets write them. Waits for effects, never for a length of time.

use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;
use crate::object::{Change, Object};

/// Far longer than anything here takes: ends a test that would hang.
const LONG: Duration = Duration::from_secs(20);

struct World {
    dir: TempDir,
    state: TempDir,
    batches: mpsc::Receiver<Batch>,
    /// Node names of pods, which the tests change.
    pods: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl World {
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let (tx, batches) = mpsc::channel(16);
        let state = tempfile::tempdir().unwrap();
        tokio::spawn(run(dir.path().to_owned(), state.path().to_owned(), tx));
        let mut world = Self { dir, state, batches, pods: BTreeMap::new(), problems: Vec::new() };
        while !world.next().await.synced {}
        world
    }

    /// The control plane ends, something happens to the files, and it starts again.
    async fn restart(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { dir, state, batches, .. } = self;
        drop(batches);
        meanwhile(dir.path());
        let (tx, batches) = mpsc::channel(16);
        tokio::spawn(run(dir.path().to_owned(), state.path().to_owned(), tx));
        let mut world = Self { dir, state, batches, pods: BTreeMap::new(), problems: Vec::new() };
        while !world.next().await.synced {}
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn next(&mut self) -> Batch {
        let batch = tokio::time::timeout(LONG, self.batches.recv()).await.expect("no batch").unwrap();
        for change in &batch.changes {
            match change {
                Change::Upsert(Object::Pod(pod)) => {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                    self.pods.insert(pod.metadata.name.clone().unwrap(), node);
                }
                Change::Remove(reference) => {
                    self.pods.remove(&reference.name);
                }
                _ => {}
            }
        }
        if let Some(problems) = &batch.problems {
            self.problems = problems.iter().map(ToString::to_string).collect();
        }
        batch
    }

    /// Follows the batches until the pods are these; at no moment before may one of `never_gone` be missing.
    async fn until(&mut self, pods: &[(&str, &str)], never_gone: &[&str]) {
        let wanted: BTreeMap<_, _> =
            pods.iter().map(|(name, node)| ((*name).to_owned(), (*node).to_owned())).collect();
        while self.pods != wanted {
            self.next().await;
            for name in never_gone {
                assert!(self.pods.contains_key(*name), "{name} was gone for a moment");
            }
        }
    }
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}, containers: []}}\n"
    )
}

#[tokio::test]
async fn files_that_are_written_changed_and_deleted_take_effect() {
    let mut world = World::new(|dir| fs::write(dir.join("a.yaml"), pod("a", "1")).unwrap()).await;
    world.until(&[("a", "1")], &[]).await;
    fs::create_dir_all(world.at("deep/er")).unwrap();
    fs::write(world.at("deep/er/b.yml"), pod("b", "1")).unwrap();
    fs::write(world.at("not.txt"), pod("c", "1")).unwrap();
    world.until(&[("a", "1"), ("b", "1")], &["a"]).await;
    fs::write(world.at("deep/er/b.yml"), pod("b", "2")).unwrap();
    world.until(&[("a", "1"), ("b", "2")], &["a", "b"]).await;
    fs::remove_file(world.at("a.yaml")).unwrap();
    world.until(&[("b", "2")], &["b"]).await;
    fs::remove_dir_all(world.at("deep")).unwrap();
    world.until(&[], &[]).await;
}

#[tokio::test]
async fn no_way_to_save_a_file_loses_its_objects_for_a_moment() {
    let mut world = World::new(|dir| fs::write(dir.join("a.yaml"), pod("a", "0")).unwrap()).await;
    world.until(&[("a", "0")], &[]).await;
    // Renamed into place.
    fs::write(world.at(".a.yaml.tmp"), pod("a", "1")).unwrap();
    fs::rename(world.at(".a.yaml.tmp"), world.at("a.yaml")).unwrap();
    world.until(&[("a", "1")], &["a"]).await;
    // The old one out of the way first, as vim does.
    fs::rename(world.at("a.yaml"), world.at("a.yaml~")).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    fs::write(world.at("a.yaml"), pod("a", "2")).unwrap();
    world.until(&[("a", "2")], &["a"]).await;
    // Emptied, and written in two parts, as `generate > a.yaml` does.
    let mut file = fs::File::create(world.at("a.yaml")).unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    io::Write::write_all(&mut file, pod("b", "3").as_bytes()).unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    io::Write::write_all(&mut file, pod("a", "3").as_bytes()).unwrap();
    drop(file);
    world.until(&[("a", "3"), ("b", "3")], &["a"]).await;
    // Split over two files.
    fs::write(world.at("b.yaml"), pod("b", "4")).unwrap();
    fs::write(world.at("a.yaml"), pod("a", "4")).unwrap();
    world.until(&[("a", "4"), ("b", "4")], &["a", "b"]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_when_its_link_is_swapped() {
    let mut world = World::new(|dir| {
        fs::create_dir(dir.join("..1")).unwrap();
        fs::write(dir.join("..1/a.yaml"), pod("a", "1")).unwrap();
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
    })
    .await;
    world.until(&[("a", "1")], &[]).await;
    fs::create_dir(world.at("..2")).unwrap();
    fs::write(world.at("..2/a.yaml"), pod("a", "2")).unwrap();
    symlink("..2", world.at("..data_tmp")).unwrap();
    fs::rename(world.at("..data_tmp"), world.at("..data")).unwrap();
    fs::remove_dir_all(world.at("..1")).unwrap();
    world.until(&[("a", "2")], &["a"]).await;
}

#[tokio::test]
async fn what_breaks_is_reported_and_stays_as_it_was_until_it_is_mended() {
    let mut world =
        World::new(|dir| fs::write(dir.join("a.yaml"), pod("a", "1") + &pod("b", "1")).unwrap()).await;
    world.until(&[("a", "1"), ("b", "1")], &[]).await;
    fs::write(world.at("a.yaml"), pod("a", "2") + &pod("b", "2").replace("nodeName", "nodename")).unwrap();
    world.until(&[("a", "2"), ("b", "1")], &["a", "b"]).await;
    while world.problems.is_empty() {
        world.next().await;
    }
    let place = format!("{}:10: Pod default/b: spec.nodename: is not a field", world.at("a.yaml").display());
    assert!(world.problems[0].starts_with(&place), "{:?}", world.problems);
    fs::write(world.at("a.yaml"), pod("a", "3") + &pod("b", "3")).unwrap();
    world.until(&[("a", "3"), ("b", "3")], &["a", "b"]).await;
    while !world.problems.is_empty() {
        world.next().await;
    }
}

#[tokio::test]
async fn a_file_that_is_broken_at_the_start_means_what_it_meant_before() {
    let wrong = pod("b", "2").replace("nodeName", "nodename");
    let mut world = World::new(|dir| {
        fs::write(dir.join("a.yaml"), pod("a", "1") + &pod("b", "1")).unwrap();
        fs::write(dir.join("gone.yaml"), pod("gone", "1")).unwrap();
    })
    .await;
    world.until(&[("a", "1"), ("b", "1"), ("gone", "1")], &[]).await;
    fs::write(world.at("a.yaml"), pod("a", "2") + &wrong).unwrap();
    world.until(&[("a", "2"), ("b", "1"), ("gone", "1")], &["a", "b"]).await;

    // Broken before and still.
    world = world.restart(|dir| fs::remove_file(dir.join("gone.yaml")).unwrap()).await;
    world.until(&[("a", "2"), ("b", "1")], &[]).await;
    assert!(
        world.problems[0].ends_with("from before the control plane started, stays"),
        "{:?}",
        world.problems
    );

    // Broken while nobody looked, so badly that nothing of it can be read.
    fs::write(world.at("a.yaml"), pod("a", "3") + &pod("b", "3")).unwrap();
    world.until(&[("a", "3"), ("b", "3")], &["a", "b"]).await;
    world = world.restart(|dir| fs::write(dir.join("a.yaml"), "kind: [\n").unwrap()).await;
    world.until(&[("a", "3"), ("b", "3")], &[]).await;

    // Deleted, and then back, broken: what was deleted is forgotten.
    world = world.restart(|dir| fs::remove_file(dir.join("a.yaml")).unwrap()).await;
    world.until(&[], &[]).await;
    world = world.restart(|dir| fs::write(dir.join("a.yaml"), pod("a", "4") + &wrong).unwrap()).await;
    world.until(&[("a", "4")], &[]).await;
}

#[tokio::test]
async fn in_a_first_look_of_several_parts_broken_files_of_each_mean_what_they_meant_before() {
    let names: Vec<_> = (0..=2 * PART).map(|number| format!("p{number:04}")).collect();
    let file = |name: &str| format!("{name}.yaml");
    let expected: Vec<_> = names.iter().map(|name| (&**name, "1")).collect();
    let mut world = World::new(|dir| {
        for name in &names {
            fs::write(dir.join(file(name)), pod(name, "1")).unwrap();
        }
    })
    .await;
    world.until(&expected, &[]).await;
    let broken = [&names[0], &names[PART], &names[2 * PART]];
    world = world
        .restart(|dir| {
            for name in broken {
                fs::write(dir.join(file(name)), "kind: [\n").unwrap();
            }
        })
        .await;
    world.until(&expected, &[]).await;
    assert_eq!(world.problems.len(), broken.len(), "{:?}", world.problems);
    // Mended to what it was: nothing changes but what is said.
    fs::write(world.at(&file(broken[0])), pod(broken[0], "1")).unwrap();
    while world.problems.len() == broken.len() {
        world.next().await;
    }
    world.until(&expected, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_that_names_it() {
    let (tx, _batches) = mpsc::channel(1);
    let error = run("/nowhere/at/all".into(), "/nowhere".into(), tx).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("cannot read the manifests in /nowhere/at/all: "), "{error:#}");
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let (tx, batches) = mpsc::channel(1);
    let source = tokio::spawn(run(dir.path().to_owned(), dir.path().join("state"), tx));
    drop(batches);
    tokio::time::timeout(LONG, source).await.expect("still running").unwrap().unwrap();
}

#[test]
fn a_file_that_is_saved_without_end_is_read_all_the_same() {
    let (mut pending, start) = (Pending::default(), Instant::now());
    let (mut read, mut looked) = (false, false);
    for step in 0..2000 {
        let now = start + Duration::from_millis(step);
        pending.take_notice(Notice::Whole("a.yaml".into()), now);
        pending.take_notice(Notice::Everything, now);
        if pending.due().is_some_and(|due| due <= now) {
            let work = pending.take(now);
            read |= !work.paths.is_empty();
            looked |= work.everything;
        }
    }
    assert!(read && looked);
}
