//! The cases, by class.

mod bombs;
mod paths;
mod smuggling;
mod special;
mod whiteouts;

use crate::case::Case;

/// All cases, class by class.
#[must_use]
pub fn corpus() -> Vec<Case> {
    [paths::cases(), whiteouts::cases(), special::cases(), smuggling::cases(), bombs::cases()].into_iter().flatten().collect()
}
