//! A million sessions in little memory: their lives side by side, found by their ids.

use std::collections::HashMap;

use super::memory::Live;
use crate::tracker::TrackedId;

/// So many sessions are looked at in one go: some tens of microseconds.
const STRETCH: usize = 4_096;

/// All sessions.
#[derive(Default)]
pub(super) struct Crowd {
    places: HashMap<Key, u32>,
    lives: Vec<Option<Live>>,
    free: Vec<u32>,
}

/// An id. Those that remuda makes take 16 bytes and nothing on the heap.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl Key {
    fn of(id: &str) -> Key {
        uuid(id.as_bytes()).map_or_else(|| Key::Text(id.into()), Key::Uuid)
    }
}

/// The bytes of a UUID in its usual form with small letters: no two texts have the same.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&dash| text[dash] != b'-') {
        return None;
    }
    let mut digits = text.iter().filter(|&&byte| byte != b'-').map(|byte| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    });
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    digits.next().is_none().then_some(bytes)
}

impl Crowd {
    /// Makes room for so many at once.
    pub(super) fn reserve(&mut self, count: usize) {
        self.places.reserve(count);
        self.lives.reserve(count);
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn get(&self, id: &TrackedId) -> Option<&Live> {
        self.lives.get(self.place(id)?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: &TrackedId) -> Option<&mut Live> {
        let place = self.place(id)?;
        self.lives.get_mut(place)?.as_mut()
    }

    fn place(&self, id: &TrackedId) -> Option<usize> {
        self.places.get(&Key::of(id.as_str())).map(|&place| place as usize)
    }

    /// In the place of what is known by this id, if anything is.
    pub(super) fn put(&mut self, id: &str, live: Live) {
        let Crowd { places, lives, free } = self;
        let place = *places.entry(Key::of(id)).or_insert_with(|| {
            free.pop().unwrap_or_else(|| {
                lives.push(None);
                u32::try_from(lives.len() - 1).expect("they would take 300 gigabytes")
            })
        });
        lives[place as usize] = Some(live);
    }

    pub(super) fn remove(&mut self, id: &TrackedId) -> Option<Live> {
        let place = self.places.remove(&Key::of(id.as_str()))?;
        self.free.push(place);
        self.lives[place as usize].take()
    }

    /// The stretch of sessions with this number; `None` behind the last one. Who comes or goes between
    /// two stretches may or may not be seen; all others are, once.
    pub(super) fn stretch(&self, number: usize) -> Option<impl Iterator<Item = &Live>> {
        let rest = self.lives.get(number * STRETCH..).filter(|rest| !rest.is_empty())?;
        Some(rest.iter().take(STRETCH).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::tracker::store::memory::Known;

    fn live(row: i64) -> Live {
        Live::new(Known { row, ..Known::default() }, Moment::LONG_AGO, 0)
    }

    fn rows(crowd: &Crowd) -> Vec<i64> {
        (0..).map_while(|number| crowd.stretch(number)).flatten().map(Live::row).collect()
    }

    #[test]
    fn ids_that_differ_in_their_text_are_different_ones() {
        let id = "0f8fad5b-d9cb-469f-a165-70867728950e";
        assert!(matches!(Key::of(id), Key::Uuid(_)) && size_of::<(Key, u32)>() <= 32);
        let mut crowd = Crowd::default();
        let others = [
            id.to_uppercase(),
            id.replace('-', ""),
            id.replace('e', "g"),
            format!("{id}0"),
            format!("-{}", &id[1..]),
            "0f8fad5b-d9cb-469f-a165-7086772895é".to_owned(),
            String::new(),
        ];
        for (row, text) in others.iter().map(String::as_str).chain([id]).enumerate() {
            crowd.put(text, live(i64::try_from(row).unwrap()));
        }
        assert_eq!(crowd.len(), others.len() + 1);
        for (row, text) in others.iter().map(String::as_str).chain([id]).enumerate() {
            assert_eq!(crowd.get(&text.into()).map(Live::row), i64::try_from(row).ok(), "{text}");
        }
    }

    #[test]
    fn places_are_used_again_and_every_stretch_is_seen() {
        let mut crowd = Crowd::default();
        let all = i64::try_from(2 * STRETCH + 1).unwrap();
        for row in 0..all {
            crowd.put(&row.to_string(), live(row));
        }
        assert_eq!(rows(&crowd), (0..all).collect::<Vec<_>>());
        assert_eq!(crowd.remove(&"5".into()).map(|live| live.row()), Some(5));
        assert!(crowd.remove(&"5".into()).is_none() && crowd.get(&"5".into()).is_none());
        crowd.put("new", live(-1));
        crowd.put("new", live(-2));
        let seen = rows(&crowd);
        assert_eq!((seen.len(), seen[5], crowd.len()), (2 * STRETCH + 1, -2, 2 * STRETCH + 1));
        assert!(Crowd::default().stretch(0).is_none());
    }
}
