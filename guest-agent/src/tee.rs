//! What this guest is, and what it is bound to: the TEE it runs in, the initdata that the TEE's report
//! vouches for, and the gate with the policy in it.
//!
//! The host chooses the initdata's disk freely. So where there is a TEE, nothing in the document is used
//! before its digest equals what the TEE reports; where the host brings none, the TEE must report none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nacre_attester::{Attester, Kind, System, detect};
use nacre_policy::Gate;
use nacre_protocol::initdata::Initdata;
use nacre_protocol::start_report::{Failure, HOST_VISIBLE};

use crate::boot::Parameters;
use crate::devices::Machine;
use crate::modules::Modules;
use crate::{initdata, policy};

/// What the guest is bound to for its life.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    /// Source of evidence; none without a TEE.
    pub(crate) tee: Option<Arc<dyn Attester>>,
    /// The pod's initdata, as the TEE's report has its digest. Without a TEE nothing vouches for it.
    pub(crate) initdata: Option<Arc<Initdata>>,
    /// Judges the host's requests by the initdata's policy.
    pub(crate) gate: Arc<Gate>,
    /// How long it took to find the TEE and what it vouches for.
    pub(crate) attestation: Duration,
    /// How long it took to read the policy.
    pub(crate) policy: Duration,
}

/// Why the initdata is not the one that this guest was launched with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BindingError {
    /// Another document.
    #[error(
        "the host gave initdata that this guest was not launched with: its digest {digest} gives \
         {field} {expected}, but {kind} reports {reported}"
    )]
    Other {
        /// By the document's own algorithm.
        digest: String,
        /// The report's field.
        field: &'static str,
        /// What it would hold for this document, in hex.
        expected: String,
        /// Who reports.
        kind: Kind,
        /// What it holds, in hex.
        reported: String,
    },
    /// No document.
    #[error(
        "the host gave no initdata, but {kind} reports {field} {reported}, which is the digest of some; \
         without initdata it is {expected}"
    )]
    Missing {
        /// The report's field.
        field: &'static str,
        /// What it holds without initdata, in hex.
        expected: String,
        /// Who reports.
        kind: Kind,
        /// What it holds, in hex.
        reported: String,
    },
}

/// Finds the TEE and the initdata, and binds the guest to them. What does not fit ends the boot.
pub(crate) async fn bind(
    machine: &Machine,
    modules: &Modules,
    parameters: &Parameters,
) -> anyhow::Result<Bound> {
    let began = Instant::now();
    let load = |name: &str| modules.ensure(name).map_err(|error| error.to_string());
    let tee = detect(parameters.tee.as_deref(), System::default(), load)
        .await
        .context("failed to find the trusted execution environment")
        .context(Failure::NoTee)?;
    let initdata = initdata::find(machine, modules).context("failed to read the pod's initdata")?;
    if let Some(tee) = &tee {
        let kind = tee.kind();
        let reported = tee
            .host_data()
            .await
            .with_context(|| format!("failed to learn from {kind} which initdata it vouches for"))
            .context(Failure::Attestation)?;
        check(kind, &reported, initdata.as_ref()).context(Failure::OtherInitdata)?;
        tracing::info!(target: HOST_VISIBLE, tee = kind.name(), host_data = hex(&reported), "this guest can be attested");
    }
    let attestation = began.elapsed();
    let gate = policy::gate(initdata.as_ref(), parameters)?;
    let policy = began.elapsed() - attestation;
    Ok(Bound { tee, initdata: initdata.map(Arc::new), gate, attestation, policy })
}

fn check(kind: Kind, reported: &[u8], initdata: Option<&Initdata>) -> Result<(), BindingError> {
    let digest = initdata.map(Initdata::digest);
    let (field, expected) = match kind {
        Kind::Snp | Kind::EmulatedSnp => {
            ("HOST_DATA", digest.map_or([0; 32], |digest| digest.host_data()).to_vec())
        }
        Kind::Tdx => {
            ("MRCONFIGID", digest.map_or([0; 48], |digest| digest.mr_config_id()).to_vec())
        }
    };
    if reported == expected {
        return Ok(());
    }
    let (expected, reported) = (hex(&expected), hex(reported));
    Err(match digest {
        Some(digest) => {
            BindingError::Other { digest: digest.to_string(), field, expected, kind, reported }
        }
        None => BindingError::Missing { field, expected, kind, reported },
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use nacre_protocol::initdata::Algorithm;

    use super::*;

    fn document(algorithm: Algorithm) -> Initdata {
        Initdata::new(algorithm, [("policy.rego".into(), "x".into())].into()).unwrap()
    }

    #[test]
    fn the_document_must_be_the_reported_one() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
            let initdata = document(algorithm);
            let digest = initdata.digest();
            let good = |kind, reported: &[u8]| check(kind, reported, Some(&initdata)).is_ok();
            assert!(good(Kind::Snp, &digest.host_data()));
            assert!(good(Kind::EmulatedSnp, &digest.host_data()));
            assert!(good(Kind::Tdx, &digest.mr_config_id()));
            let mut other = digest.host_data();
            other[31] ^= 1;
            assert!(!good(Kind::Snp, &other));
            assert!(!good(Kind::Snp, &[0; 32]));
            assert!(!good(Kind::Snp, &digest.host_data()[..31]));
            assert!(!good(Kind::Snp, &[]));
            assert!(!good(Kind::Tdx, &digest.host_data()));
        }
    }

    #[test]
    fn without_a_document_the_report_must_have_none() {
        assert_eq!(check(Kind::Snp, &[0; 32], None), Ok(()));
        assert_eq!(check(Kind::Tdx, &[0; 48], None), Ok(()));
        let error = check(Kind::EmulatedSnp, &[0xab; 32], None).unwrap_err().to_string();
        let (reported, none) = ("ab".repeat(32), "00".repeat(32));
        assert!(error.contains(&format!("reports HOST_DATA {reported}")), "{error}");
        assert!(error.contains(&format!("without initdata it is {none}")), "{error}");
    }

    #[test]
    fn a_refusal_names_both_values() {
        let initdata = document(Algorithm::Sha384);
        let error = check(Kind::Tdx, &[1; 48], Some(&initdata)).unwrap_err().to_string();
        let digest = initdata.digest().to_string();
        let value = digest.strip_prefix("sha384:").unwrap();
        assert!(
            error.contains(&format!("its digest {digest} gives MRCONFIGID {value}")),
            "{error}"
        );
        assert!(error.ends_with(&format!("but Intel TDX reports {}", "01".repeat(48))), "{error}");
    }
}
