//! Enums whose variants have a name, the same in JSON, in metrics, in the log and in texts.

/// `Display` by `as_str`, padded as any text.
macro_rules! show_by_name {
    ($($name:ty),+ $(,)?) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+};
}

pub(crate) use show_by_name;
