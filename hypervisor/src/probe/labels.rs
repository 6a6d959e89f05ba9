//! Labels of a node for schedulers, in the format of Node Feature Discovery's feature files.

use super::Facts;
use super::finding::{Report, Tee, Verdict};

/// Prefix of all labels. Node Feature Discovery takes any namespace but those of `kubernetes.io`.
const PREFIX: &str = "nacre.io/";

/// A label: `name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// With its prefix.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Facts {
    /// The labels, sorted by name. `asked` is what the node is configured for. A node may have a configuration
    /// for each TEE: it is ready for those that have a report here which says so.
    #[must_use]
    pub fn labels(&self, asked: Tee, reports: &[Report]) -> Vec<Label> {
        let ready = |tee| {
            reports.iter().any(|report| report.tee == tee && report.verdict() == Verdict::Ready)
        };
        let truth = |value: bool| value.to_string();
        let mut labels = vec![
            ("ready", truth(ready(asked))),
            ("tee", asked.name().to_owned()),
            ("kvm", truth(self.kvm_usable())),
        ];
        let [none, emulated, snp, tdx] = Tee::ALL.map(ready);
        labels.push(("tee-none", truth(none)));
        labels.push(("tee-emulated-snp", truth(emulated)));
        labels.push(("tee-snp", truth(snp)));
        labels.push(("tee-tdx", truth(tdx)));
        let versions = [
            ("qemu.version", self.qemu.version.as_ref().ok().map(|version| version.text.clone())),
            ("kernel.version", self.system.kernel.as_ref().ok().cloned()),
            ("snp.firmware", self.snp_firmware()),
            ("tdx.module", self.tdx.module_version()),
        ];
        for (name, version) in versions {
            labels.extend(version.as_deref().and_then(value).map(|value| (name, value)));
        }
        labels.sort();
        labels
            .into_iter()
            .map(|(name, value)| Label { name: format!("{PREFIX}{name}"), value })
            .collect()
    }
}

/// A text as a label's value: at most 63 letters, digits, `-`, `_` and `.`, the first and the last a letter or
/// digit (Kubernetes, "Labels and Selectors"). Other characters become `_`; nothing is left of a text
/// without letters and digits.
fn value(text: &str) -> Option<String> {
    const LONGEST: usize = 63;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let text: String =
        text.chars().map(|c| if allowed(c) { c } else { '_' }).take(LONGEST).collect();
    let text = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_kubernetes_takes() {
        for (text, expected) in [
            ("10.0.2", Some("10.0.2")),
            ("6.18.44-fc-v445", Some("6.18.44-fc-v445")),
            ("10.0.2+ds (Debian)", Some("10.0.2_ds__Debian")),
            ("-.x.-", Some("x")),
            ("a=b\nc", Some("a_b_c")),
            ("ü", None),
            ("", None),
        ] {
            assert_eq!(value(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(value(&"a.".repeat(100)).unwrap().len(), 63);
    }
}
