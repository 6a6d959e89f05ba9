//! Private images: who gets credentials, and who does not, whatever is answered.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use nacre_image_pull::{Credentials, Presented, PullError, Registries};
use support::{Broker, Connection, Identity, Image, Request, Server, World, image, layer, reply};

/// base64 of alice:sesame
const BASIC: &str = "Basic YWxpY2U6c2VzYW1l";

fn sample() -> Image {
    image(&[layer("gzip", |tar| tar.file("a", "private"))])
}

fn docker_config(host: &str) -> String {
    format!(r#"{{"auths":{{"{host}":{{"auth":"YWxpY2U6c2VzYW1l"}}}}}}"#)
}

fn registries(identity: &Identity, config: &str) -> Registries {
    Registries {
        credentials: Credentials::parse_docker_config(config.as_bytes()).unwrap(),
        extra_ca_pem: vec![identity.pem.clone()],
        ..Registries::default()
    }
}

fn world(registries: Registries) -> World {
    World::configured(|config| nacre_image_pull::PullConfig { registries, ..config })
}

fn challenge(stream: &mut dyn Connection, header: &str) -> Option<()> {
    let headers = [("WWW-Authenticate", header)];
    reply(stream, "401 Unauthorized", &headers, b"").unwrap();
    Some(())
}

/// A registry that wants user and password.
fn basic(identity: &Identity) -> Server {
    Server::start_tls(
        identity,
        Server::serving(sample(), |request, _, stream| {
            if request.header("authorization") == Some(BASIC) {
                return None;
            }
            challenge(stream, "Basic realm=\"r\"")
        }),
    )
}

fn authorizations(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests.lock().unwrap();
    requests.iter().map(|r| r.header("authorization").map(ToOwned::to_owned)).collect()
}

#[tokio::test]
async fn user_and_password_open_a_private_registry() {
    let identity = Identity::new();
    let server = basic(&identity);
    let reference = format!("{}/team/app", server.host);
    let good = world(registries(&identity, &docker_config(&server.host)));
    good.pull(&reference).await.unwrap();
    let asked = authorizations(&server);
    assert_eq!(asked[0], None, "they are sent when they are asked for");
    assert!(asked[1..].iter().all(|header| header.as_deref() == Some(BASIC)), "{asked:?}");

    for (config, presented, says) in [
        ("{}".to_owned(), Presented::Nothing, "anonymous clients (status 401)"),
        (
            docker_config(&server.host).replace("c2VzYW1l", "d3Jvbmc="),
            Presented::Credentials,
            "check that they are right",
        ),
        (
            docker_config(&format!("{}/other", server.host)),
            Presented::Nothing,
            "give the pod credentials",
        ),
        (docker_config("127.0.0.1:1"), Presented::Nothing, "anonymous"),
    ] {
        let error = world(registries(&identity, &config)).puller.pull(&reference, |_| {}).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, PullError::Unauthorized { presented: p, .. } if p == presented),
            "{error:?}"
        );
        let (shown, debug) = (error.to_string(), format!("{error:?}"));
        assert!(shown.contains(says), "{shown}");
        assert!(!shown.contains("sesame") && !debug.contains("sesame") && !debug.contains("YWx"));
    }
}

#[tokio::test]
async fn credentials_come_from_the_broker_when_they_are_needed() {
    let identity = Identity::new();
    let server = basic(&identity);
    let uri = "kbs:///default/image/credentials".to_owned();
    let document = docker_config(&format!("https://{}/team/", server.host)).into_bytes();
    let broker =
        Arc::new(Broker { resources: [(uri.clone(), document)].into(), ..Broker::default() });
    let public = Server::start_tls(&identity, Server::serving(sample(), |_, _, _| None));
    let world = World::configured(|config| nacre_image_pull::PullConfig {
        registries: Registries {
            credential_uris: vec![uri.clone()],
            ..registries(&identity, "{}")
        },
        resources: broker.clone(),
        ..config
    });
    world.pull(&format!("{}/app", public.host)).await.unwrap();
    assert!(broker.asked.lock().unwrap().is_empty(), "a public image needs none");
    world.pull(&format!("{}/team/app", server.host)).await.unwrap();
    world.pull(&format!("{}/team/other", server.host)).await.unwrap();
    assert_eq!(*broker.asked.lock().unwrap(), [uri], "once");
    let absent = World::configured(|config| nacre_image_pull::PullConfig {
        registries: Registries {
            credential_uris: vec!["kbs:///default/image/none".into()],
            ..registries(&identity, "{}")
        },
        resources: broker.clone(),
        ..config
    });
    let error = absent.refuse(&format!("{}/team/app", server.host)).await;
    assert!(error.contains("credentials of registries: kbs:///default/image/none"), "{error}");
}

#[tokio::test]
async fn an_error_page_cannot_repeat_them() {
    let identity = Identity::new();
    let server =
        Server::start_tls(&identity, |request, _, stream| match request.header("authorization") {
            Some(sent) => reply(stream, "400 Bad Request", &[], format!("sent {sent}").as_bytes()),
            None => challenge(stream, "Basic realm=\"r\"").ok_or(std::io::ErrorKind::Other.into()),
        });
    let config = docker_config(&server.host);
    let error = world(registries(&identity, &config)).refuse(&format!("{}/app", server.host)).await;
    assert!(error.contains("status 400") && !error.contains("YWxp"), "{error}");
}

/// A registry whose images need a token, which `token` gives out.
fn with_tokens(
    identity: &Identity,
    token: impl Fn(&Request, &mut dyn Connection) + Send + Sync + 'static,
) -> Server {
    Server::start_tls(
        identity,
        Server::serving(sample(), move |request, _, stream| {
            if request.path.starts_with("/token") {
                token(request, stream);
                return Some(());
            }
            let bearer = request.header("authorization") == Some("Bearer tok");
            if bearer {
                return None;
            }
            let host = request.header("host").unwrap();
            challenge(stream, &format!("Bearer realm=\"https://{host}/token\",service=\"s\""))
        }),
    )
}

#[tokio::test]
async fn tokens_are_had_for_passwords_and_identity_tokens() {
    let identity = Identity::new();
    let server = with_tokens(&identity, |request, stream| {
        let form = "grant_type=refresh_token&client_id=nacre&scope=repository%3Aapp%3Apull&\
                    refresh_token=long+lived%26&service=s";
        let good = match request.method.as_str() {
            "GET" => request.header("authorization") == Some(BASIC),
            _ => request.body == form && request.header("authorization").is_none(),
        };
        let (status, body) = match good {
            true => ("200 OK", &br#"{"token":"tok"}"#[..]),
            false => ("403 Forbidden", &b"{}"[..]),
        };
        reply(stream, status, &[], body).unwrap();
    });
    let reference = format!("{}/app", server.host);
    let identity_token =
        format!(r#"{{"auths":{{"{}":{{"identitytoken":"long lived&"}}}}}}"#, server.host);
    for config in [docker_config(&server.host), identity_token] {
        world(registries(&identity, &config)).pull(&reference).await.unwrap();
    }
    let error = world(registries(&identity, "{}")).refuse(&reference).await;
    assert!(error.contains("anonymous clients (status 403)"), "{error}");
}

#[tokio::test]
async fn nobody_else_gets_them() {
    let identity = Identity::new();
    // Everybody here would love to have credentials.
    let greedy = |stream: &mut dyn Connection| {
        challenge(stream, "Basic realm=\"x\"");
    };
    let elsewhere = Server::start_tls(&identity, move |_, _, stream| {
        greedy(stream);
        Ok(())
    });
    let in_the_clear =
        Server::start(move |_, _, stream| reply(stream, "200 OK", &[], br#"{"token":"tok"}"#));
    let there = elsewhere.host.clone();
    // The registry takes them for the manifest, and then sends to another host.
    let server = Server::start_tls(
        &identity,
        Server::serving(sample(), move |request, _, stream| {
            if request.header("authorization") != Some(BASIC) {
                return challenge(stream, "Basic realm=\"r\"");
            }
            if request.path.contains("/blobs/") {
                let location = format!("https://{there}{}", request.path);
                reply(stream, "307 Temporary Redirect", &[("Location", &location)], b"").unwrap();
                return Some(());
            }
            None
        }),
    );
    // Credentials for all of them would be there, but each has its own.
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"YWxpY2U6c2VzYW1l"}},"{}":{{"auth":"Ym9iOm90aGVy"}}}}}}"#,
        server.host, elsewhere.host
    );
    let error = world(registries(&identity, &config)).refuse(&format!("{}/app", server.host)).await;
    assert!(error.contains("401"), "{error}");
    let seen = authorizations(&elsewhere);
    assert!(!seen.is_empty() && seen.iter().all(Option::is_none), "{seen:?}");

    // A realm in the clear, one with a password of its own, and one that redirects.
    let (plain, third) = (in_the_clear.host.clone(), elsewhere.host.clone());
    for realm in [
        format!("http://{plain}/token"),
        format!("https://u:p@{third}/token"),
        "ftp://x/token".to_owned(),
    ] {
        let server = Server::start_tls(&identity, move |_, _, stream| {
            challenge(stream, &format!("Bearer realm=\"{realm}\""));
            Ok(())
        });
        let config = docker_config(&server.host);
        let error =
            world(registries(&identity, &config)).refuse(&format!("{}/app", server.host)).await;
        assert!(error.contains("token service"), "{error}");
    }
    let before = elsewhere.requests.lock().unwrap().len();
    let third = elsewhere.host.clone();
    let server = with_tokens(&identity, move |_, stream| {
        let location = format!("https://{third}/token");
        reply(stream, "307 Temporary Redirect", &[("Location", &location)], b"").unwrap();
    });
    let config = docker_config(&server.host);
    let error = world(registries(&identity, &config)).refuse(&format!("{}/app", server.host)).await;
    assert!(error.contains("status 307"), "{error}");
    assert_eq!(elsewhere.requests.lock().unwrap().len(), before);
    assert!(in_the_clear.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn they_are_not_sent_in_the_clear() {
    for header in ["Basic realm=\"x\"", "Bearer realm=\"http://HOST/token\""] {
        let server = Server::start(move |request, _, stream| {
            if request.path.starts_with("/token") {
                return reply(stream, "401 Unauthorized", &[], b"");
            }
            challenge(stream, &header.replace("HOST", request.header("host").unwrap()));
            Ok(())
        });
        let registries = Registries {
            credentials: Credentials::parse_docker_config(docker_config(&server.host).as_bytes())
                .unwrap(),
            ..support::plain(&server.host)
        };
        let error = world(registries).refuse(&format!("{}/app", server.host)).await;
        assert!(error.contains("not sent over plain HTTP"), "{error}");
        assert!(authorizations(&server).iter().all(Option::is_none));
    }
}
