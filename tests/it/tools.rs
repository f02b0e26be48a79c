//! Tools that `tests/run` installs.

use std::io::Write;
use std::path::PathBuf;

/// The path of a file of this repository.
pub(crate) fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// A tool from PyPI or npm, as `bin/python`, `bin/node` or `node_modules/…`; none, with a line on stderr, where it is
/// missing, which `WSCAST_TEST_ALL` does not allow.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let file = path("target/test-tools").join(name);
    if file.exists() {
        return Some(file);
    }
    left_out(name);
    None
}

/// Whether a command of the system is there; a line on stderr where it is not, which `WSCAST_TEST_ALL` does not allow.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    if !is_found {
        left_out(name);
    }
    is_found
}

/// Says on stderr that a test is left out, as the tool `name` is missing, which `WSCAST_TEST_ALL` does not allow.
pub(crate) fn left_out(name: &str) {
    let all = std::env::var_os("WSCAST_TEST_ALL");
    assert!(all.is_none(), "{name} is missing: tests/run installs it");
    // Directly, as the harness hides the output of tests that pass.
    let line = format!("left out, for want of {name}: a test; tests/run installs it\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}
