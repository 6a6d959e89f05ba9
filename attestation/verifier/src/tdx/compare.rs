//! Comparison of a TDX quote with reference values.

use nacre_evidence::Tee;
use nacre_evidence::tdx::Body;

use crate::appraisal::TdxPlatform;
use crate::checks::{Check, CheckCode};
use crate::references::{Allowed, Hex, TdxReferences, Values, best_match};
use crate::verifier::Expected;

/// Compares with every document that counts, as with SNP.
pub(super) fn references(
    body: &Body,
    platform: Option<&TdxPlatform>,
    expected: &Expected<'_>,
) -> (Option<String>, Vec<Check>) {
    let compared =
        best_match(Tee::Tdx, CheckCode::TdxReferences, CheckCode::TdxMrTd, expected, |values| {
            match values {
                Values::Tdx(values) => Some(compare(body, platform, values)),
                Values::Snp(_) => None,
            }
        });
    let (reference, mut checks) = compared;
    if reference.is_none() {
        checks.push(debug(body, false));
    }
    (reference, checks)
}

fn compare(body: &Body, platform: Option<&TdxPlatform>, values: &TdxReferences) -> Vec<Check> {
    const LAUNCH: &str =
        "another guest was launched: launch the expected one, or register this one";
    const RTMR: [CheckCode; 4] =
        [CheckCode::TdxRtmr0, CheckCode::TdxRtmr1, CheckCode::TdxRtmr2, CheckCode::TdxRtmr3];
    let mut checks = vec![
        Check::of(
            CheckCode::TdxMrTd,
            values.mr_td.contains(&Hex(body.mr_td)),
            one_of(&values.mr_td),
            hex::encode(body.mr_td),
            LAUNCH,
        ),
        debug(body, values.debug),
    ];
    for ((code, allowed), found) in RTMR.into_iter().zip(&values.rtmr).zip(body.rtmr) {
        checks.push(match allowed {
            Allowed::Any => {
                let found = hex::encode(found);
                Check::not_applicable(code, format!("{found}; the reference values say \"any\""))
            }
            Allowed::These(list) => Check::of(
                code,
                list.contains(&Hex(found)),
                one_of(list),
                hex::encode(found),
                LAUNCH,
            ),
        });
    }
    if let Some(platform) = platform {
        checks.push(tcb_status(platform, values));
        checks.push(advisories(platform, &values.advisories));
    }
    checks
}

fn one_of(allowed: &[Hex<48>]) -> String {
    let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    allowed.join(" or ")
}

fn debug(body: &Body, accepted: bool) -> Check {
    let on = body.td_attributes.debug();
    Check::of(
        CheckCode::TdxDebug,
        !on || accepted,
        if accepted { "debugging accepted" } else { "debugging off" },
        if on { "debugging on: the host can read the guest" } else { "off" },
        "launch the TD without the debug attribute",
    )
}

fn tcb_status(platform: &TdxPlatform, values: &TdxReferences) -> Check {
    Check::of(
        CheckCode::TdxTcbStatus,
        values.tcb_status.contains(&platform.tcb_status),
        values.tcb_status.join(" or "),
        platform.tcb_status.clone(),
        "update the platform's firmware and TDX module; only if that level is known to be good \
         enough, accept its status in the reference values",
    )
}

fn advisories(platform: &TdxPlatform, accepted: &Allowed<String>) -> Check {
    let others: Vec<&str> = platform
        .advisories
        .iter()
        .filter(|advisory| !accepted.accepts(advisory))
        .map(String::as_str)
        .collect();
    let expected = match accepted {
        Allowed::Any => "any".to_owned(),
        Allowed::These(list) if list.is_empty() => "none".to_owned(),
        Allowed::These(list) => format!("none but {}", list.join(", ")),
    };
    let found = if others.is_empty() { "no others".to_owned() } else { others.join(", ") };
    Check::of(
        CheckCode::TdxAdvisories,
        others.is_empty(),
        expected,
        found,
        "update the platform; only if an advisory is known not to matter, accept it in the reference \
         values",
    )
}
