//! How many files the process may have open.

use tracing::warn;

use crate::config::Config;

/// Listeners, standard streams, the runtime's own, and connections that are being refused.
const DESCRIPTORS_OF_OUR_OWN: u64 = 512;

/// Asks for the descriptors that `--max-connections` needs, and says so where there are fewer.
pub fn raise_limit(config: &Config) {
    let needed = config.limits.max_connections as u64 + DESCRIPTORS_OF_OUR_OWN;
    match rlimit::increase_nofile_limit(needed) {
        Ok(limit) if limit < needed => warn!(
            "the system allows {limit} open files, too few for --max-connections {}: raise it with \
             ulimit -n {needed}",
            config.limits.max_connections
        ),
        Ok(_) => {}
        Err(error) => warn!("cannot tell how many open files are allowed: {error}"),
    }
}
