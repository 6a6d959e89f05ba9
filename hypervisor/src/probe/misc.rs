//! The misc controller of cgroups (Documentation/admin-guide/cgroup-v2.rst, "Misc"): how many encrypted
//! guests the host can run at a time, and runs.

use super::host::{Host, Part, text};

/// What the controller counts, for the whole host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Misc {
    capacity: Vec<(String, u64)>,
    current: Vec<(String, u64)>,
}

/// Where the root of the controller may be: cgroup v2, or v1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/misc"];
/// The kernel knows some four resources.
const MOST_BYTES: usize = 4096;

impl Misc {
    pub(crate) fn gather(host: &dyn Host) -> Misc {
        let read = |file: &str| {
            let read = |root| text(host, &format!("{root}/{file}"), Part::Whole(MOST_BYTES));
            ROOTS.iter().find_map(|root| read(root).ok()).map(|text| parse(&text))
        };
        Misc {
            capacity: read("misc.capacity").unwrap_or_default(),
            current: read("misc.current").unwrap_or_default(),
        }
    }

    /// How much of a resource there is.
    pub(crate) fn capacity(&self, resource: &str) -> Option<u64> {
        find(&self.capacity, resource)
    }

    /// How much of it is in use.
    pub(crate) fn current(&self, resource: &str) -> Option<u64> {
        find(&self.current, resource)
    }
}

fn find(values: &[(String, u64)], resource: &str) -> Option<u64> {
    values.iter().find(|(name, _)| name == resource).map(|&(_, value)| value)
}

/// Lines `resource number`; others are left out.
fn parse(text: &str) -> Vec<(String, u64)> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_counts_are_left_out() {
        let counts = parse("sev 410\nsev_es 99\ntdx -3\nx max\n\nsev_es\n");
        assert_eq!(counts, [("sev".to_owned(), 410), ("sev_es".to_owned(), 99)]);
    }
}
