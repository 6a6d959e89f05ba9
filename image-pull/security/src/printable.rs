//! Text from outside, made fit for messages.

/// Printable ASCII of `text`, at most `limit` bytes; what is left out is marked.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for character in text.chars() {
        if out.len() + 3 >= limit {
            out.truncate(limit.saturating_sub(3));
            out.push_str("...");
            return out;
        }
        let plain = character.is_ascii_graphic() || character == ' ';
        out.push(if plain { character } else { '?' });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn hostile_text_is_short_and_plain() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}", 100), "a?[31m?b?");
        let long = printable(&"x".repeat(1000), 50);
        assert_eq!(long.len(), 50);
        assert!(long.ends_with("..."));
    }
}
