//! `cargo xtask`: the commands that work on a fresh machine. No dependencies, so that it is there at once.
#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "\
cargo xtask train [ARGS]   make sure there is an adapter, then run `walsh train ARGS`
cargo xtask test [ARGS]    make sure there is an adapter, then run `cargo test ARGS`
cargo xtask ci             formatting, lints, documentation, tests and a short training run

--no-install forbids installing a software driver";

/// Why a command ended: its own exit code, or a message.
enum Stop {
    Code(u8),
    Message(String),
}

type Result<T = ()> = std::result::Result<T, Stop>;

fn main() -> ExitCode {
    let mut args: Vec<String> = env::args().skip(1).collect();
    let install = !args.iter().any(|a| a == "--no-install");
    args.retain(|a| a != "--no-install");
    let (command, rest) = args.split_first().map_or(("", &[][..]), |(c, r)| (c.as_str(), r));
    let result = match command {
        "train" => ensure_adapter(install).and_then(|()| train(rest)),
        "test" => ensure_adapter(install).and_then(|()| test(rest).map(|_| ())),
        "ci" => ci(install),
        "" | "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(Stop::Message(format!("no command `{other}`\n\n{USAGE}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Code(code)) => ExitCode::from(code),
        Err(Stop::Message(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    quiet(&mut command);
    command
}

/// Where there is no desktop session, Mesa's device selection complains about `XDG_RUNTIME_DIR` at every start; any directory contents it.
fn quiet(command: &mut Command) {
    if cfg!(target_os = "linux") && env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("XDG_RUNTIME_DIR", env::temp_dir());
    }
}

/// The repository: the directory above this package.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

fn status(command: &mut Command) -> Result {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Err(e) => Err(Stop::Message(format!("cannot run {name}: {e}"))),
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Stop::Code(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))),
    }
}

/// Runs the main job where the command was called, so that paths among its arguments mean what they say.
fn train(args: &[String]) -> Result {
    let here = env::current_dir().unwrap_or_else(|_| root());
    let manifest = root().join("Cargo.toml");
    let mut command = cargo();
    command.current_dir(here).args(["run", "--release", "--package", "walsh", "--manifest-path"]);
    status(command.arg(manifest).args(["--", "train"]).args(args))
}

/// Tests that passed, failed and were skipped.
#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// Adds a summary such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, summary)) = line.split_once("test result: ") else { return };
        for part in summary.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Runs the tests, all of them even where some fail, and ends with the sum of cargo's summaries.
fn test(args: &[String]) -> Result<Counts> {
    let mut command = cargo();
    command.args(["test", "--workspace"]);
    let log = env::temp_dir().join(format!("walsh-skipped-{}", std::process::id()));
    command.env("WALSH_SKIPPED", &log);
    if !args.iter().any(|a| a == "--no-fail-fast" || a == "--") {
        command.arg("--no-fail-fast");
    }
    let mut child = command
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Stop::Message(format!("cannot run cargo: {e}")))?;
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            counts.add(&line);
        }
    }
    let status = child.wait().map_err(|e| Stop::Message(format!("cannot run cargo: {e}")))?;
    let mut skipped: Vec<String> =
        std::fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect();
    let _ = std::fs::remove_file(&log);
    // Each test reports what its adapter lacks: one line, and one count, per reason.
    skipped.sort();
    skipped.dedup();
    skipped.iter().for_each(|why| println!("skipped: {why}"));
    counts.skipped += skipped.len() as u64;
    if status.success() && counts.failed == 0 {
        println!("{}", counts.line());
        return Ok(counts);
    }
    if counts.failed == 0 {
        // A test binary that did not compile or was killed prints no summary.
        eprintln!("the test run itself failed ({status})");
        counts.failed = 1;
    }
    println!("{}", counts.line());
    Err(Stop::Code(1))
}

impl Counts {
    fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Checks what only nightly runs. A workspace of its own, it has this one's dependencies and shares what was built of them.
fn fuzz_targets() -> Result {
    if Command::new("c++").arg("--version").output().is_err() {
        println!("not checked: libFuzzer is C++, and there is no compiler `c++`");
        return Ok(());
    }
    let mut command = cargo();
    if env::var_os("CARGO_TARGET_DIR").is_none() {
        command.env("CARGO_TARGET_DIR", root().join("target"));
    }
    let manifest = root().join("fuzz").join("Cargo.toml");
    status(
        command
            .args(["clippy", "--locked", "--all-targets", "--manifest-path"])
            .arg(manifest)
            .args(["--", "-D", "warnings"]),
    )
}

fn ci(install: bool) -> Result {
    step("format");
    status(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    status(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings", "-W", "clippy::all"]))?;
    step("the library alone");
    status(cargo().args(["clippy", "--package", "walsh", "--lib", "--no-default-features", "--", "-D", "warnings"]))?;
    step("fuzz targets");
    fuzz_targets()?;
    step("documentation");
    status(cargo().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps", "--quiet"]))?;
    ensure_adapter(install)?;
    step("tests");
    let counts = test(&[])?;
    step("a short run of the main job");
    short_run()?;
    // The last line is the tests' summary, for whoever reads only that.
    println!("{}", counts.line());
    Ok(())
}

fn step(name: &str) {
    println!("== {name}");
}

/// Trains for a few steps with the binary that the tests were built with, and samples from what comes out.
fn short_run() -> Result {
    let dir = env::temp_dir().join(format!("walsh-ci-{}", std::process::id()));
    // It lies beside this program.
    let binary = env::current_exe().map(|own| own.with_file_name(format!("walsh{}", env::consts::EXE_SUFFIX)));
    let walsh = |args: &[&OsStr]| -> Result {
        match &binary {
            Ok(binary) if binary.is_file() => {
                let mut command = Command::new(binary);
                quiet(&mut command);
                status(command.args(args))
            }
            _ => status(cargo().args(["run", "--quiet", "--package", "walsh", "--"]).args(args)),
        }
    };
    fn text(words: &[&'static str]) -> Vec<&'static OsStr> {
        words.iter().map(|word| OsStr::new(*word)).collect()
    }
    let mut train: Vec<&OsStr> =
        text(&["train", "--preset", "nano", "--steps", "6", "--eval-batches", "2", "--json", "--out"]);
    train.push(dir.as_os_str());
    let mut sample: Vec<&OsStr> = text(&["sample", "--tokens", "80"]);
    sample.push(dir.as_os_str());
    let result = walsh(&train).and_then(|()| walsh(&sample));
    let _ = std::fs::remove_dir_all(&dir);
    result
}

// ---------------------------------------------------------------------------------------------------------------------
// The adapter
// ---------------------------------------------------------------------------------------------------------------------

/// How a distribution installs its software driver: the program that tells it, the packages, the commands.
struct Installer {
    program: &'static str,
    packages: &'static str,
    commands: &'static [&'static [&'static str]],
}

const INSTALLERS: [Installer; 3] = [
    Installer {
        program: "apt-get",
        packages: "mesa-vulkan-drivers libvulkan1",
        commands: &[
            &["apt-get", "update", "-qq"],
            &["apt-get", "install", "-y", "-qq", "--no-install-recommends", "mesa-vulkan-drivers", "libvulkan1"],
        ],
    },
    Installer {
        program: "dnf",
        packages: "mesa-vulkan-drivers vulkan-loader",
        commands: &[&["dnf", "install", "-y", "-q", "mesa-vulkan-drivers", "vulkan-loader"]],
    },
    Installer {
        program: "pacman",
        packages: "vulkan-swrast vulkan-icd-loader",
        commands: &[&["pacman", "-Sy", "--noconfirm", "--needed", "vulkan-swrast", "vulkan-icd-loader"]],
    },
];

/// On Linux without a Vulkan driver, installs the distribution's software driver. Elsewhere the system has one.
fn ensure_adapter(install: bool) -> Result {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let Some(missing) = missing() else { return Ok(()) };
    let tools = |program: &&Installer| on_path(program.program).is_some();
    let Some(installer) = INSTALLERS.iter().find(tools) else {
        return Err(Stop::Message(format!(
            "{missing}, and this system has none of apt-get, dnf and pacman; install a Vulkan driver (Mesa's lavapipe \
             runs on any CPU) and its loader"
        )));
    };
    if !install {
        return Err(Stop::Message(format!(
            "{missing}; without --no-install, {} would install {}",
            installer.program, installer.packages
        )));
    }
    let root = is_root();
    if !root && on_path("sudo").is_none() {
        return Err(Stop::Message(format!(
            "{missing}; as root, install {} with {}",
            installer.packages, installer.program
        )));
    }
    eprintln!("{missing}: installing the software driver ({}) with {}", installer.packages, installer.program);
    for words in installer.commands {
        let mut command = if root { Command::new(words[0]) } else { Command::new("sudo") };
        command.args(&words[usize::from(root)..]).env("DEBIAN_FRONTEND", "noninteractive");
        // What it prints is of interest only where it fails.
        let output = command
            .stdin(Stdio::inherit())
            .output()
            .map_err(|e| Stop::Message(format!("cannot run {}: {e}", words[0])))?;
        // A list of packages that could not be refreshed may still do.
        if !output.status.success() && !words.contains(&"update") {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            return Err(Stop::Message(format!("`{}` failed ({})", words.join(" "), output.status)));
        }
    }
    match self::missing() {
        None => Ok(()),
        Some(missing) => Err(Stop::Message(format!("{missing}, although {} was installed", installer.packages))),
    }
}

/// What a Vulkan program lacks here, if anything.
fn missing() -> Option<&'static str> {
    if !has_driver() {
        Some("no Vulkan driver")
    } else if !has_loader() {
        Some("no Vulkan loader (libvulkan.so.1)")
    } else {
        None
    }
}

/// Whether a driver is registered whose library is there: packages leave manifests behind, and some serve hardware that is not there, but
/// then the software driver comes with them.
fn has_driver() -> bool {
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if let Some(files) = env::var_os(variable) {
            return env::split_paths(&files).any(|file| file.is_dir() && has_manifest(&file) || usable(&file));
        }
    }
    let mut dirs = vec![PathBuf::from("/usr/share"), PathBuf::from("/usr/local/share"), PathBuf::from("/etc")];
    dirs.extend(env::var_os("XDG_DATA_HOME").map(PathBuf::from));
    dirs.extend(env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    dirs.extend(env::var_os("XDG_DATA_DIRS").iter().flat_map(env::split_paths));
    dirs.iter().any(|dir| has_manifest(&dir.join("vulkan/icd.d")))
}

fn has_manifest(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension() == Some(OsStr::new("json")) && usable(&path))
}

/// Whether a manifest names a library that can be found. A bare name is looked up by the dynamic loader, so it is looked for where that looks.
fn usable(manifest: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(manifest) else { return false };
    let Some(library) = text
        .split_once("\"library_path\"")
        .and_then(|(_, rest)| rest.split('"').nth(1))
        .filter(|library| !library.is_empty())
    else {
        return false;
    };
    if library.contains('/') {
        let base = manifest.parent().unwrap_or(Path::new("/"));
        base.join(library).exists()
    } else {
        in_library_path(library)
    }
}

fn has_loader() -> bool {
    in_library_path("libvulkan.so.1")
}

/// Whether the dynamic loader would find a library: in `LD_LIBRARY_PATH`, its cache, or the usual directories.
fn in_library_path(name: &str) -> bool {
    let own = env::var_os("LD_LIBRARY_PATH");
    let mut dirs: Vec<PathBuf> = own.iter().flat_map(env::split_paths).collect();
    for base in ["/lib", "/usr/lib", "/usr/local/lib"] {
        dirs.push(base.into());
        dirs.push(format!("{base}64").into());
        dirs.push(format!("{base}/{}-linux-gnu", env::consts::ARCH).into());
    }
    if dirs.iter().any(|dir| dir.join(name).exists()) {
        return true;
    }
    // The cache is a binary file, but the names in it are plain, each ended by a zero byte.
    let wanted = [b"/", name.as_bytes(), b"\0"].concat();
    std::fs::read("/etc/ld.so.cache").is_ok_and(|cache| cache.windows(wanted.len()).any(|w| w == wanted))
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn is_root() -> bool {
    // The owner of this process's own entry is the effective user.
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 30 passed; 0 failed; 2 ignored; 0 measured; 11 filtered out; finished in 0.45s");
        counts.add("test some::name ... ok");
        counts.add("test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.23s");
        assert_eq!(counts.line(), "35 passed, 2 failed, 2 skipped");
    }

    #[test]
    fn a_manifest_counts_if_its_library_is_there() {
        let dir = env::temp_dir().join(format!("walsh-xtask-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let manifest = dir.join("icd.json");
        let check = |library: &str| {
            std::fs::write(&manifest, format!(r#"{{"ICD": {{"library_path": "{library}", "api_version": "1.3"}}}}"#))
                .unwrap();
            usable(&manifest)
        };
        assert!(!check("libno_such_driver.so"));
        assert!(!check("./driver.so"));
        assert!(!check(""));
        std::fs::write(dir.join("driver.so"), "").unwrap();
        assert!(check("./driver.so"));
        assert!(has_manifest(&dir));
        std::fs::write(&manifest, "{}").unwrap();
        assert!(!has_manifest(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
