//! Tables for people.

/// Columns as wide as their longest entry; the last one is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let entries = rows.iter().map(|row| row[column].chars().count());
        entries.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |entries: [&str; N]| {
        let padded: Vec<String> =
            entries.iter().zip(widths).map(|(entry, width)| format!("{entry:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(std::array::from_fn(|column| row[column].as_str())));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            [["a".to_owned(), "long entry".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["ID", "B"], &rows), "ID      B\na       long entry\nlonger\n");
        assert_eq!(table(["ID"], &[]), "ID\n");
    }
}
