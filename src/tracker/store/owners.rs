//! To whom sessions belong: a name each, kept once for all sessions of one owner.

use std::num::NonZeroU32;

/// Stands for an owner's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(NonZeroU32);

/// The names.
#[derive(Default)]
pub(super) struct Owners {
    /// There are as many as names of access tokens: few.
    names: Vec<Box<str>>,
}

impl Owners {
    /// What stands for this name.
    pub(super) fn of(&mut self, name: &str) -> Option<Owner> {
        let at = self.names.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        let number = u32::try_from(at + 1).ok()?;
        NonZeroU32::new(number).map(Owner)
    }

    /// The name that this stands for.
    pub(super) fn name(&self, Owner(number): Owner) -> Option<&str> {
        let at = usize::try_from(number.get()).ok()?.checked_sub(1)?;
        self.names.get(at).map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once() {
        let mut owners = Owners::default();
        let (one, two) = (owners.of("a").unwrap(), owners.of("b").unwrap());
        assert_eq!((owners.of("a"), owners.of("b")), (Some(one), Some(two)));
        assert_eq!((owners.name(one), owners.name(two)), (Some("a"), Some("b")));
        assert_eq!(size_of::<Option<Owner>>(), 4);
    }
}
