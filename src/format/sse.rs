//! Server-Sent Events (WHATWG HTML, section 9.2).

use super::Event;

/// Appends `event` in the event-stream format (WHATWG HTML, section 9.2.5); a greeting is a comment.
pub(super) fn append(event: &Event<'_>, stream: &mut Vec<u8>) {
    let mut line = |field: &str, value: &str| {
        stream.extend_from_slice(field.as_bytes());
        stream.extend_from_slice(value.as_bytes());
        stream.push(b'\n');
    };
    match event {
        // Who follows an event stream sends nothing that could fail.
        Event::Welcome { text: "", .. } | Event::Error { .. } => return,
        // Comments are its signs of life, and `?clients` asks for an answer by itself.
        Event::Alive | Event::Large { .. } | Event::Clients { .. } | Event::Status { .. } => return,
        Event::Welcome { text, .. } => sse_lines(text).for_each(|text| line(": ", text)),
        Event::Message {
            id,
            from,
            name,
            text,
            binary,
            ..
        } => {
            line("id: ", id);
            // Fields that the standard has parsers ignore (section 9.2.6).
            if let Some(from) = from {
                line("from: ", &from.to_string());
            }
            if let Some(name) = name {
                line("name: ", &name.to_string());
            }
            if let Some(text) = text {
                sse_lines(text).for_each(|text| line("data: ", text));
            }
            if let Some(base64) = binary {
                line("event: ", "binary");
                line("data: ", base64);
            }
        }
        Event::Gap { missed } => {
            let missed = missed.map_or("null".into(), |it| it.to_string());
            line("event: ", "gap");
            line("data: ", &format!("{{\"missed\":{missed}}}"));
        }
    }
    stream.push(b'\n');
}

/// The lines of a text, ended as in an event stream: by LF, CR, or both; the last may be empty.
fn sse_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let behind = &text[end..];
        rest = Some(behind.strip_prefix("\r\n").unwrap_or(&behind[1..]));
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_lines_as_a_browser_does() {
        for (text, lines) in [
            ("", &[""][..]),
            ("one", &["one"]),
            ("one\n", &["one", ""]),
            ("\r\n\r\n", &["", "", ""]),
            ("a\rb\nc\r\nd\n\re", &["a", "b", "c", "d", "", "e"]),
        ] {
            assert_eq!(sse_lines(text).collect::<Vec<_>>(), lines, "{text:?}");
        }
    }
}
