//! The client module and its types, for pages of any origin.

use std::sync::LazyLock;

use hyper::Response;
use hyper::header::{self, HeaderMap, HeaderName};

use super::embedded::Embedded;
use super::response::{Body, Field};

/// A file of the client module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModuleFile {
    /// `/-/wscast.js`: the module.
    Script,
    /// `/-/wscast.d.ts`: its types.
    Types,
}

static SCRIPT: LazyLock<Embedded> = LazyLock::new(|| {
    let text = include_str!("../../static/wscast.js");
    embedded(text, "text/javascript; charset=utf-8")
});

static TYPES: LazyLock<Embedded> = LazyLock::new(|| {
    // There is no registered type for TypeScript, and `video/mp2t` has the name `.ts`.
    let text = include_str!("../../static/wscast.d.ts");
    embedded(text, "text/plain; charset=utf-8")
});

fn embedded(text: &'static str, content_type: &'static str) -> Embedded {
    let open_to_all: [Field; 2] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        // A page that embeds only what agrees to it may import the module, too.
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "cross-origin",
        ),
    ];
    Embedded::new(text, open_to_all, [(header::CONTENT_TYPE, content_type)])
}

impl ModuleFile {
    /// The file at `path`.
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/-/wscast.js" => Some(Self::Script),
            "/-/wscast.d.ts" => Some(Self::Types),
            _ => None,
        }
    }

    /// The answer to a request for it.
    pub(super) fn respond(self, request: &HeaderMap) -> Response<Body> {
        match self {
            Self::Script => SCRIPT.respond(request),
            Self::Types => TYPES.respond(request),
        }
    }
}
