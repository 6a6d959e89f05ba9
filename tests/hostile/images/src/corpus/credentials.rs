//! Registries that want credentials which are not theirs, or show them to others.

use std::io;

use anyhow::ensure;
use nacre_image_pull::{Credentials as Known, PullConfig};

use super::transport::{BLOB, CONTENT, image, is_layer};
use crate::PASSWORD;
use crate::case::Class::Credentials;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Expect, Hosts, Seen};
use crate::image::MANIFEST;
use crate::registry::{Connection, Request, Served, Turn};

/// `app:open-sesame` for the registry that the pod names, and nobody else.
fn known(config: &mut PullConfig, hosts: &Hosts) {
    let [_, encoded] = PASSWORD;
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{encoded}"}}}}}}"#, hosts.registry);
    config.registries.credentials =
        Known::parse_docker_config(text.as_bytes()).expect("credentials");
}

fn basic() -> String {
    let [_, encoded] = PASSWORD;
    format!("Basic {encoded}")
}

/// A case of a registry that behaves as told, and another server that has all content too.
fn case<F>(
    name: &'static str,
    attack: &'static str,
    behave: impl Fn(&Hosts) -> F + Send + Sync + 'static,
    expect: Expect,
) -> Case
where
    F: Fn(&Request, &mut Connection) -> io::Result<Turn> + Send + Sync + 'static,
{
    let make = move |hosts: &Hosts| Served::from(image()).behaving(behave(hosts)).other(anything);
    Case::new(Credentials, name, attack, make, expect).configure(known).tls().audit(kept)
}

/// Gives everything to everybody, tokens too.
fn anything(request: &Request, connection: &mut Connection) -> io::Result<Turn> {
    let image = image();
    if request.path.starts_with("/token") {
        return connection.answer("200 OK", &[], br#"{"token":"sesame"}"#);
    }
    if is_layer(request) {
        return connection.answer("200 OK", &[], &BLOB);
    }
    if request.is_manifest() {
        return connection.answer("200 OK", &[("Content-Type", MANIFEST)], &image.manifest);
    }
    connection.answer("200 OK", &[], &image.config)
}

fn wants_basic(connection: &mut Connection) -> io::Result<Turn> {
    let challenge = [("WWW-Authenticate", "Basic realm=\"x\"")];
    connection.answer("401 Unauthorized", &challenge, b"{}")
}

fn wants_token(connection: &mut Connection, realm: &str) -> io::Result<Turn> {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
    connection.answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"{}")
}

fn is_basic(request: &Request) -> bool {
    request.header("authorization") == Some(&*basic())
}

fn is_token(request: &Request) -> bool {
    request.header("authorization") == Some("Bearer sesame")
}

fn to(connection: &mut Connection, location: &str) -> io::Result<Turn> {
    connection.answer("307 Temporary Redirect", &[("Location", location)], b"")
}

/// Nobody but the registry saw anything of them.
fn kept(seen: &Seen) -> anyhow::Result<()> {
    let shown = seen.other.iter().find(|request| request.header("authorization").is_some());
    ensure!(shown.is_none(), "another server was shown credentials: {shown:?}");
    Ok(())
}

/// Nobody saw them at all.
fn never_sent(seen: &Seen) -> anyhow::Result<()> {
    let shown = seen.registry.iter().chain(&seen.other).find(|request| is_basic(request));
    ensure!(shown.is_none(), "credentials were sent: {shown:?}");
    Ok(())
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "credentials-used",
            "An honest registry that wants a password.",
            |_| {
                |request: &Request, connection: &mut Connection| match is_basic(request) {
                    true => Ok(Turn::Ordinary),
                    false => wants_basic(connection),
                }
            },
            Accept(CONTENT),
        ),
        case(
            "credentials-and-a-redirected-layer",
            "The layer is on another host: the password stays.",
            |hosts| {
                let other = hosts.other.clone();
                move |request, connection| match (is_basic(request), is_layer(request)) {
                    (true, true) => to(connection, &format!("https://{other}{}", request.path)),
                    (true, false) => Ok(Turn::Ordinary),
                    (false, _) => wants_basic(connection),
                }
            },
            Accept(CONTENT),
        ),
        case(
            "credentials-and-a-redirected-manifest",
            "The manifest is on another host.",
            |hosts| {
                let other = hosts.other.clone();
                move |request, connection| match (is_basic(request), request.is_manifest()) {
                    (true, true) => to(connection, &format!("https://{other}{}", request.path)),
                    (true, false) => Ok(Turn::Ordinary),
                    (false, _) => wants_basic(connection),
                }
            },
            Contain(CONTENT),
        ),
        Case::new(
            Credentials,
            "credentials-wanted-by-a-redirect",
            "The other host asks for a password, and is not given this one.",
            |hosts: &Hosts| {
                let other = hosts.other.clone();
                let send = move |request: &Request, connection: &mut Connection| match (
                    is_basic(request),
                    is_layer(request),
                ) {
                    (true, true) => to(connection, &format!("https://{other}{}", request.path)),
                    (true, false) => Ok(Turn::Ordinary),
                    (false, _) => wants_basic(connection),
                };
                Served::from(image()).behaving(send).other(|_, connection| wants_basic(connection))
            },
            Reject(&["401"]),
        )
        .configure(known)
        .tls()
        .audit(kept),
        case(
            "credentials-and-a-downgrade",
            "Sends from https to http, where everybody can read what comes next.",
            |hosts| {
                let other = hosts.other.clone();
                move |request, connection| match (is_basic(request), is_layer(request)) {
                    (true, true) => to(connection, &format!("http://{other}{}", request.path)),
                    (true, false) => Ok(Turn::Ordinary),
                    (false, _) => wants_basic(connection),
                }
            },
            Reject(&["registry 127.0.0.1"]),
        ),
        case(
            "credentials-for-a-token",
            "The password goes to the token service, the token to the registry.",
            |hosts| {
                let realm = format!("https://{}/token", hosts.registry);
                move |request, connection| {
                    if request.path.starts_with("/token") {
                        return match is_basic(request) {
                            true => connection.answer("200 OK", &[], br#"{"token":"sesame"}"#),
                            false => connection.answer("401 Unauthorized", &[], b"{}"),
                        };
                    }
                    if is_token(request) {
                        Ok(Turn::Ordinary)
                    } else {
                        wants_token(connection, &realm)
                    }
                }
            },
            Accept(CONTENT),
        ),
        case(
            "credentials-for-a-plain-token-service",
            "The token service is to be asked over plain HTTP: it is not asked.",
            |hosts| {
                let realm = format!("http://{}/token", hosts.other);
                move |request, connection| match is_token(request) {
                    true => Ok(Turn::Ordinary),
                    false => wants_token(connection, &realm),
                }
            },
            Reject(&["https"]),
        )
        .audit(|seen| {
            ensure!(seen.other.is_empty(), "it was asked");
            never_sent(seen)
        }),
        case(
            "credentials-and-a-redirected-token",
            "The token service sends to another host: the password does not follow.",
            |hosts| {
                let (realm, other) =
                    (format!("https://{}/token", hosts.registry), hosts.other.clone());
                move |request, connection| {
                    if request.path.starts_with("/token") {
                        return to(connection, &format!("https://{other}/token"));
                    }
                    if is_token(request) {
                        Ok(Turn::Ordinary)
                    } else {
                        wants_token(connection, &realm)
                    }
                }
            },
            Reject(&[]),
        ),
        case(
            "credentials-in-an-error",
            "The error page shows what was sent: it must not end up in a pod's events.",
            |_| {
                |request: &Request, connection: &mut Connection| match request
                    .header("authorization")
                {
                    Some(sent) => {
                        let page = format!("you sent {sent} ({})", PASSWORD[0]);
                        connection.answer("400 Bad Request", &[], page.as_bytes())
                    }
                    None => wants_basic(connection),
                }
            },
            Reject(&["400"]),
        ),
        case(
            "credentials-refused",
            "A wrong password is not tried again and again: accounts get locked.",
            |_| |_: &Request, connection: &mut Connection| wants_basic(connection),
            Reject(&["401"]),
        )
        .audit(|seen| {
            let tried = seen.registry.iter().filter(|request| is_basic(request)).count();
            ensure!(tried <= 2, "tried {tried} times");
            Ok(())
        }),
        {
            let mut plain = case(
                "credentials-over-plain-http",
                "A registry that may be asked over plain HTTP wants the password: it is not sent.",
                |_| {
                    |request: &Request, connection: &mut Connection| match is_basic(request) {
                        true => Ok(Turn::Ordinary),
                        false => wants_basic(connection),
                    }
                },
                Reject(&["plain HTTP"]),
            )
            .audit(never_sent);
            plain.tls = false;
            plain
        },
    ]
}
