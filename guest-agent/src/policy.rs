//! The policy that the guest is bound to at boot.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nacre_policy::{Gate, Policy};
use nacre_protocol::initdata::Initdata;
use nacre_protocol::start_report::{Failure, HOST_VISIBLE};

use crate::boot::Parameters;

/// A file that only development images have; production images cannot be made to record, or to give a shell.
pub(crate) const DEVELOPMENT: &str = "/etc/nacre/development";

/// Makes the gate that judges every request of the host: with the policy of the pod's initdata, or
/// else without one, so that nothing is allowed.
pub(crate) fn gate(
    initdata: Option<&Initdata>,
    parameters: &Parameters,
) -> anyhow::Result<Arc<Gate>> {
    let document = initdata.and_then(Initdata::policy);
    let gate = match document {
        Some(document) => {
            let policy = Policy::parse(document).context("the pod's initdata is of no use");
            let policy = policy.context(Failure::BadPolicy)?;
            tracing::info!(
                target: HOST_VISIBLE,
                sha256 = policy.sha256(),
                "bound to the policy of the pod's initdata"
            );
            Gate::bound_to(policy)
        }
        None if initdata.is_none() && parameters.danger_set_policy => {
            tracing::warn!(target: HOST_VISIBLE, "no policy yet: the host may set one");
            Gate::danger_awaiting_policy()
        }
        None => {
            tracing::warn!(target: HOST_VISIBLE, "the pod has no policy: every request will be denied");
            Gate::without_policy()
        }
    };
    if parameters.danger_record {
        anyhow::ensure!(
            Path::new(DEVELOPMENT).exists(),
            "the kernel parameter nacre.danger_record=1 needs a development image \
             (initrd-development.img)"
        );
        tracing::warn!(target: HOST_VISIBLE, "requests are recorded: this is a development image");
        gate.danger_record();
    }
    Ok(gate)
}
