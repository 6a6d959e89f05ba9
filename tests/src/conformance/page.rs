//! `docs/conformance.md`, made of the table.

use std::fmt::Write as _;

use super::table::BEHAVIOURS;
use crate::products::ContainerdVersion;

/// `docs/conformance.md`.
pub(super) fn text() -> String {
    let mut text = String::from(HEAD);
    let mut area = "";
    for behaviour in BEHAVIOURS {
        if behaviour.area != area {
            area = behaviour.area;
            let _ = write!(text, "\n## {area}\n\n| behaviour | what the kubelet sees |");
            for release in ContainerdVersion::ALL {
                let _ = write!(text, " {} |", release.name());
            }
            text.push_str("\n|---|---|---|---|---|\n");
        }
        let _ = write!(text, "| `{}` | {} |", behaviour.name, behaviour.promise);
        for release in ContainerdVersion::ALL {
            let word = if behaviour.skip(release).is_some() { "skip" } else { "pass" };
            let _ = write!(text, " {word} |");
        }
        text.push('\n');
    }
    text.push_str("\n## What is skipped, and why\n\n");
    for behaviour in BEHAVIOURS {
        for skip in behaviour.skips {
            let releases: Vec<_> = skip.releases.iter().map(|release| release.name()).collect();
            let releases = releases.join(", ");
            let _ = writeln!(text, "- `{}` ({releases}): {}", behaviour.name, skip.reason);
        }
    }
    text
}

const HEAD: &str = "\
# CRI conformance

What a kubelet asks of a container runtime through CRI, behaviour by behaviour, and what becomes of it with the handler
`nacre` on each release of containerd that is supported. The suite acts as the kubelet: it speaks CRI to a real containerd,
whose pods are real VMs, and is modelled on the kubelet's own use of CRI and on the public list of `critest`.

This page is made from the table that the tests run (`tests/src/conformance/table.rs`): a behaviour that says \"pass\" and
fails fails the build, and so does a page that is not the table's. The suite prints a line for each:

```text
PASS exec-sync (0.4 s)
SKIP stats-as-runc: ...
```

`cargo xtask test conforms` runs it on all releases; `NACRE_CONFORMANCE=exec` looks only at behaviours with that in their
names. Its pods have a policy that allows everything: what a policy denies is not the runtime's doing, and has stories of its
own (`tests/tests/policies.rs`).
";
