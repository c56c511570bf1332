//! A place in an order of sessions, and the text that stands for it.

use crate::tracker::api::{SessionSort, SortKey};

/// Behind a session with these keys, which need not be there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The app's name, the beginning of the user or the id, where the order is by one of these; else empty.
    pub(super) text: String,
    /// When it started or was seen last, in milliseconds.
    pub(super) millis: i64,
    pub(super) row: i64,
}

impl Place {
    /// Hexadecimal digits: whole in any address, and nothing that invites to be written by hand.
    pub(super) fn written(&self, sort: SessionSort) -> String {
        let Place { text, millis, row } = self;
        let plain = format!("{sort} {millis} {row} {text}");
        plain.bytes().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// `None` if it stands for no place in this order.
    pub(super) fn read(written: &str, sort: SessionSort) -> Option<Place> {
        let (pairs, []) = written.as_bytes().as_chunks::<2>() else { return None };
        let bytes = pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?));
        let plain = String::from_utf8(bytes.collect::<Option<_>>()?).ok()?;
        let mut parts = plain.splitn(4, ' ');
        let is_of_this_order = parts.next()?.parse().ok() == Some(sort);
        let (millis, row) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let place = Place { text: parts.next()?.to_owned(), millis, row };
        let is_timed = matches!(sort.key, SortKey::StartTime | SortKey::LastHeartbeat);
        (is_of_this_order && (place.text.is_empty() || !is_timed)).then_some(place)
    }
}

fn digit(value: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(value)])
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text_in_its_own_order_only() {
        let (app, newest) = ("app".parse().unwrap(), SessionSort::default());
        for text in ["", "a b  c", "é\n\0", "-app 1 2 3"] {
            let place = Place { text: text.to_owned(), millis: i64::MIN, row: i64::MAX };
            let written = place.written(app);
            assert_eq!(Place::read(&written, app), Some(place.clone()));
            assert_eq!(Place::read(&written, newest), None);
            assert_eq!(Place::read(&written, SessionSort { descending: true, ..app }), None);
            for cut in 0..written.len().min(10) {
                assert_eq!(Place::read(&written[..cut], app), None);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}", hex in "[0-9a-f]{0,60}") {
            let sort = SessionSort::default();
            let _ = (Place::read(&text, sort), Place::read(&hex, sort));
        }
    }
}
