//! The cases, by class.

mod bombs;
mod cache;
mod credentials;
mod encryption;
mod identity;
mod leftovers;
mod paths;
mod policy;
mod smuggling;
mod special;
mod transport;
mod whiteouts;

use crate::case::Case;

/// All cases, class by class.
#[must_use]
pub fn corpus() -> Vec<Case> {
    [
        paths::cases(),
        whiteouts::cases(),
        special::cases(),
        smuggling::cases(),
        bombs::cases(),
        identity::cases(),
        policy::cases(),
        transport::cases(),
        credentials::cases(),
        cache::cases(),
        encryption::cases(),
        leftovers::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::case::Class;

    #[test]
    fn every_case_can_be_called_by_its_name() {
        let cases = corpus();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len(), "a name is used twice");
        for case in &cases {
            let plain = case.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
            assert!(plain && !case.attack.is_empty(), "{}", case.name);
        }
        assert!(Class::ALL.iter().all(|class| cases.iter().any(|case| case.class == *class)));
    }
}
