//! What the tests of the command share: a directory with a text to learn from, runs of `walsh` in it, and what they must come to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory that goes when the test ends, with `text.txt` in it. Each file of tests adds the runs of its own.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let words = ["walsh ", "hadamard ", "transform\n", "of ", "low ", "bits "];
        let text: String = (0..1500usize).map(|i| words[(i * i + i / 3) % words.len()]).collect();
        std::fs::write(dir.path().join("text.txt"), text).unwrap();
        Self(dir)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// What is in it by that name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, to be run in the directory.
    pub fn walsh(&self, args: &[&str]) -> Command {
        walsh(self.root(), args)
    }

    /// Runs the command, which must end well; standard output and standard error.
    #[track_caller]
    pub fn runs(&self, args: &[&str]) -> (String, String) {
        let output = self.walsh(args).output().unwrap();
        let message = code(&output, 0);
        (String::from_utf8(output.stdout).unwrap(), message)
    }

    /// Runs the command, which must refuse its input as [`refused`] says.
    #[track_caller]
    pub fn refuses(&self, args: &[&str], parts: &[&str]) {
        refused(self.root(), args, parts);
    }
}

/// The command, to be run in `dir`; what it writes is kept.
pub fn walsh(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walsh"));
    command.current_dir(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Asserts the exit code; what was said on standard error.
#[track_caller]
pub fn code(output: &Output, expected: i32) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(expected), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// Runs the command in `dir`, which must call the input bad in a message with these parts, and leave nothing behind.
#[track_caller]
pub fn refused(dir: &Path, args: &[&str], parts: &[&str]) {
    let before = std::fs::read_dir(dir).unwrap().count();
    let output = walsh(dir, args).output().unwrap();
    let message = code(&output, 2);
    assert!(output.stdout.is_empty(), "{args:?}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: `{part}` is not in: {message}");
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), before, "{args:?} left something behind");
}

/// Waits until something is so or the child has ended.
#[track_caller]
pub fn wait_for(child: &mut Child, what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(120), "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends Ctrl-C and waits for the end; none if the child was done before the signal came.
#[cfg(unix)]
pub fn interrupt(child: Child) -> Option<Output> {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    (sent.success() && output.status.code() != Some(0)).then_some(output)
}
