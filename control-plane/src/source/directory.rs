//! The directory source: every `*.yaml` and `*.yml` under a directory, and what becomes of it.
//!
//! The kernel's notices say which file to read again; a slow look at everything catches what they miss. A file is read
//! as soon as its writer closed it or renamed it into place, so that a save takes effect within milliseconds, and never
//! in the middle of a save: what looks empty or gone is looked at again before it is believed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Batch,
    catalog::{Catalog, Found},
    document,
    files::{self, Stamp},
    last_good::LastGood,
    notices::{self, Notice},
};
use crate::{
    diagnostics::{Diagnostic, Log, Reason, Severity},
    object::Change,
};

/// How often everything is looked at while the kernel gives notice, and while it does not. With notice, a look takes at
/// most a hundredth of the time, if that is not too rare.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_WITHOUT_NOTICE: Duration = Duration::from_millis(500);
const LOOK_SHARE: u32 = 100;
const LOOK_AT_LAST: Duration = Duration::from_secs(10);
/// Files that the first look takes at once: what they hold is written small before the next are read.
const PART: usize = 256;
/// After a file is whole: notices of the same save are taken together.
const TOGETHER: Duration = Duration::from_millis(5);
/// A file that is open for writing is read after this at the latest.
const WHILE_OPEN: Duration = Duration::from_millis(if cfg!(target_os = "linux") { 500 } else { 20 });
/// A file that looks gone or empty is believed after this; editors and shells make such moments.
const DOUBT_GONE: Duration = Duration::from_millis(60);
const DOUBT_EMPTY: Duration = Duration::from_millis(500);

/// What the directory holds now, and what is wrong with its files.
///
/// # Errors
/// When the directory cannot be read.
pub fn read(dir: &Path) -> io::Result<(Vec<Change>, Vec<Diagnostic>)> {
    let listing = files::list(dir)?;
    let mut catalog = Catalog::default();
    let found = |path: PathBuf| {
        let found = match files::read(&path) {
            Ok((text, _)) => Found::Documents(document::parse(&text, |_| None)),
            Err(error) => Found::Unreadable(error.to_string()),
        };
        (path, found)
    };
    let blind = listing.blind.into_iter().map(|(path, error)| (path, Found::Unreadable(error)));
    let changes = catalog.apply(listing.files.into_keys().map(found).chain(blind));
    Ok((changes, catalog.problems()))
}

/// Reads the directory, sends everything it holds, then what changes, until the receiver is gone. What its files held
/// when they were last good is kept in `state`, a directory that exists.
///
/// # Errors
/// When the directory cannot be read at the start.
pub async fn run(dir: PathBuf, state: PathBuf, tx: mpsc::Sender<Batch>) -> anyhow::Result<()> {
    let (notices, mut noticed) = mpsc::channel(4096);
    // Watched before it is first read, so that nothing falls between the two.
    let watcher = match notices::watch(&dir, notices) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "no notice of file changes; looking at all files instead");
            None
        }
    };
    let look = if watcher.is_some() { LOOK } else { LOOK_WITHOUT_NOTICE };
    let mut reader = Reader::new(dir.clone(), LastGood::new(&state));
    let mut log = Log::default();
    let mut pending = Pending::default();

    let mut work = Work { everything: true, ..Work::default() };
    let mut next_look = Instant::now();
    loop {
        let (everything, first, begin) = (work.everything, !reader.synced, Instant::now());
        let outcome = reader
            .work(work)
            .await
            .with_context(|| format!("cannot read the manifests in {}", dir.display()));
        let (back, outcome) = outcome?;
        reader = back;
        if everything {
            // The first look reads everything, and says nothing of how long another will take.
            let slow = watcher.is_some() && !first;
            let dear = if slow { (begin.elapsed() * LOOK_SHARE).min(LOOK_AT_LAST) } else { look };
            next_look = begin + look.max(dear);
        }
        if let Some(error) = outcome.failed.as_ref().filter(|_| !reader.synced) {
            anyhow::bail!("cannot read the manifests in {}: {error}", dir.display());
        }
        if !outcome.rest.is_empty() {
            // Nobody looks before everything is in, so it need not come in at once.
            let batch = Batch { changes: outcome.changes, ..Batch::default() };
            if tx.send(batch).await.is_err() {
                return Ok(());
            }
            work = Work { paths: outcome.rest, ..Work::default() };
            continue;
        }
        let now = Instant::now();
        for (path, wait) in outcome.again {
            pending.note(path, now, now + wait);
        }
        let synced_now = !reader.synced;
        reader.synced = true;
        // While a save is under way its half says nothing of what is wrong.
        let problems = if pending.is_empty() { reader.changed_problems() } else { None };
        if let Some(problems) = &problems {
            log.report(problems);
        }
        if synced_now || !outcome.changes.is_empty() || problems.is_some() {
            let batch = Batch { changes: outcome.changes, problems, synced: true, ..Batch::default() };
            if tx.send(batch).await.is_err() {
                return Ok(());
            }
        }
        // Collects notices until something is due.
        work = loop {
            let due = pending.due().map_or(next_look, |due| due.min(next_look));
            tokio::select! {
                () = tx.closed() => return Ok(()),
                () = tokio::time::sleep_until(due) => {
                    let now = Instant::now();
                    let mut work = pending.take(now);
                    work.everything |= now >= next_look;
                    break work;
                }
                Some(notice) = noticed.recv() => pending.take_notice(notice, Instant::now()),
            }
        };
    }
}

/// Which files are to be read, and when.
#[derive(Debug, Default)]
struct Pending {
    /// When the path was first noticed, and when it is due.
    paths: HashMap<PathBuf, (Instant, Instant)>,
    everything: Option<Instant>,
}

/// What is to be read now.
#[derive(Debug, Default)]
struct Work {
    paths: BTreeSet<PathBuf>,
    /// Everything whose stamp changed, beside the paths; but not what is still being written.
    everything: bool,
    busy: BTreeSet<PathBuf>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.everything.is_none()
    }

    fn take_notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Whole(path) => self.note(path, now, now + TOGETHER),
            Notice::Written(path) => {
                let first = self.paths.get(&path).map_or(now, |(first, _)| *first);
                self.note(path, now, first + WHILE_OPEN);
            }
            Notice::Everything => {
                self.everything.get_or_insert(now + TOGETHER);
            }
        }
    }

    /// However often a file is saved, it is read [`WHILE_OPEN`] after its first notice at the latest.
    fn note(&mut self, path: PathBuf, now: Instant, due: Instant) {
        let entry = self.paths.entry(path).or_insert((now, due));
        entry.1 = due.min(entry.0 + WHILE_OPEN);
    }

    fn due(&self) -> Option<Instant> {
        self.paths.values().map(|(_, due)| *due).chain(self.everything).min()
    }

    fn take(&mut self, now: Instant) -> Work {
        let mut work = Work::default();
        // What is due in a moment belongs to the same save: a rename is notices of two paths.
        let soon = now + TOGETHER;
        self.paths.retain(|path, (_, due)| {
            let later = *due > soon;
            let into = if later { &mut work.busy } else { &mut work.paths };
            into.insert(path.clone());
            later
        });
        if self.everything.is_some_and(|due| due <= soon) {
            self.everything = None;
            work.everything = true;
        }
        work
    }
}

/// Reads files and knows what they held.
#[derive(Debug)]
struct Reader {
    dir: PathBuf,
    catalog: Catalog,
    last_good: LastGood,
    known: BTreeMap<PathBuf, Known>,
    /// Since when a path looks gone or empty although it held objects.
    doubts: HashMap<PathBuf, Instant>,
    blind: Vec<(PathBuf, String)>,
    reported: Vec<Diagnostic>,
    synced: bool,
}

#[derive(Debug)]
struct Known {
    /// None: read it again next time, the stamp does not say enough.
    stamp: Option<Stamp>,
    digest: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    changes: Vec<crate::object::Change>,
    /// What is to be looked at again, and when.
    again: Vec<(PathBuf, Duration)>,
    /// The directory itself could not be read.
    failed: Option<String>,
    /// What the first look has not come to yet.
    rest: BTreeSet<PathBuf>,
}

impl Reader {
    fn new(dir: PathBuf, last_good: LastGood) -> Self {
        Self {
            dir,
            catalog: Catalog::default(),
            last_good,
            known: BTreeMap::new(),
            doubts: HashMap::new(),
            blind: Vec::new(),
            reported: Vec::new(),
            synced: false,
        }
    }

    /// Off the runtime's threads, since file systems block.
    async fn work(mut self, work: Work) -> anyhow::Result<(Self, Outcome)> {
        let task = move || {
            let outcome = self.read(work, Instant::now());
            (self, outcome)
        };
        Ok(tokio::task::spawn_blocking(task).await?)
    }

    fn read(&mut self, work: Work, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let mut paths = work.paths;
        if work.everything {
            match files::list(&self.dir) {
                Ok(listing) => {
                    let unseen = |path: &&PathBuf| {
                        let hidden = listing.blind.iter().any(|(blind, _)| path.starts_with(blind));
                        !hidden && !listing.files.contains_key(*path)
                    };
                    paths.extend(self.known.keys().filter(unseen).cloned());
                    let changed = |(path, stamp): &(&PathBuf, &Stamp)| {
                        self.known.get(*path).is_none_or(|known| known.stamp != Some(**stamp))
                    };
                    paths.extend(listing.files.iter().filter(changed).map(|(path, _)| path.clone()));
                    paths.retain(|path| !work.busy.contains(path));
                    // What cannot be seen may still be there.
                    if !self.synced && listing.blind.is_empty() {
                        self.last_good.retain(listing.files.keys());
                    }
                    self.blind = listing.blind;
                }
                Err(error) => {
                    self.blind = vec![(self.dir.clone(), error.to_string())];
                    outcome.failed = Some(error.to_string());
                }
            }
        }
        if !self.synced
            && let Some(next) = paths.iter().nth(PART).cloned()
        {
            outcome.rest = paths.split_off(&next);
        }
        let mut found = Vec::new();
        for path in paths {
            let is_new = !self.known.contains_key(&path);
            let Some(news) = self.find(&path, now, &mut outcome.again) else { continue };
            // Broken, and what it was is known only from before. Both in one part: the second is read in the light of
            // the first, and nothing is sent on in between.
            if is_new
                && news.is_broken()
                && let Some(before) = self.last_good.recall(&path)
            {
                found.push((path.clone(), Found::Recalled(before)));
            }
            found.push((path, news));
        }
        outcome.changes =
            if outcome.rest.is_empty() { self.catalog.apply(found) } else { self.catalog.apply_part(found) };
        outcome
    }

    /// What is at the path, when that is news.
    fn find(&mut self, path: &Path, now: Instant, again: &mut Vec<(PathBuf, Duration)>) -> Option<Found> {
        let (text, stamp) = match files::read(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.doubtful(path, now, DOUBT_GONE, again) {
                    return None;
                }
                self.last_good.forget(path);
                return self.known.remove(path).map(|_| Found::Gone);
            }
            Err(error) => {
                self.known.insert(path.to_owned(), Known { stamp: None, digest: 0 });
                return Some(Found::Unreadable(error.to_string()));
            }
        };
        if text.trim().is_empty() && self.doubtful(path, now, DOUBT_EMPTY, again) {
            return None;
        }
        self.doubts.remove(path);
        let digest = document::digest(&text);
        let stamp = stamp.is_settled(SystemTime::now()).then_some(stamp);
        let old = self.known.insert(path.to_owned(), Known { stamp, digest });
        let same = old.is_some_and(|old| old.digest == digest);
        if same {
            return None;
        }
        let known = self.catalog.documents(path);
        let documents = document::parse(&text, |digest| known.get(&digest).cloned());
        self.last_good.keep(path, &text, &documents);
        Some(Found::Documents(documents))
    }

    /// Whether what looks gone or empty is not to be believed yet.
    fn doubtful(
        &mut self,
        path: &Path,
        now: Instant,
        long: Duration,
        again: &mut Vec<(PathBuf, Duration)>,
    ) -> bool {
        if !self.catalog.holds(path) {
            return false;
        }
        let since = *self.doubts.entry(path.to_owned()).or_insert(now);
        let left = (since + long).saturating_duration_since(now);
        if left.is_zero() {
            self.doubts.remove(path);
            return false;
        }
        again.push((path.to_owned(), left));
        true
    }

    /// The whole list of problems, when it is another than last time.
    fn changed_problems(&mut self) -> Option<Vec<Diagnostic>> {
        let mut problems = self.catalog.problems();
        problems.extend(self.blind.iter().map(|(path, error)| Diagnostic {
            severity: Severity::Error,
            reason: Reason::Invalid,
            file: Some(path.clone()),
            line: None,
            object: None,
            field: None,
            message: format!("cannot be read: {error}; what is known of it stays"),
        }));
        (problems != self.reported).then(|| {
            self.reported.clone_from(&problems);
            problems
        })
    }
}

#[cfg(test)]
mod tests;
