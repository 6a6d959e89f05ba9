//! Comparison of an SNP report with reference values.

use nacre_evidence::Tee;
use nacre_evidence::snp::{Product, ReportFields};

use crate::checks::{Check, CheckCode};
use crate::references::{Hex, SnpPolicy, SnpReferences, TcbMinimum, Values, best_match};
use crate::verifier::Expected;

/// Compares with every document that counts.
pub(super) fn references(
    fields: &ReportFields,
    product: Option<Product>,
    expected: &Expected<'_>,
) -> (Option<String>, Vec<Check>) {
    let (reference, mut checks) = best_match(
        Tee::Snp,
        CheckCode::SnpReferences,
        CheckCode::SnpMeasurement,
        expected,
        |values| match values {
            Values::Snp(values) => Some(compare(fields, product, values)),
            Values::Tdx(_) => None,
        },
    );
    if reference.is_none() {
        checks.push(debug(fields, &SnpPolicy::default()));
    }
    (reference, checks)
}

fn compare(fields: &ReportFields, product: Option<Product>, values: &SnpReferences) -> Vec<Check> {
    let policy = &values.policy;
    let mut checks = vec![
        one_of(
            CheckCode::SnpMeasurement,
            &values.measurements,
            Hex(fields.measurement),
            "another guest was launched (firmware, kernel, initrd, command line or processors): launch \
             the expected one, or register this one with what `nacre measure` prints for it",
        ),
        tcb_minimum(fields, product, &values.tcb_minimum),
        debug(fields, policy),
    ];
    checks.extend(guest_policy(fields, policy));
    for (code, digests, digest) in [
        (CheckCode::SnpIdKey, &values.id_key_digests, fields.id_key_digest),
        (CheckCode::SnpAuthorKey, &values.author_key_digests, fields.author_key_digest),
    ] {
        checks.push(if digests.is_empty() {
            Check::not_applicable(code, "the reference values name no keys")
        } else {
            let fix = "launch the guest with an ID block by an expected key";
            one_of(code, digests, Hex(digest), fix)
        });
    }
    checks
}

fn one_of(code: CheckCode, allowed: &[Hex<48>], found: Hex<48>, fix: &'static str) -> Check {
    let expected: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    Check::of(code, allowed.contains(&found), expected.join(" or "), found.to_string(), fix)
}

/// What is reported, and what ran when the guest was launched: older firmware may have let its memory
/// out before the update.
fn tcb_minimum(fields: &ReportFields, product: Option<Product>, minimum: &TcbMinimum) -> Check {
    const CODE: CheckCode = CheckCode::SnpTcbMinimum;
    const FIX: &str = "update the host's firmware and restart the guest; only if that level is known \
        to be good enough, lower tcb_minimum";
    let products = match minimum {
        TcbMinimum::Any => return Check::not_applicable(CODE, "tcb_minimum is \"any\""),
        TcbMinimum::Products(products) => products,
    };
    let Some(floor) = product.and_then(|product| products.get(&product)) else {
        let expected: Vec<&str> = products.keys().map(|product| product.name()).collect();
        let found = product.map_or("an unknown product", Product::name);
        let fix = "add a minimum for this product to tcb_minimum if it is to be accepted";
        return Check::of(CODE, false, expected.join(" or "), found, fix);
    };
    let below = [("reported", &fields.reported_tcb), ("launch", &fields.launch_tcb)]
        .into_iter()
        .find(|(_, tcb)| !tcb.at_least(floor));
    let found = match below {
        Some((name, tcb)) => format!("{name}: {tcb}"),
        None => fields.reported_tcb.to_string(),
    };
    Check::of(CODE, below.is_none(), format!("at least {floor}"), found, FIX)
}

fn debug(fields: &ReportFields, policy: &SnpPolicy) -> Check {
    let (allowed, accepted) = (fields.policy.debug_allowed(), policy.debug);
    Check::of(
        CheckCode::SnpDebug,
        !allowed || accepted,
        if accepted { "debugging accepted" } else { "debugging not allowed" },
        if allowed { "debugging allowed: the host can read the guest" } else { "not allowed" },
        "launch the guest without the policy's debug bit (19)",
    )
}

fn guest_policy(fields: &ReportFields, policy: &SnpPolicy) -> [Check; 7] {
    let (guest, platform) = (fields.policy, fields.platform_info);
    let permission = |code, allowed: bool, accepted: bool, fix| {
        let expected = if accepted { "allowed or not" } else { "not allowed" };
        let found = if allowed { "allowed" } else { "not allowed" };
        Check::of(code, !allowed || accepted, expected, found, fix)
    };
    let requirement = |code, required: bool, there: bool, fix| {
        if !required {
            return Check::not_applicable(code, "the reference values do not ask for it");
        }
        Check::of(code, there, "yes", if there { "yes" } else { "no" }, fix)
    };
    let (major, minor) = guest.minimum_abi();
    let (least_major, least_minor) = policy.minimum_abi;
    [
        permission(
            CheckCode::SnpMigrationAgent,
            guest.migration_agent_allowed(),
            policy.migration_agent,
            "launch the guest without the policy's migration bit (18)",
        ),
        permission(
            CheckCode::SnpSmt,
            guest.smt_allowed(),
            policy.smt,
            "launch the guest without the policy's SMT bit (16), on a host without hyper-threads",
        ),
        permission(
            CheckCode::SnpCxl,
            guest.cxl_allowed(),
            policy.cxl,
            "launch the guest without the policy's CXL bit (21)",
        ),
        requirement(
            CheckCode::SnpSingleSocket,
            policy.single_socket,
            guest.single_socket(),
            "launch the guest with the policy's single-socket bit (20)",
        ),
        requirement(
            CheckCode::SnpCiphertextHiding,
            policy.ciphertext_hiding,
            guest.ciphertext_hiding_required() && platform.ciphertext_hiding(),
            "turn ciphertext hiding on at the host, and require it in the guest's policy (bit 24)",
        ),
        requirement(
            CheckCode::SnpAliasCheck,
            policy.alias_check,
            platform.alias_check_complete(),
            "update the host's firmware to one that checks memory for aliases",
        ),
        Check::of(
            CheckCode::SnpAbi,
            (major, minor) >= (least_major, least_minor),
            format!("at least {least_major}.{least_minor}"),
            format!("{major}.{minor}"),
            "launch the guest with a policy that demands this ABI version",
        ),
    ]
}
