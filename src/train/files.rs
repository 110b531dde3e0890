//! Files that are whole or not there.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The name under which a file is written before it takes its place: of this process, and of the first `attempt` that is free. A name
/// without either may be that of the input, or what another process writes at this time.
fn beside(path: &Path, attempt: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{attempt}.partial", std::process::id()));
    path.with_file_name(name)
}

/// What [`beside`] was told, of a name, from whatever process.
fn in_place(name: &str) -> Option<&str> {
    // Without numbers as earlier versions wrote it.
    let name = name.strip_suffix(".partial")?;
    let numbered = |name: &str| {
        let (name, number) = name.rsplit_once('.')?;
        (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(name.len())
    };
    Some(numbered(name).and_then(|end| numbered(&name[..end])).map_or(name, |end| &name[..end]))
}

/// What is being written at this moment, by all threads.
static PARTIALS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn partials() -> MutexGuard<'static, Vec<PathBuf>> {
    // A list of paths is as good as it was whoever panicked.
    PARTIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file's name in that list for as long as this lives.
struct Partial(PathBuf);

impl Partial {
    /// Begins the file that is to be `path`.
    fn of(path: &Path) -> Result<(Self, File)> {
        let mut attempt = 0;
        // Without the list's lock: to create a file may block, on a network's disk for one, and [`abandon`] must not wait for that.
        let (partial, file) = loop {
            let partial = beside(path, attempt);
            match File::options().write(true).create_new(true).open(&partial) {
                Ok(file) => break (partial, file),
                // Another thread's, or of a killed process that had this one's number.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && attempt < u32::MAX => attempt += 1,
                Err(e) => return Err(Error::io(path, "create")(e)),
            }
        };
        // Only now, when it is known to be ours: what is listed is removed by [`abandon`].
        partials().push(partial.clone());
        Ok((Self(partial), file))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut all = partials();
        if let Some(at) = all.iter().position(|path| *path == self.0) {
            all.swap_remove(at);
        }
    }
}

/// While it lives, no file is begun but one just being created, and no writing of one ends, see [`abandon`]: whoever writes one waits. So does
/// the thread that holds it, for itself and forever, if it writes a file, returns from within the writing of one, or calls [`abandon`] again.
#[derive(Debug)]
#[must_use = "to be kept until the process ends"]
pub struct Abandoned {
    _list: MutexGuard<'static, Vec<PathBuf>>,
}

/// Removes every file that is half-written, whoever writes it, and lets nobody begin another one: for a process that is about to end without
/// waiting for them. Former files of their names stay. Waits while another thread holds an [`Abandoned`].
///
/// A file that is just being created at this moment may stay, empty, beside its place; the next run in a directory of training removes its
/// own. And of GPTQ and AWQ the configuration, which takes its place just before its tensors do, may stay alone.
pub fn abandon() -> Abandoned {
    let list = partials();
    for path in &*list {
        // It may just have taken its place.
        let _ = fs::remove_file(path);
    }
    Abandoned { _list: list }
}

/// Writes a file beside `path` with `write`, sees to it that it is on the disk, and renames it to `path`. `write` gets the file's name at this
/// time and the file, which is empty.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path, File) -> Result<()>) -> Result<()> {
    // A device or a pipe would be replaced by an ordinary file.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::file(path, "a regular file or none to write to", "something else of that name"));
    }
    let (listed, file) = Partial::of(path)?;
    let partial = listed.0.as_path();
    let result = write(partial, file).and_then(|()| {
        let file = File::options().write(true).open(partial).map_err(Error::io(partial, "open"))?;
        file.sync_all().map_err(Error::io(partial, "write"))?;
        fs::rename(partial, path).map_err(Error::io(path, "write"))
    });
    if result.is_err() {
        // Nothing half-written stays behind; the first error is the one to report.
        let _ = fs::remove_file(partial);
    } else if let Some(Ok(dir)) = path.parent().map(File::open) {
        // Makes the new name last through a power cut where the system can do that.
        let _ = dir.sync_all();
    }
    result
}

/// [`replace`] with content that is at hand.
pub(crate) fn replace_with(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, |_, mut file| file.write_all(content).map_err(Error::io(path, "write")))
}

/// Removes what a killed process had begun to write.
pub(crate) fn remove_partial(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(in_place).is_some_and(|n| {
            matches!(n, "run.json" | "metrics.jsonl" | "loss.svg" | "diagnostics.svg" | "compare.jsonl" | "compare.svg")
                || (n.starts_with("step-") && n.ends_with(".safetensors"))
        });
        if ours {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace_with(&path, b"old").unwrap();
        let failed = replace(&path, |partial, mut file| {
            file.write_all(b"ne").unwrap();
            assert_eq!(fs::read(partial).unwrap(), b"ne");
            assert!(partials().iter().any(|listed| listed == partial));
            Err(Error::Device("gone".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // What was not begun is not listed.
        let nowhere = dir.path().join("none").join("a");
        assert!(matches!(replace_with(&nowhere, b""), Err(Error::Io { action: "create", .. })));
        assert!(!partials().contains(&beside(&nowhere, 0)));
        replace_with(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_is_there_already_is_left_and_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // Of a name that somebody may choose, and as a killed process with the number of this one leaves it.
        let others = [dir.path().join("a.partial"), beside(&path, 0), beside(&path, 1)];
        for other in &others {
            fs::write(other, b"other").unwrap();
        }
        replace(&path, |partial, mut file| {
            assert!(partials().iter().any(|listed| listed == partial));
            assert!(!partials().iter().any(|listed| others.contains(listed)));
            file.write_all(b"new").unwrap();
            // Another thread may write the same at the same time; the last one's stays.
            replace_with(&path, b"meanwhile")
        })
        .unwrap();
        replace(&path, |_, _| Err(Error::Device("gone".into()))).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(others.iter().all(|other| fs::read(other).unwrap() == b"other"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1 + others.len());
    }

    #[test]
    fn of_what_is_half_written_a_run_removes_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let ours = [
            "step-000010.safetensors.partial",
            "run.json.partial",
            "run.json.71.0.partial",
            "loss.svg.4194304.12.partial",
        ];
        let others =
            ["download.partial", "other.json.71.0.partial", "run.json.71.x.partial", "run.json.71.0", "run.json"];
        for name in ours.iter().chain(&others) {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        fs::write(beside(&dir.path().join("metrics.jsonl"), 3), b"x").unwrap();
        remove_partial(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let mut expected = others;
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
