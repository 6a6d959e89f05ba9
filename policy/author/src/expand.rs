//! `$(VAR)` references as the kubelet expands them.
//!
//! `$(NAME)` is the variable's value, `$$` is one dollar sign (so `$$(NAME)` is the text `$(NAME)`), anything else after
//! a dollar sign stays as it is, and a reference to an unknown variable stays as it is. Values are inserted once: what
//! they contain is not expanded again.
//!
//! Source: Kubernetes API reference, `EnvVar.value` and `Container.args`.

use crate::workload::{EnvValue, PodFact, SecretText};

/// Bytes of one argument or variable that Linux can pass to a program (`MAX_ARG_STRLEN`).
const LENGTH_LIMIT: usize = 128 * 1024;

/// The expanded text is longer than any argument or variable can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is longer than {LENGTH_LIMIT} bytes after $(VAR) expansion, which no program can be given: shorten it"
)]
pub(crate) struct TooLong;

/// Text of which parts may be decided only when the pod runs.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pieces: Vec<Piece>,
    length: usize,
    secret: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Known(String),
    Fact(PodFact),
    /// A reference that stays as it is unless the cluster has a service of that name.
    Service(String, PodFact),
}

impl Text {
    pub(crate) fn known(text: impl Into<String>) -> Self {
        let mut all = Self::default();
        all.push(&text.into());
        all
    }

    pub(crate) fn secret(text: impl Into<String>) -> Self {
        Self { secret: true, ..Self::known(text) }
    }

    pub(crate) fn fact(fact: PodFact) -> Self {
        Self { pieces: vec![Piece::Fact(fact)], length: 1, secret: false }
    }

    fn push(&mut self, text: &str) {
        self.length += text.len();
        match self.pieces.last_mut() {
            Some(Piece::Known(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Known(text.to_owned())),
        }
    }

    fn append(&mut self, other: &Self) {
        for piece in &other.pieces {
            match piece {
                Piece::Known(text) => self.push(text),
                run_time => {
                    self.length += 1;
                    self.pieces.push(run_time.clone());
                }
            }
        }
        self.secret |= other.secret;
    }

    /// Bytes, where what is decided at run time counts as little as possible.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The text, if all of it is known and none of it is secret.
    pub(crate) fn plain(&self) -> Option<&str> {
        match &self.pieces[..] {
            _ if self.secret => None,
            [] => Some(""),
            [Piece::Known(text)] => Some(text),
            _ => None,
        }
    }

    /// The form in which the policy document uses it.
    pub(crate) fn into_value(self) -> EnvValue {
        match &self.pieces[..] {
            [] if self.secret => EnvValue::Secret(SecretText::new(String::new())),
            [] => EnvValue::Literal(String::new()),
            [Piece::Known(text)] if self.secret => EnvValue::Secret(SecretText::new(text.clone())),
            [Piece::Known(text)] => EnvValue::Literal(text.clone()),
            [Piece::Fact(fact)] => EnvValue::FromPod(*fact),
            pieces => {
                let inner: String = pieces.iter().map(Piece::regex).collect();
                EnvValue::Pattern {
                    regex: SecretText::new(format!("^{inner}$")),
                    secret: self.secret,
                }
            }
        }
    }
}

impl Piece {
    fn regex(&self) -> String {
        match self {
            Self::Known(text) => quote(text),
            Self::Fact(fact) => fact.pattern().to_owned(),
            Self::Service(reference, fact) => {
                format!("(?:{}|{})", quote(reference), fact.pattern())
            }
        }
    }
}

/// Text as a regular expression that matches only it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(letter) {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted
}

/// Expanded text, and the references that stayed as they are.
pub(crate) struct Expansion {
    pub(crate) text: Text,
    pub(crate) undefined: Vec<String>,
}

/// Expands `input`; `lookup` knows the variables, `service_links` says whether those of all services exist.
pub(crate) fn expand<'a>(
    input: &str,
    lookup: impl Fn(&str) -> Option<&'a Text>,
    service_links: bool,
) -> Result<Expansion, TooLong> {
    let mut text = Text::default();
    let mut undefined = Vec::new();
    let mut rest = input;
    while let Some((before, after)) = rest.split_once('$') {
        text.push(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            text.push("$");
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|reference| reference.split_once(')'))
        {
            rest = after;
            if let Some(value) = lookup(name) {
                text.append(value);
            } else {
                undefined_reference(&mut text, &mut undefined, name, service_links);
            }
        } else {
            text.push("$");
        }
        if text.length > LENGTH_LIMIT {
            return Err(TooLong);
        }
    }
    text.push(rest);
    if text.length > LENGTH_LIMIT {
        return Err(TooLong);
    }
    Ok(Expansion { text, undefined })
}

fn undefined_reference(
    text: &mut Text,
    undefined: &mut Vec<String>,
    name: &str,
    service_links: bool,
) {
    let reference = format!("$({name})");
    match service_variable(name) {
        Some(fact) if is_always_there(name) => text.append(&Text::fact(fact)),
        Some(fact) if service_links || name.starts_with("KUBERNETES_") => {
            text.length += reference.len();
            text.pieces.push(Piece::Service(reference, fact));
        }
        _ => {
            text.push(&reference);
            undefined.push(name.to_owned());
        }
    }
}

/// Variables of the API server's service, which every container has.
fn is_always_there(name: &str) -> bool {
    matches!(
        name,
        "KUBERNETES_SERVICE_HOST"
            | "KUBERNETES_SERVICE_PORT"
            | "KUBERNETES_SERVICE_PORT_HTTPS"
            | "KUBERNETES_PORT"
    )
}

/// What a variable is if the kubelet makes it for a service.
fn service_variable(name: &str) -> Option<PodFact> {
    let is_name =
        name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if !is_name || name.starts_with('_') {
        return None;
    }
    if name.ends_with("_SERVICE_HOST") {
        return Some(PodFact::ServiceHost);
    }
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return Some(PodFact::ServicePort);
    }
    if let Some((_, port)) = name.rsplit_once("_PORT_") {
        let (number, protocol) = port.split_once('_')?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (protocol, part) = protocol.split_once('_').unwrap_or((protocol, ""));
        return match (protocol, part) {
            ("TCP" | "UDP" | "SCTP", "") => Some(PodFact::ServiceUrl),
            ("TCP" | "UDP" | "SCTP", "PROTO") => Some(PodFact::ServiceProtocol),
            ("TCP" | "UDP" | "SCTP", "PORT") => Some(PodFact::ServicePort),
            ("TCP" | "UDP" | "SCTP", "ADDR") => Some(PodFact::ServiceHost),
            _ => None,
        };
    }
    name.ends_with("_PORT").then_some(PodFact::ServiceUrl)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn expanded(input: &str, links: bool) -> (EnvValue, Vec<String>) {
        let variables = HashMap::from([
            ("A", Text::known("1")),
            ("EMPTY", Text::known("")),
            ("REF", Text::known("$(A)")),
            ("IP", Text::fact(PodFact::Ip)),
            ("KEY", Text::secret("s3cret")),
        ]);
        let expansion = expand(input, |name| variables.get(name), links).unwrap();
        (expansion.text.into_value(), expansion.undefined)
    }

    #[test]
    fn references_expand_as_the_kubelet_does() {
        for (input, output) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A}", "$A ${A}"),
            ("$(REF)", "$(A)"),
            ("$(MISSING)", "$(MISSING)"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
            ("$(A)$(", "1$("),
            ("$ä$(A)", "$ä1"),
        ] {
            assert_eq!(expanded(input, false).0, EnvValue::Literal(output.to_owned()), "{input}");
        }
        assert_eq!(expanded("$(B) $(C)", false).1, ["B", "C"]);
    }

    #[test]
    fn run_time_parts_become_patterns() {
        assert_eq!(expanded("$(IP)", false).0, EnvValue::FromPod(PodFact::Ip));
        let pattern = |regex: &str, secret| EnvValue::Pattern {
            regex: SecretText::new(regex.to_owned()),
            secret,
        };
        assert_eq!(
            expanded("--ip=$(IP).", false).0,
            pattern(r"^\-\-ip=[0-9a-fA-F:.]{2,45}\.$", false)
        );
        assert_eq!(
            expanded("$(KEY)@$(IP)", false).0,
            pattern("^s3cret@[0-9a-fA-F:.]{2,45}$", true)
        );
        assert_eq!(
            expanded("http://$(KUBERNETES_SERVICE_HOST)", false).0,
            pattern("^http://[0-9a-zA-Z:.-]{1,253}$", false)
        );
        assert_eq!(
            expanded("$(DB_PORT_80_TCP_PROTO)", true).0,
            pattern(r"^(?:\$\(DB_PORT_80_TCP_PROTO\)|(?:tcp|udp|sctp))$", false)
        );
        assert_eq!(expanded("$(DB_PORT_80_TCP_PROTO)", false).1, ["DB_PORT_80_TCP_PROTO"]);
    }

    #[test]
    fn secrets_stay_secret() {
        let (value, _) = expanded("a$(KEY)", false);
        assert_eq!(value, EnvValue::Secret(SecretText::new("as3cret".to_owned())));
        assert!(!format!("{value:?}").contains("s3cret"));
    }

    #[test]
    fn expansion_is_bounded() {
        let long = Text::known("x".repeat(1000));
        let input = "$(A)".repeat(200);
        assert!(expand(&input, |_| Some(&long), false).is_err());
    }

    #[test]
    fn service_variables_have_their_kind() {
        for (name, fact) in [
            ("REDIS_SERVICE_HOST", Some(PodFact::ServiceHost)),
            ("REDIS_SERVICE_PORT", Some(PodFact::ServicePort)),
            ("REDIS_SERVICE_PORT_METRICS", Some(PodFact::ServicePort)),
            ("REDIS_PORT", Some(PodFact::ServiceUrl)),
            ("REDIS_PORT_6379_TCP", Some(PodFact::ServiceUrl)),
            ("REDIS_PORT_6379_TCP_ADDR", Some(PodFact::ServiceHost)),
            ("REDIS_PORT_6379_UDP_PORT", Some(PodFact::ServicePort)),
            ("REDIS_PORT_6379_SCTP_PROTO", Some(PodFact::ServiceProtocol)),
            ("REDIS_PORT_X_TCP", None),
            ("REDIS_PORT_1_TCP_X", None),
            ("redis_PORT", None),
            ("_PORT", None),
            ("REDIS", None),
        ] {
            assert_eq!(service_variable(name), fact, "{name}");
        }
    }
}
