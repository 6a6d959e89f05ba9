//! Patterns for names: `*` is any text without a slash, `**` any text at all; the whole name must
//! match. Regular expressions are not offered: one forgotten `^` or `.` admits a stranger.

/// Longest pattern, in bytes. Together with the bound on names it bounds the work.
pub(crate) const PATTERN_LIMIT: usize = 512;

/// Whether the whole of `name` is what `pattern` describes. Time is at most their lengths' product.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.as_bytes();
    let name = name.as_bytes();
    // reachable[i]: what was read of the pattern can be the first i bytes of the name.
    let mut reachable = vec![false; name.len() + 1];
    reachable[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let any = pattern[at] == b'*';
        let deep = any && pattern.get(at + 1) == Some(&b'*');
        let mut next = vec![false; name.len() + 1];
        for i in 0..=name.len() {
            if any {
                let before = i.checked_sub(1).filter(|before| deep || name[*before] != b'/');
                next[i] = reachable[i] || before.is_some_and(|before| next[before]);
            } else if i > 0 {
                next[i] = reachable[i - 1] && name[i - 1] == pattern[at];
            }
        }
        reachable = next;
        at += if deep { 2 } else { 1 };
    }
    reachable[name.len()]
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stop_at_slashes_and_patterns_are_anchored() {
        for (pattern, name) in [
            ("r.example/team/**", "r.example/team/a/b"),
            ("r.example/*/b", "r.example/a/b"),
            ("**", "anything/at/all"),
            ("*@example.com", "ann@example.com"),
            (
                "https://g.example/o/*/w.yml@refs/tags/v*",
                "https://g.example/o/r/w.yml@refs/tags/v1",
            ),
            ("a**b", "ab"),
            ("", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("r.example/team/*", "r.example/team/a/b"),
            ("r.example/team", "r.example/team/a"),
            ("r.example/team", "xr.example/team"),
            ("*@example.com", "ann@example.com.evil"),
            ("r.example/team/**", "r.example/team"),
            ("a.b", "axb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
    }
}
