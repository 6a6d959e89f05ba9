//! The node as the configuration of each TEE has it.

use std::path::{Path, PathBuf};

use nacre_configuration::ConfigError;
use nacre_hypervisor::probe::{Facts, Report, Tee, ThisHost};

use super::node::{self, Node};

/// What was found with each configuration, asked for when it is first needed.
pub(super) struct Survey<'a> {
    /// The one that was named: then it holds for every TEE.
    pub(super) named: Option<PathBuf>,
    /// Else: the one that a TEE has for itself, if the node has one.
    pub(super) own: &'a dyn Fn(Tee) -> Option<PathBuf>,
    /// containerd's configuration.
    pub(super) containerd: &'a Path,
    pub(super) views: Vec<View>,
}

/// The node by one configuration.
pub(super) struct View {
    /// `None` for the default one.
    path: Option<PathBuf>,
    pub(super) node: Node,
    pub(super) facts: Facts,
}

/// The configuration that pods of this TEE are started with, if it is not the node's common one.
pub(super) fn own_configuration(tee: Tee) -> Option<PathBuf> {
    let tee = match tee {
        Tee::None => nacre_configuration::Tee::None,
        Tee::EmulatedSnp => nacre_configuration::Tee::EmulatedSnp,
        Tee::Snp => nacre_configuration::Tee::Snp,
        Tee::Tdx => nacre_configuration::Tee::Tdx,
    };
    tee.own_configuration()
}

impl Survey<'_> {
    /// The node by the configuration that was named, or by the common one.
    pub(super) fn common(&mut self) -> Result<&View, ConfigError> {
        self.by(self.named.clone())
    }

    /// The node as pods of this TEE find it.
    pub(super) fn view(&mut self, tee: Tee) -> Result<&View, ConfigError> {
        let path = self.named.clone().or_else(|| (self.own)(tee));
        self.by(path)
    }

    /// Could it run them?
    pub(super) fn report(&mut self, tee: Tee) -> Result<Report, ConfigError> {
        let View { node, facts, .. } = self.view(tee)?;
        Ok(facts.report(&node.question, tee))
    }

    fn by(&mut self, path: Option<PathBuf>) -> Result<&View, ConfigError> {
        let at = match self.views.iter().position(|view| view.path == path) {
            Some(at) => at,
            None => {
                let node = node::read(path.as_deref(), self.containerd)?;
                let facts = Facts::gather(&ThisHost, &node.question);
                self.views.push(View { path, node, facts });
                self.views.len() - 1
            }
        };
        Ok(&self.views[at])
    }
}

#[cfg(test)]
mod tests {
    use nacre_hypervisor::probe::Finding;

    use super::*;

    fn finding(report: &Report, id: &str) -> Finding {
        report.findings.iter().find(|finding| finding.id == id).expect(id).clone()
    }

    /// The shipped handlers of SEV-SNP and TDX read files of their own: what these name counts, for labels too.
    #[test]
    fn each_tee_is_judged_by_its_own_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let (snp, tdx) = (directory.path().join("snp.toml"), directory.path().join("tdx.toml"));
        std::fs::write(&snp, "vm.tee = \"snp\"\nsnp.firmware = \"/nowhere/of-snp.fd\"\n").unwrap();
        std::fs::write(&tdx, "vm.tee = \"tdx\"\ntdx.firmware = \"/nowhere/of-tdx.fd\"\n").unwrap();
        let own = |tee| match tee {
            Tee::Snp => Some(snp.clone()),
            Tee::Tdx => Some(tdx.clone()),
            Tee::None | Tee::EmulatedSnp => None,
        };
        let containerd = Path::new("/nowhere/containerd.toml");
        let survey = |named| Survey { named, own: &own, containerd, views: Vec::new() };
        let mut by_own = survey(None);
        for (tee, path, id, firmware) in [
            (Tee::Snp, &snp, "firmware.snp", "/nowhere/of-snp.fd is absent"),
            (Tee::Tdx, &tdx, "firmware.tdx", "/nowhere/of-tdx.fd is absent"),
        ] {
            let report = by_own.report(tee).unwrap();
            assert_eq!(report.tee, tee);
            assert_eq!(finding(&report, "configuration").found, path.display().to_string());
            assert_eq!(finding(&report, id).found, firmware);
        }
        // Nobody is asked twice.
        let _ = by_own.report(Tee::Snp).unwrap();
        assert_eq!(by_own.views.len(), 2);

        // Which was named holds for all.
        let mut by_name = survey(Some(tdx.clone()));
        for tee in Tee::ALL {
            let found = finding(&by_name.report(tee).unwrap(), "configuration").found;
            assert_eq!(found, tdx.display().to_string(), "{tee}");
        }
        assert_eq!((by_name.views.len(), by_name.common().unwrap().node.tee), (1, Tee::Tdx));

        // One that is there and broken is said, and never taken for absent.
        std::fs::write(&snp, "vm.tee = \"sgx\"\n").unwrap();
        let error = survey(None).report(Tee::Snp).unwrap_err().to_string();
        assert!(error.contains("snp.toml"), "{error}");
    }
}
