//! How many files the process may have open.

use tracing::warn;

/// Listeners, standard streams, the runtime's own, and connections that are being refused.
const OTHER_DESCRIPTORS: u64 = 512;

/// Raises the limit to the descriptors that `--max-connections` needs; warns if there are fewer.
pub(crate) fn raise_limit(max_connections: usize) {
    let needed = max_connections as u64 + OTHER_DESCRIPTORS;
    match rlimit::increase_nofile_limit(needed) {
        Ok(limit) if limit < needed => warn!(
            "the system allows {limit} open files, too few for --max-connections {}: raise it with \
             ulimit -n {needed}",
            max_connections
        ),
        Ok(_) => {}
        Err(error) => warn!("cannot tell how many open files are allowed: {error}"),
    }
}
