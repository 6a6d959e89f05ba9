//! Signals by name, as images and pods write them.

/// `SIGTERM`.
pub(crate) const TERM: u32 = 15;
/// `SIGKILL`.
pub(crate) const KILL: u32 = 9;

/// Signals of Linux on x86-64 from 1 on (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const FIRST_REAL_TIME: u32 = 34;
const LAST: u32 = 64;

/// `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3` or `RTMAX-1`.
pub(crate) fn number(text: &str) -> Option<u32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse() {
        return Some(number).filter(|number| (1..=LAST).contains(number));
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return u32::try_from(at + 1).ok();
    }
    let number = match name {
        "IOT" => 6,
        "POLL" => 29,
        "RTMIN" => FIRST_REAL_TIME,
        "RTMAX" => LAST,
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(more), _) => FIRST_REAL_TIME.checked_add(more.parse().ok()?)?,
            (_, Some(less)) => LAST.checked_sub(less.parse().ok()?)?,
            _ => return None,
        },
    };
    (FIRST_REAL_TIME..=LAST)
        .contains(&number)
        .then_some(number)
        .or([6, 29].contains(&number).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("3", Some(3)),
            ("SIGWINCH", Some(28)),
            ("SIGSYS", Some(31)),
            ("SIGPOLL", Some(29)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN+31", None),
            ("RTMAX-31", None),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
