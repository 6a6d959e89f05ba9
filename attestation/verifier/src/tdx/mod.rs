//! Appraisal of TDX evidence.

mod collateral;
mod compare;
mod verification;

use nacre_evidence::Tee;
use nacre_evidence::tdx::{Body, EventLog, Quote};
use time::OffsetDateTime;

use crate::appraisal::{Appraisal, Claims, Root, TdxClaims};
use crate::checks::{Check, CheckCode, complete};
use crate::collateral::Collateral;
use crate::references::Hex;
use crate::verifier::{Expected, binding_of};
pub use collateral::{TDX_COLLATERAL_LIMIT, TdxCollateral, TdxCollateralError};
pub(crate) use verification::TdxRoots;
use verification::platform_extension;

const FETCH: &str = "fetch the collateral for this platform from Intel's provisioning certification \
    service or a cache of it, and put it into the verifier's store";

pub(crate) fn appraise(
    roots: &TdxRoots,
    quote: &Quote,
    event_log: Option<&[u8]>,
    expected: &Expected<'_>,
    collateral: &Collateral,
) -> Appraisal {
    let body = quote.body();
    let mut checks = vec![present(collateral.tdx.as_ref()), attributes(body)];
    let (mut root, mut platform) = (Root::Unproven, None);
    if let Some(collateral) = &collateral.tdx {
        checks.push(period(collateral, expected.now));
        checks.push(same_platform(quote, collateral));
        let (found, verified, claims) = roots.verify(quote, collateral, expected.now);
        checks.extend(verified);
        (root, platform) = (found, claims);
    }
    checks.extend(session(body, expected));
    checks.push(replay(body, event_log));
    let (reference, comparison) = compare::references(body, platform.as_ref(), expected);
    checks.extend(comparison);
    let claims = Claims::Tdx(Box::new(TdxClaims::new(quote, platform)));
    Appraisal::new(root, reference, complete(Tee::Tdx, checks), claims)
}

/// The kind of platform that a quote is of, to find its collateral by.
pub(crate) fn fmspc(quote: &Quote) -> Option<Hex<6>> {
    platform_extension(quote).ok().map(|extension| Hex(extension.fmspc))
}

fn present(collateral: Option<&TdxCollateral>) -> Check {
    let found = match collateral {
        Some(collateral) => format!("collateral for FMSPC {}", collateral.fmspc()),
        None => "none".to_owned(),
    };
    let expected = "Intel's collateral for the platform";
    Check::of(CheckCode::TdxCollateral, collateral.is_some(), expected, found, FETCH)
}

fn period(collateral: &TdxCollateral, now: OffsetDateTime) -> Check {
    let outside = collateral.periods.iter().find(|(_, period)| !period.contains(now));
    let found = match outside {
        Some((part, period)) => format!("{part} is valid {period}"),
        None => format!("all, until {}", collateral.expires().date()),
    };
    let expected = format!("all parts valid on {}", now.date());
    Check::of(CheckCode::TdxCollateralPeriod, outside.is_none(), expected, found, FETCH)
}

fn same_platform(quote: &Quote, collateral: &TdxCollateral) -> Check {
    let pce_id = &collateral.tcb_info.pce_id;
    let name = |fmspc: &str, pce_id: &str| {
        format!("FMSPC {}, PCE-ID {}", fmspc.to_lowercase(), pce_id.to_lowercase())
    };
    let expected = name(&collateral.fmspc().to_string(), pce_id);
    let found = match platform_extension(quote) {
        Ok(extension) => name(&hex::encode(extension.fmspc), &hex::encode(extension.pce_id)),
        Err(problem) => problem,
    };
    Check::of(CheckCode::TdxPlatform, expected == found, expected, found, FETCH)
}

/// Debugging is compared with the reference values; these undo the protection too.
fn attributes(body: &Body) -> Check {
    let attributes = body.td_attributes;
    let services = body.td_1_5.is_some_and(|(_, services)| services != [0; 48]);
    let found = if attributes.other_untrusted() != 0 {
        "profiled or otherwise untrusted (bits 7:1)"
    } else if attributes.migratable() {
        "migratable (bit 29)"
    } else if !attributes.sept_ve_disabled() {
        "SEPT_VE_DISABLE (bit 28) is off: the host can raise exceptions within the guest"
    } else if services {
        "service TDs are bound to it"
    } else {
        "so"
    };
    Check::of(
        CheckCode::TdxAttributes,
        found == "so",
        "not profiled, not migratable, no service TDs, SEPT_VE_DISABLE on",
        found,
        "launch the TD with other attributes (QEMU: sept-ve-disable=on)",
    )
}

/// What binds the quote to this session and this guest's initdata.
fn session(body: &Body, expected: &Expected<'_>) -> [Check; 2] {
    let config_id = binding_of::<48>(expected.init_data);
    [
        Check::of(
            CheckCode::TdxReportData,
            body.report_data == expected.report_data,
            hex::encode(expected.report_data),
            hex::encode(body.report_data),
            "the evidence is of another session, nonce or key: attest anew",
        ),
        Check::of(
            CheckCode::TdxConfigId,
            config_id == Some(body.mr_config_id),
            config_id.map_or("an initdata digest of 32, 48 or 64 bytes".to_owned(), hex::encode),
            hex::encode(body.mr_config_id),
            "launch the guest with the initdata that it presents: MRCONFIGID is its digest, cut or \
             filled with zeros to 48 bytes, or zero without initdata",
        ),
    ]
}

/// The log is not signed: it explains registers that are.
fn replay(body: &Body, event_log: Option<&[u8]>) -> Check {
    const CODE: CheckCode = CheckCode::TdxEventLog;
    const FIX: &str = "pass the log as the firmware left it (/sys/firmware/acpi/tables/data/CCEL) \
        with the events since, or none";
    let expected = "a log that replays to RTMR0 to RTMR3";
    let Some(bytes) = event_log else {
        return Check::not_applicable(CODE, "no log; the registers themselves are compared");
    };
    let log = match EventLog::parse(bytes) {
        Ok(log) => log,
        Err(error) => return Check::of(CODE, false, expected, error.to_string(), FIX),
    };
    let replayed = log.replay();
    let other = (0..4).find(|index| replayed[*index] != body.rtmr[*index]);
    let found = match other {
        Some(index) => {
            let (log, quote) = (hex::encode(replayed[index]), hex::encode(body.rtmr[index]));
            format!("RTMR{index} is {quote}, the log replays to {log}")
        }
        None => format!("{} events replay", log.events().len()),
    };
    Check::of(CODE, other.is_none(), expected, found, FIX)
}
