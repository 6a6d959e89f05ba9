//! Appraisal of TDX evidence.

use nacre_evidence::Tee;
use nacre_evidence::tdx::{Body, EventLog, Quote};

use crate::appraisal::{Appraisal, Claims, Root, TdxClaims};
use crate::checks::{Check, CheckCode, complete};
use crate::verifier::{Expected, binding_of};

pub(crate) fn appraise(
    quote: &Quote,
    event_log: Option<&[u8]>,
    expected: &Expected<'_>,
) -> Appraisal {
    let body = quote.body();
    let mut checks = Vec::new();
    checks.extend(session(body, expected));
    checks.push(replay(body, event_log));
    let claims = Claims::Tdx(Box::new(TdxClaims::new(quote, None)));
    Appraisal::new(Root::Unproven, None, complete(Tee::Tdx, checks), claims)
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
