//! Numbers that stand for the user of a container's image, and its groups.
//!
//! An image may name its user. containerd wants numbers before any guest runs, and looks the name up in files
//! of the image, which a node with Nacre's snapshotter does not have. The snapshotter gives it files in which
//! the names have these numbers; the guest replaces them by what the image's own files say, and asks the
//! policy about the result. They are at the upper end of what containerd and runc take for a user (2^31 - 1).

/// As a user id: the image's user. As a group id: that user's primary group.
pub const IMAGE_USER: u32 = 2_147_438_147;

/// As a group id: the group that the image names beside its user (`USER user:group`).
pub const IMAGE_GROUP: u32 = 2_147_438_148;

/// Among the supplementary groups: those of the image that list its user.
pub const IMAGE_GROUPS: u32 = 2_147_438_149;

/// Whether a number is one of these.
#[must_use]
pub const fn is_marker(number: u32) -> bool {
    matches!(number, IMAGE_USER | IMAGE_GROUP | IMAGE_GROUPS)
}
