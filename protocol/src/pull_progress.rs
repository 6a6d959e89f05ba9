//! How far image pulls have come, fetched with `GetDiagnosticData` while a `CreateContainer` runs.

/// `log_type` of the `GetDiagnosticData` request that returns a line for each pull that runs:
/// `<container> <layers done> <layers> <bytes done> <bytes>`. Bytes are those of the layers as they travel.
pub const LOG_TYPE: &str = "nacre.pulls";

/// A pull that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// The container that waits for it.
    pub container: String,
    /// Layers that are verified and unpacked.
    pub layers_done: u32,
    /// Layers of the image.
    pub layers: u32,
    /// Bytes that came.
    pub bytes_done: u64,
    /// Bytes of all layers.
    pub bytes: u64,
}

impl std::fmt::Display for PullProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { container, layers_done, layers, bytes_done, bytes } = self;
        write!(f, "{container} {layers_done} {layers} {bytes_done} {bytes}")
    }
}

/// Reads the lines of an answer; lines of another form are left out, since a newer guest may add some.
pub fn parse(text: &str) -> Vec<PullProgress> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let progress = PullProgress {
            container: words.next()?.to_owned(),
            layers_done: words.next()?.parse().ok()?,
            layers: words.next()?.parse().ok()?,
            bytes_done: words.next()?.parse().ok()?,
            bytes: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(progress)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let progress = PullProgress {
            container: "c".into(),
            layers_done: 1,
            layers: 3,
            bytes_done: 40,
            bytes: 120,
        };
        assert_eq!(
            parse(&format!("{progress}\nnot a pull\nc 1 2 3 4 5\nc 1 -2 3 4\n")),
            [progress]
        );
    }
}
