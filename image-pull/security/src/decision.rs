//! From a rule to a decision: what needs no signature first, then signatures until all is met.

use nacre_trust::Digest;

use crate::identity::Identity;
use crate::miss::{Miss, Stage};
use crate::policy::{Requirement, Rule, Selected};
use crate::search::{Found, Places, Search};
use crate::verifier::Verifier;
use crate::{Refused, Sources, Subject};

/// Demands of which one has to be met, and by what it was.
struct Clause<'a> {
    met: Option<String>,
    open: Vec<(Verifier<'a>, &'a Identity)>,
}

/// Why the rule admits the image.
pub(crate) async fn decide(
    selected: Selected<'_>,
    subject: &Subject,
    sources: &dyn Sources,
) -> Result<String, Refused> {
    let Selected { rule, lookaside } = selected;
    let mut clauses = Vec::new();
    for requirements in &rule.clauses {
        clauses.push(clause(rule, requirements, subject, sources).await?);
    }
    if clauses.iter().any(|clause| clause.met.is_none()) {
        by_signatures(rule, lookaside, &mut clauses, subject, sources).await?;
    }
    let reasons: Vec<String> = clauses.into_iter().filter_map(|clause| clause.met).collect();
    Ok(reasons.join(", "))
}

/// What needs no signature is decided before any request is made; keys are fetched for the rest.
async fn clause<'a>(
    rule: &Rule,
    requirements: &'a [Requirement],
    subject: &Subject,
    sources: &dyn Sources,
) -> Result<Clause<'a>, Refused> {
    let met = requirements.iter().find_map(|one| without_signature(one, subject));
    if met.is_some() {
        return Ok(Clause { met, open: Vec::new() });
    }
    let mut open = Vec::new();
    let mut problem = None;
    for requirement in requirements {
        if let Requirement::Signed { by, identity } = requirement {
            match Verifier::load(by, sources).await {
                Ok(verifier) => open.push((verifier, identity)),
                Err(why) => problem = Some(why),
            }
        }
    }
    if !open.is_empty() {
        if let Some(why) = problem {
            tracing::warn!(image = %subject, "one of several keys cannot be used: {why}");
        }
        return Ok(Clause { met: None, open });
    }
    let (found, advice) = match problem {
        Some(why) => (why, "the key broker has to hold it, and give it to this guest"),
        None => refusal(requirements),
    };
    Err(Refused::new(subject, &rule.name, &found, advice))
}

fn without_signature(requirement: &Requirement, subject: &Subject) -> Option<String> {
    match requirement {
        Requirement::Anything => Some("accepted without a signature".to_owned()),
        Requirement::Pinned => {
            subject.digest.map(|digest| format!("the reference is pinned to {digest}"))
        }
        Requirement::Digests(digests) => {
            let listed = |digest: &&Digest| subject.manifests.contains(*digest);
            digests.iter().find(listed).map(|digest| format!("{digest} is listed"))
        }
        Requirement::Nothing | Requirement::Signed { .. } => None,
    }
}

fn refusal(requirements: &[Requirement]) -> (String, &'static str) {
    for requirement in requirements {
        match requirement {
            Requirement::Pinned => {
                let found = "the reference names no digest".to_owned();
                return (found, "write it as name@sha256:digest");
            }
            Requirement::Digests(_) => {
                let found = "the image is none of the digests that are listed".to_owned();
                return (found, "list its digest, or pull a listed one");
            }
            Requirement::Anything | Requirement::Nothing | Requirement::Signed { .. } => {}
        }
    }
    ("it rejects".to_owned(), "give the image a rule of its own in the image policy")
}

async fn by_signatures(
    rule: &Rule,
    lookaside: Option<&str>,
    clauses: &mut [Clause<'_>],
    subject: &Subject,
    sources: &dyn Sources,
) -> Result<(), Refused> {
    let open = || clauses.iter().filter(|clause| clause.met.is_none()).flat_map(|c| &c.open);
    let attached = open().any(|(verifier, _)| verifier.is_attached());
    let stored = open().any(|(verifier, _)| !verifier.is_attached());
    let mut nearest = None;
    if stored && lookaside.is_none() {
        let missing = "the policy has no lookaside, where simple signatures are";
        nearest = Some(Miss::new(Stage::Form, missing));
    }
    let places = Places { attached, lookaside: lookaside.filter(|_| stored) };
    let mut search = Search::new(subject, sources, places);
    while clauses.iter().any(|clause| clause.met.is_none()) {
        let Some(found) = search.next().await else {
            return Err(unmet(rule, clauses, subject, search.signatures(), nearest));
        };
        let miss = judge_all(clauses, &found, subject);
        nearest = [nearest, miss].into_iter().flatten().max_by_key(|miss| miss.stage);
    }
    Ok(())
}

/// One signature may meet several clauses. Returns how near it came to those that it does not meet.
fn judge_all(clauses: &mut [Clause<'_>], found: &Found, subject: &Subject) -> Option<Miss> {
    if let Found::Broken(problem) = found {
        return Some(Miss::new(Stage::Form, problem));
    }
    let mut nearest: Option<Miss> = None;
    for clause in clauses.iter_mut().filter(|clause| clause.met.is_none()) {
        for (verifier, identity) in &clause.open {
            match verifier.judge(found, subject, identity) {
                Some(Ok(signer)) => {
                    clause.met = Some(signer);
                    break;
                }
                Some(Err(miss)) => {
                    nearest = [nearest, Some(miss)].into_iter().flatten().max_by_key(|m| m.stage);
                }
                None => {}
            }
        }
    }
    nearest
}

fn unmet(
    rule: &Rule,
    clauses: &[Clause<'_>],
    subject: &Subject,
    signatures: usize,
    nearest: Option<Miss>,
) -> Refused {
    let open = clauses.iter().find(|clause| clause.met.is_none());
    let wanted: Vec<String> =
        open.iter().flat_map(|clause| &clause.open).map(|(one, _)| one.wanted()).collect();
    let plural = if signatures == 1 { "" } else { "s" };
    let mut found = format!("{signatures} signature{plural}, none by {}", wanted.join(" or "));
    let advice = match &nearest {
        None => "sign it, and keep the signature beside it",
        Some(miss) => match miss.stage {
            Stage::Form => "check the registry and what is attached to the image",
            Stage::Signer => "sign it with what the policy names, or name the signer there",
            Stage::Proof => "sign it again, or check the policy's trust root",
            Stage::Digest => "sign this very digest",
            Stage::Name => "sign it under this name, or change the identity in the rule",
        },
    };
    if let Some(miss) = nearest {
        found.push_str(&format!("; {}", miss.why));
    }
    Refused::new(subject, &rule.name, &found, advice)
}
