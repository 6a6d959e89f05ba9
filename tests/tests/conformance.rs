//! CRI conformance on each release of containerd; the behaviours are in `tests/src/conformance/table.rs`.

use nacre_tests::ContainerdVersion;
use nacre_tests::conformance::conform;

#[test]
fn containerd_1_6_conforms() -> anyhow::Result<()> {
    conform(ContainerdVersion::V1_6)
}

#[test]
fn containerd_1_7_conforms() -> anyhow::Result<()> {
    conform(ContainerdVersion::V1_7)
}

#[test]
fn containerd_2_1_conforms() -> anyhow::Result<()> {
    conform(ContainerdVersion::V2_1)
}
