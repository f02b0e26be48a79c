//! What must be true of any bytes that a peer sends, one function for each kind of them: libFuzzer calls
//! them from `fuzz/`, and the tests here with the corpora of `fuzz/` and what is near to them.
//!
//! Each panics where its property does not hold.

mod decoder;
mod id;
mod origin;
mod request;

use crate::admission::Admission;
use crate::config::Access;

pub use decoder::decoder;
pub use id::id;
pub use origin::origin;
pub use request::request;

/// The rule without any option, for a server that listens on addresses of this machine alone, or not.
fn admission(only_local: bool) -> Admission {
    let access = Access {
        allow_host: Vec::new(),
        allow_origin: Vec::new(),
    };
    Admission::new(&access, "localhost", only_local)
}

#[cfg(test)]
pub(crate) use decoder::check_stream;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// The inputs in the corpus of this target; none where `fuzz/` is not part of the source.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        if !folder.exists() {
            return vec![Vec::new()];
        }
        let files = fs::read_dir(folder.join("corpus").join(target)).unwrap();
        let inputs: Vec<_> = files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(!inputs.is_empty());
        inputs
    }

    /// Calls `target` with its corpus, and with inputs that differ from those in a few places.
    fn check(name: &str, target: fn(&[u8])) {
        let inputs = corpus(name);
        inputs.iter().for_each(|input| target(input));
        // Each puts bytes in the place of so many others.
        let edit = (
            any::<Index>(),
            0..4_usize,
            prop::collection::vec(any::<u8>(), 0..4),
        );
        let edits = prop::collection::vec(edit, 1..6);
        proptest!(ProptestConfig::with_cases(1000), |(
            which in any::<Index>(),
            edits in edits,
        )| {
            let mut input = which.get(&inputs).clone();
            for (at, removed, bytes) in edits {
                let start = at.index(input.len() + 1);
                let end = input.len().min(start + removed);
                input.splice(start..end, bytes);
            }
            target(&input);
        });
    }

    #[test]
    fn the_decoder_agrees_with_tungstenite() {
        check("decoder", decoder);
    }

    #[test]
    fn a_request_is_answered_or_refused_in_one_line() {
        check("request", request);
    }

    #[test]
    fn an_id_is_what_it_says() {
        check("id", id);
    }

    #[test]
    fn an_origin_is_local_only_by_a_name_of_this_machine() {
        check("origin", origin);
    }
}
