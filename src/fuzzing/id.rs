//! An id is its two numbers, wherever a client sends it.

use crate::message::MessageId;
use crate::protocol::frame::ping;

/// Checks each line of the input as an id, and the order of those that are ids.
pub fn id(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else {
        return;
    };
    let mut before: Option<(MessageId, (u64, u64))> = None;
    for text in input.split('\n') {
        let numbers = text
            .split_once('-')
            .and_then(|(epoch, seq)| Some((number(epoch)?, number(seq)?)));
        let parsed = text.parse::<MessageId>().ok();
        assert_eq!(parsed.map(|id| (id.epoch, id.seq)), numbers, "{text:?}");
        let Some((id, numbers)) = parsed.zip(numbers) else {
            continue;
        };
        let written = id.to_string();
        assert_eq!(written.parse(), Ok(id));
        assert!(written.len() <= text.len());
        // A ping carries it, and the pong returns it.
        assert_eq!(ping(Some(id))[2..], *written.as_bytes());
        if let Some((id_before, numbers_before)) = before {
            assert_eq!(id_before.cmp(&id), numbers_before.cmp(&numbers));
        }
        before = Some((id, numbers));
    }
}

/// The number of decimal digits, if it has 64 bits.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.chars().try_fold(0_u64, |number, digit| {
        let digit = digit.to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}
