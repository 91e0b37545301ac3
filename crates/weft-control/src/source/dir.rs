//! Directories of YAML and JSON files, watched.
//!
//! A notification only says "look again": after a short quiet time the directories are scanned
//! and compared by content, so atomic renames, editors' temporary files and lost notifications
//! all end the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::world::{Event, FileChange};

/// Quiet time after a notification before looking: an editor's save is several of them.
const QUIET: Duration = Duration::from_millis(50);
/// Looking is not put off longer than this while notifications keep coming.
const PATIENCE: Duration = Duration::from_millis(500);
/// Look even without a notification: network file systems send none.
const RESCAN: Duration = Duration::from_secs(30);
/// How long a file may be empty before that is taken as meant.
const EMPTIED: Duration = Duration::from_millis(250);
/// Files in all directories together.
const FILES_MAX: usize = 50_000;
/// At the first look, when nothing can be missing yet, resources are handed on by so many: all of
/// them at once would need as much memory again as the world they make.
const FIRST_PIECE: usize = 2000;
/// Directory levels below a watched one.
const DEPTH_MAX: usize = 32;

/// Why watching could not start.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error("cannot read the configuration directory {path}: {source}; check --config-dir")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot watch the configuration directory {path}: {source}")]
    Watch { path: PathBuf, source: notify::Error },
}

/// Reads the directories once, says [`Event::Synced`], then follows changes on a task of the
/// current runtime until the world is gone.
///
/// # Errors
/// When a directory cannot be read or watched. A file that cannot be read later is an error
/// diagnostic, and its resources stay.
pub async fn watch(dirs: Vec<PathBuf>, events: mpsc::Sender<Event>) -> Result<(), DirError> {
    let (wake, wakes) = mpsc::channel(1);
    let notified = move |_: notify::Result<notify::Event>| {
        // A full channel already holds the wake-up that is needed.
        let _ = wake.try_send(());
    };
    for path in &dirs {
        let read = std::fs::read_dir(path);
        read.map_err(|source| DirError::Read { path: path.clone(), source })?;
    }
    let first = dirs.first().cloned().unwrap_or_default();
    let mut watcher = notify::recommended_watcher(notified)
        .map_err(|source| DirError::Watch { path: first, source })?;
    for path in &dirs {
        watcher
            .watch(path, RecursiveMode::Recursive)
            .map_err(|source| DirError::Watch { path: path.clone(), source })?;
    }
    let scanner = Scanner { dirs, ..Scanner::default() };
    // A closed world is no error: it is being shut down.
    if let Some(scanner) = look(scanner, &events).await
        && events.send(Event::Synced).await.is_ok()
    {
        tokio::spawn(follow(scanner, watcher, wakes, events));
    }
    Ok(())
}

async fn follow(
    mut scanner: Scanner,
    _watcher: notify::RecommendedWatcher,
    mut wakes: mpsc::Receiver<()>,
    events: mpsc::Sender<Event>,
) {
    loop {
        let wait = if scanner.emptied.is_empty() { RESCAN } else { EMPTIED };
        tokio::select! {
            () = events.closed() => return,
            () = quiet(&mut wakes) => {}
            () = tokio::time::sleep(wait) => {}
        }
        match look(scanner, &events).await {
            Some(back) => scanner = back,
            None => return,
        }
    }
}

/// Scans off the runtime and sends what differs; `None` when nobody listens any more.
async fn look(mut scanner: Scanner, events: &mpsc::Sender<Event>) -> Option<Scanner> {
    let events = events.clone();
    let scanned = tokio::task::spawn_blocking(move || {
        let listened = scanner.scan(|files| events.blocking_send(Event::Files(files)).is_ok());
        listened.then_some(scanner)
    });
    scanned.await.ok()?
}

/// Returns some quiet time after a wake-up.
async fn quiet(wakes: &mut mpsc::Receiver<()>) {
    if wakes.recv().await.is_none() {
        return std::future::pending().await;
    }
    let latest = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < latest {
        match tokio::time::timeout(QUIET, wakes.recv()).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

#[derive(Default)]
struct Scanner {
    dirs: Vec<PathBuf>,
    /// Content of each file at the last look, as a hash; `None` when it could not be read.
    files: BTreeMap<PathBuf, Option<u64>>,
    /// Files found empty at the last look that were not before: perhaps being rewritten.
    emptied: BTreeSet<PathBuf>,
}

impl Scanner {
    /// Sends what differs from the last look; false when `send` said so.
    fn scan(&mut self, mut send: impl FnMut(Vec<FileChange>) -> bool) -> bool {
        let mut found = BTreeSet::new();
        let mut complete = true;
        let mut visited = BTreeSet::new();
        for dir in &self.dirs {
            complete &= list(dir, 0, &mut visited, &mut found);
        }
        let (first, mut resources) = (self.files.is_empty(), 0);
        let mut changes = Vec::new();
        for path in &found {
            let Some(change) = self.look(path) else { continue };
            resources += change.content.as_ref().map_or(0, |(objects, _)| objects.len());
            changes.push(change);
            if first && resources >= FIRST_PIECE {
                if !send(std::mem::take(&mut changes)) {
                    return false;
                }
                resources = 0;
            }
        }
        // A directory that cannot be listed must not delete what it held.
        if complete {
            let gone: Vec<PathBuf> =
                self.files.keys().filter(|path| !found.contains(*path)).cloned().collect();
            for path in gone {
                self.files.remove(&path);
                self.emptied.remove(&path);
                changes.push(FileChange { file: name(&path), content: None });
            }
        }
        changes.is_empty() || send(changes)
    }

    fn look(&mut self, path: &Path) -> Option<FileChange> {
        let file = name(path);
        let text = match read(path) {
            Ok(text) => text,
            // Gone between listing and reading: the next scan says so.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                if self.files.insert(path.to_path_buf(), None) == Some(None) {
                    return None;
                }
                let diagnostics = vec![unreadable(&file, &error)];
                return Some(FileChange { file, content: Some((Vec::new(), diagnostics)) });
            }
        };
        let hash = hash(&text);
        if self.files.get(path) == Some(&Some(hash)) {
            self.emptied.remove(path);
            return None;
        }
        // Some editors truncate before they write; an empty file counts when it stays empty.
        if text.is_empty() && self.files.contains_key(path) && self.emptied.insert(path.into()) {
            return None;
        }
        self.emptied.remove(path);
        self.files.insert(path.to_path_buf(), Some(hash));
        let content = weft_model::parse_yaml(&file, &text);
        Some(FileChange { file, content: Some(content) })
    }
}

/// Collects configuration files below `dir`; false when some of it could not be listed.
/// `visited` holds device and inode of directories, so that links cannot go in circles.
fn list(
    dir: &Path,
    depth: usize,
    visited: &mut BTreeSet<(u64, u64)>,
    found: &mut BTreeSet<PathBuf>,
) -> bool {
    let Ok(meta) = std::fs::metadata(dir) else { return false };
    if !visited.insert((meta.dev(), meta.ino())) {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let mut complete = true;
    for entry in entries {
        let Ok(entry) = entry else { return false };
        let path = entry.path();
        // Hidden ones are editors' and version control's, and ..data of mounted ConfigMaps.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Follows links: mounted ConfigMaps are made of them.
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && depth < DEPTH_MAX => {
                complete &= list(&path, depth + 1, visited, found);
            }
            Ok(meta) if meta.is_file() && is_config(&path) && found.len() < FILES_MAX => {
                found.insert(path);
            }
            _ => {}
        }
    }
    complete
}

fn is_config(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads at most one byte more than the parser takes, so that a giant is refused, not loaded.
fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    file.take(weft_model::FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn name(path: &Path) -> Arc<str> {
    Arc::from(path.to_string_lossy())
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn unreadable(file: &Arc<str>, error: &std::io::Error) -> weft_model::Diagnostic {
    let origin = weft_model::Origin { file: file.clone(), document: 0, line: 0 };
    weft_model::Diagnostic::new(
        weft_model::Severity::Error,
        "WEFT0001",
        &origin,
        "",
        format!("cannot read the file: {error}"),
    )
    .with_help("Its resources keep their last valid version.")
}

#[cfg(test)]
mod tests;
