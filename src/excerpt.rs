//! The part of a peer's text that is shown in logs and errors.

use std::borrow::Cow;

/// Characters that are shown; a longer text is followed by its length.
const SHOWN: usize = 100;

/// The beginning of a peer's text, for a log line or an answer, which has to escape it (`{:?}`). The
/// cost does not depend on the length.
pub(crate) fn excerpt(text: &[u8]) -> Cow<'_, str> {
    // At least one character more than is shown, valid or not.
    let beginning = String::from_utf8_lossy(&text[..text.len().min(4 * (SHOWN + 1))]);
    match beginning.char_indices().nth(SHOWN) {
        None => beginning,
        Some((end, _)) => format!("{}… ({} bytes)", &beginning[..end], text.len()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_its_length_is_shown() {
        assert_eq!(excerpt(b"http://example.com"), "http://example.com");
        assert_eq!(excerpt(&[b'x'; 100]), "x".repeat(100));
        let long = format!("{}… (101 bytes)", "x".repeat(100));
        assert_eq!(excerpt(&[b'x'; 101]), long);
        for (text, bytes) in [("ä", 15_000), ("😀", 15_000), ("\u{2028}", 15_000)] {
            let said = text.repeat(bytes / text.len());
            let expected = format!("{}… ({bytes} bytes)", text.repeat(100));
            assert_eq!(excerpt(said.as_bytes()), expected);
            // Cut off in the middle of a character, it is as short.
            let said = format!("x{said}");
            let shown = excerpt(said.as_bytes()).into_owned();
            assert!(
                shown.starts_with(&format!("x{}…", text.repeat(99))),
                "{shown}"
            );
        }
        assert_eq!(excerpt(&[0xff; 15_000]).matches('\u{fffd}').count(), 100);
        assert!(format!("{:?}", excerpt(&[0xff; 15_000])).len() < 2000);
    }
}
