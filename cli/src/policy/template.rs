//! `nacre policy allow-all` and `deny-all`.

use nacre_policy_author::template;

use crate::Verdict;
use crate::input::print;

pub(super) fn allow_all() -> anyhow::Result<Verdict> {
    eprintln!("nacre: DANGER: under this policy the host may do everything; for development only");
    print(&template::danger_allow_all())?;
    Ok(Verdict::Good)
}

pub(super) fn deny_all() -> anyhow::Result<Verdict> {
    print(&template::deny_all())?;
    Ok(Verdict::Good)
}
