pub(crate) const DEFAULT_FRAME_CAP: usize = 64 << 20;
pub(crate) const MIN_FRAME_CAP: usize = 64 << 10;
pub(crate) const MAX_FRAME_CAP: usize = 1 << 30;
