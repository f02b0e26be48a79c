//! Files that are embedded in the binary: a response with an entity tag, or 304.

use data_encoding::HEXLOWER;
use hyper::header::{self, HeaderMap};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

use super::response::{Body, Field, NO_SNIFFING, respond, whole};

/// A file and the header fields that it is served with.
#[derive(Debug)]
pub(super) struct Embedded {
    text: &'static str,
    /// Fields of a 304, too (RFC 9110, section 15.4.5).
    always: Vec<Field>,
    /// Fields of a 200 alone.
    with_text: Vec<Field>,
    /// Changes with all of the above.
    etag: String,
}

impl Embedded {
    /// A file with fields that a 304 has, too, and fields that only a 200 has.
    pub(super) fn new(
        text: &'static str,
        always: impl IntoIterator<Item = Field>,
        with_text: impl IntoIterator<Item = Field>,
    ) -> Self {
        // Stored, and revalidated each time: a new server may have a new file.
        let no_cache = (header::CACHE_CONTROL, "no-cache");
        let always: Vec<_> = always.into_iter().chain([no_cache]).collect();
        let with_text: Vec<_> = with_text.into_iter().chain([NO_SNIFFING]).collect();
        let mut hash = Sha256::new().chain_update(text);
        for (name, value) in always.iter().chain(&with_text) {
            hash.update(name);
            hash.update(value);
        }
        let etag = format!("\"{}\"", HEXLOWER.encode(&hash.finalize()[..8]));
        Self {
            text,
            always,
            with_text,
            etag,
        }
    }

    /// The answer to a request for it: 200, or 304 where `If-None-Match` names what would be sent
    /// (RFC 9110, section 13.1.2).
    pub(super) fn respond(&'static self, request: &HeaderMap) -> Response<Body> {
        let fields = [(header::ETAG, &*self.etag)];
        let fields = fields.into_iter().chain(self.always.iter().cloned());
        if self.is_known(request) {
            return respond(StatusCode::NOT_MODIFIED, fields, whole(""));
        }
        let fields = fields.chain(self.with_text.iter().cloned());
        respond(StatusCode::OK, fields, whole(self.text))
    }

    fn is_known(&self, request: &HeaderMap) -> bool {
        let known = request.get_all(header::IF_NONE_MATCH).iter();
        known
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == self.etag)
    }
}
