//! Token services, and tags that change their mind.

use std::io;

use anyhow::ensure;

use super::{BLOB, CHUNKED, GOOD, between, case, chunk, image, is_layer, part};
use crate::case::Class::Transport;
use crate::case::Expect::{Accept, Reject};
use crate::case::{Case, Hosts, Mode};
use crate::image::{INDEX, Image, MANIFEST, digest, index};
use crate::registry::{Connection, Request, Served, Turn};
use crate::tar::Tar;

pub(super) fn tokens() -> Vec<Case> {
    fn challenge(connection: &mut Connection, realm: &str) -> io::Result<Turn> {
        let value = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:app:pull\"");
        connection.answer("401 Unauthorized", &[("WWW-Authenticate", &value)], b"{}")
    }
    const TOKEN: &str = "Bearer sesame";
    fn wants_token(request: &Request) -> bool {
        !request.path.starts_with("/token") && request.header("authorization") != Some(TOKEN)
    }
    let answers: [(&'static str, &'static str, &'static [u8]); 4] = [
        ("token-that-is-none", "The token service answers with something else.", b"<html>"),
        ("token-empty", "A token without a letter.", b"{\"token\":\"\"}"),
        (
            "token-with-a-header",
            "A token that would add headers to the next request.",
            b"{\"token\":\"a\\r\\nHost: elsewhere\\r\\nX: \"}",
        ),
        ("token-of-another-type", "A token that is a list.", b"{\"token\":[\"a\"]}"),
    ];
    let mut cases: Vec<Case> = answers
        .into_iter()
        .map(|(name, attack, body)| {
            let make = move |hosts: &Hosts| {
                let realm = format!("http://{}/token", hosts.registry);
                Served::from(image()).behaving(move |request, connection| {
                    if request.path.starts_with("/token") {
                        return connection.answer("200 OK", &[], body);
                    }
                    challenge(connection, &realm)
                })
            };
            Case::new(Transport, name, attack, make, Reject(&["token"]))
        })
        .collect();
    let realms: [(&'static str, &'static str, &'static str); 3] = [
        ("realm-is-a-file", "The token is to be read from a file.", "file:///etc/passwd"),
        ("realm-is-nothing", "The token service has no address.", "nowhere"),
        ("realm-is-empty", "The token service has an empty address.", ""),
    ];
    cases.extend(realms.map(|(name, attack, realm)| {
        let make = move |_: &Hosts| {
            Served::from(image()).behaving(move |_, connection| challenge(connection, realm))
        };
        Case::new(Transport, name, attack, make, Reject(&["registry 127.0.0.1"]))
    }));
    cases.extend([
        between(
            "token-does-not-follow",
            "A token for this registry, and a layer on another host: the token stays.",
            |hosts| {
                let hosts = hosts.clone();
                move |request, connection| {
                    if request.path.starts_with("/token") {
                        return connection.answer("200 OK", &[], b"{\"token\":\"sesame\"}");
                    }
                    if wants_token(request) {
                        return challenge(connection, &format!("http://{}/token", hosts.registry));
                    }
                    if is_layer(request) {
                        let place = format!("http://{}{}", hosts.other, request.path);
                        return connection.answer(
                            "307 Temporary Redirect",
                            &[("Location", &place)],
                            b"",
                        );
                    }
                    Ok(Turn::Ordinary)
                }
            },
            GOOD,
        )
        .audit(|seen| {
            ensure!(!seen.other.is_empty(), "the other server was not asked");
            let sent = seen.other.iter().any(|request| request.header("authorization").is_some());
            ensure!(!sent, "the token went to another server");
            Ok(())
        }),
        case(
            "token-never-enough",
            "Each token is refused.",
            |request, connection| {
                let host = request.header("host").unwrap_or_default();
                if request.path.starts_with("/token") {
                    return connection.answer("200 OK", &[], b"{\"token\":\"sesame\"}");
                }
                challenge(connection, &format!("http://{host}/token"))
            },
            Reject(&["401"]),
        )
        .audit(|seen| {
            ensure!(seen.registry.len() <= 10, "asked {} times", seen.registry.len());
            Ok(())
        }),
        case(
            "token-without-end",
            "A token that does not end.",
            |request, connection| {
                let host = request.header("host").unwrap_or_default();
                if !request.path.starts_with("/token") {
                    return challenge(connection, &format!("http://{host}/token"));
                }
                connection.raw(CHUNKED)?;
                connection.forever(&chunk())
            },
            Reject(&["limit of"]),
        ),
        case(
            "challenges-of-unknown-kinds",
            "Many challenges of unknown kinds.",
            |_, connection| {
                let challenges = [("WWW-Authenticate", "Negotiate x=\"y"); 50];
                connection.answer("401 Unauthorized", &challenges, b"")
            },
            Reject(&["401"]),
        ),
        case(
            "challenge-without-end",
            "A challenge whose quotation does not end.",
            |_, connection| {
                let value = format!("Bearer realm=\"{}", "x".repeat(8000));
                connection.answer("401 Unauthorized", &[("WWW-Authenticate", &value)], b"")
            },
            Reject(&["401"]),
        ),
    ]);
    cases
}

pub(super) fn changes() -> Vec<Case> {
    fn another() -> Image {
        Tar::new().file("g", "another").into()
    }
    vec![
        Case::new(
            Transport,
            "tag-that-changes",
            "Each answer to the tag is another image: a pull is of one of them, and asks once.",
            |_| {
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth == 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", MANIFEST)], &another().manifest)
                };
                Served::from(image()).image("other", &another()).behaving(behave)
            },
            GOOD,
        )
        .audit(|seen| {
            let tag = seen.asked("/manifests/latest");
            ensure!(tag == 1, "the tag was asked for {tag} times");
            Ok(())
        }),
        Case::new(
            Transport,
            "index-that-changes",
            "The same with an index, whose entry is asked for later.",
            |_| {
                let image = image();
                let index = index([image.descriptor("linux", "amd64")]);
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth == 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", INDEX)], b"{}")
                };
                Served::default().index(&index, &[image]).behaving(behave)
            },
            GOOD,
        )
        .audit(|seen| {
            let tag = seen.asked("/manifests/latest");
            ensure!(tag == 1, "the tag was asked for {tag} times");
            Ok(())
        }),
        Case::new(
            Transport,
            "tag-that-changes-between-pulls",
            "The second pull of a tag gets another image: nothing of the first may show.",
            |_| {
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth > 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", MANIFEST)], &another().manifest)
                };
                Served::from(image()).image("other", &another()).behaving(behave)
            },
            Accept(|tree| tree.names(".", &["f"])),
        )
        .mode(Mode::Twice),
        Case::new(
            Transport,
            "content-by-the-number-of-requests",
            "The first request for the layer gets the right bytes up to the middle, the second all of \
             another.",
            |_| {
                Served::from(image()).behaving(|request, connection| {
                    match (is_layer(request), request.nth) {
                        (true, 1) => part(connection, 0, BLOB.len() / 2),
                        (true, _) => connection.answer("200 OK", &[], &vec![b'!'; BLOB.len()]),
                        _ => Ok(Turn::Ordinary),
                    }
                })
            },
            Reject(&["content was changed"]),
        ),
        Case::new(
            Transport,
            "request-smuggling",
            "A reference cannot add to a request: what is asked for is what was named.",
            |_| Served::from(image()).reference(format!("app@{}", digest(&image().manifest))),
            GOOD,
        )
        .audit(|seen| {
            for request in &seen.registry {
                let plain = request.path.bytes().all(|b| b.is_ascii_graphic());
                ensure!(plain && request.path.starts_with("/v2/app/"), "{:?}", request.path);
            }
            Ok(())
        }),
    ]
}
