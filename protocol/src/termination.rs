//! A container's last words: the file that Kubernetes names by `terminationMessagePath`, fetched with
//! `GetDiagnosticData` when the container has ended.

/// `log_type` of the `GetDiagnosticData` request. Its `path` is where the container has the file, exactly as its
/// mounts name it; the answer is the end of the file as text.
pub const LOG_TYPE: &str = "nacre.termination";

/// Most bytes of an answer: what a kubelet reads of such a file, which is its end.
pub const MOST_BYTES: usize = 4096;

/// The end of `content` as text of at most [`MOST_BYTES`] bytes. What is not UTF-8 is replaced.
#[must_use]
pub fn last_words(content: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(content).into_owned();
    if let Some(surplus) = text.len().checked_sub(MOST_BYTES) {
        let from = (surplus..text.len()).find(|at| text.is_char_boundary(*at));
        text.drain(..from.unwrap_or(text.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_whatever_it_is() {
        assert_eq!(last_words(b"disk on fire"), "disk on fire");
        assert_eq!(last_words(b""), "");
        let long = [vec![b'x'; 10_000], b"the end".to_vec()].concat();
        let words = last_words(&long);
        assert_eq!(words.len(), MOST_BYTES);
        assert!(words.ends_with("xthe end"), "{words}");
        for hostile in ["\u{20ac}".repeat(3000).into_bytes(), vec![0xff; 9000]] {
            let words = last_words(&hostile);
            assert!((MOST_BYTES - 3..=MOST_BYTES).contains(&words.len()), "{}", words.len());
        }
    }
}
