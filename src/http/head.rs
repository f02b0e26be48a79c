//! What is wrong with the head of a request that cannot be parsed.

use hyper::StatusCode;

use super::refusal::Refusal;

/// The most bytes of the head of a request.
pub(crate) const HEAD_MAX: usize = 16 * 1024;

/// What is wrong with a head that hyper refuses without a reason.
pub(crate) fn explain(head: &[u8], is_too_large: bool) -> Refusal {
    let lines = head.split(|it| *it == b'\n').map(<[u8]>::trim_ascii);
    let fields = lines.skip(1).take_while(|line| !line.is_empty());
    let fields = fields.filter_map(|line| str::from_utf8(line).ok()?.split_once(':'));
    let values = |name: &'static str| {
        let named = fields
            .clone()
            .filter(move |(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim())
    };
    let is_number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
    // hyper reserves the two largest numbers.
    let is_huge = |it: &str| is_number(it) && it.parse().map_or(true, |it: u64| it > u64::MAX - 2);
    let mut lengths = values("content-length");
    if lengths.clone().any(is_huge) {
        let reason = "no message is as large as Content-Length says: see --max-message-size";
        return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason);
    }
    if is_too_large && !head.contains(&b'\n') {
        return Refusal::new(StatusCode::URI_TOO_LONG, "an address has at most 16 KiB");
    }
    if is_too_large {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Refusal::new(
            status,
            "the head of a request has at most 16 KiB and 100 fields",
        );
    }
    let codings = values("transfer-encoding").flat_map(|it| it.split(','));
    if codings
        .last()
        .is_some_and(|it| !it.trim().eq_ignore_ascii_case("chunked"))
    {
        return Refusal::transfer_coding();
    }
    if let Some(first) = lengths.next()
        && (!is_number(first) || lengths.any(|it| it != first))
    {
        return Refusal::bad("Content-Length is not one number");
    }
    Refusal::bad("this is no HTTP/1.1 request: use http:// or ws://, TLS ends at a proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_of_a_head_decides_the_status() {
        let explain = |fields: &str, is_too_large| {
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\nTransfer-Encoding: body");
            explain(head.as_bytes(), is_too_large).status().as_u16()
        };
        for (fields, is_too_large, status) in [
            ("Content-Length: 18446744073709551616\r\n", false, 413),
            ("content-length : 18446744073709551615\r\n", true, 431),
            ("content-length: 18446744073709551615\r\n", true, 413),
            ("Content-Length: 5\r\n", true, 431),
            ("Content-Length: 5\r\n", false, 400),
            ("Transfer-Encoding: chunked, gzip\r\n", false, 501),
            (
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                false,
                400,
            ),
            ("", false, 400),
        ] {
            assert_eq!(explain(fields, is_too_large), status, "{fields}");
        }
        let head = [b'x'; HEAD_MAX];
        assert_eq!(
            super::explain(&head, true).status(),
            StatusCode::URI_TOO_LONG
        );
        assert_eq!(
            super::explain(b"\xff\r\n\xff: \xff", false).reason(),
            "this is no HTTP/1.1 request: use http:// or ws://, TLS ends at a proxy"
        );
    }
}
