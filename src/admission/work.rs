//! What work is for.

/// What is in work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// On a body.
    Body,
    /// On an answer, ours or another server's.
    Answer,
    /// On a part of a file, on its way into the store.
    Part,
    /// On a little one.
    LittlePart,
}
