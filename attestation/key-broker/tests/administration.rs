//! Administrators, honest and not, against a real broker; and a broker that is killed.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_jose::jws::{self, Header};
use nacre_jose::{Ed25519Key, TeeKey};
use nacre_kbs::admin::{AdminError, Client};
use nacre_kbs::audit::{self, Action, AuditError, Outcome};
use nacre_protocol::kbs::ResourceUri;
use reqwest::{Method, StatusCode};
use serde_json::json;
use time::OffsetDateTime;
use world::{CONTENT, Guest, SECRET, World, decrypt, grant, initdata, launch, without_tls};

const PATH: &str = "/kbs/v0/resource/a/b/c";

fn uri(text: &str) -> ResourceUri {
    text.parse().unwrap()
}

#[tokio::test]
async fn resources_are_set_read_listed_and_deleted() {
    let world = World::with_tls().await;
    let administrator = world.administrator();
    let one = uri("kbs:///a/b/c");
    administrator.set_resource(&one, b"1").await.unwrap();
    administrator.set_resource(&one, b"22").await.unwrap();
    administrator.set_resource(&uri("kbs:///a/b/empty"), b"").await.unwrap();
    assert_eq!(administrator.resource(&one).await.unwrap().as_slice(), b"22");
    let listed = administrator.resources().await.unwrap();
    let shown: Vec<_> = listed.iter().map(|info| (info.uri.to_string(), info.bytes)).collect();
    assert_eq!(
        shown,
        [
            ("kbs:///a/b/c".into(), 2),
            ("kbs:///a/b/empty".into(), 0),
            (SECRET.into(), CONTENT.len())
        ]
    );
    administrator.delete_resource(&one).await.unwrap();
    let gone = administrator.resource(&one).await.unwrap_err();
    assert!(matches!(gone, AdminError::Refused { status: 404, .. }), "{gone}");
    let gone = administrator.delete_resource(&one).await.unwrap_err();
    assert!(matches!(gone, AdminError::Refused { status: 404, .. }), "{gone}");
    let large = administrator.set_resource(&one, &vec![0; 1024 * 1024 + 1]).await.unwrap_err();
    assert!(matches!(large, AdminError::Refused { status: 413, .. }), "{large}");
    administrator.set_resource(&one, &vec![0; 1024 * 1024]).await.unwrap();
    // All of it was written down, and none of it leaks there.
    let entries = administrator.audit(0, 1000).await.unwrap();
    for action in [Action::SetResource, Action::ReadResource, Action::DeleteResource] {
        assert!(entries.iter().any(|entry| entry.event.action == action), "{action:?}");
    }
    let log = serde_json::to_string(&entries).unwrap();
    assert!(!log.contains("correct horse"), "{log}");
}

#[tokio::test]
async fn who_is_no_administrator_changes_nothing() {
    let world = World::new().await;
    let raw = world.raw();
    let own = Ed25519Key::from_pem(&fs::read_to_string(&world.made.admin_key).unwrap()).unwrap();
    let other = Ed25519Key::generate().unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let token = |key: &Ed25519Key, iat: i64, exp: i64, role: &str| {
        let claims = json!({"iat": now + iat, "exp": now + exp, "role": role, "sub": "eve"});
        jws::sign_eddsa(Header::new(), claims.to_string().as_bytes(), key).unwrap()
    };
    let good = token(&own, 0, 60, "admin");
    let guests = raw.handshake(&Guest::genuine(), &TeeKey::generate()).await.1;
    let none = jws::parse(&good).map(|_| good.split('.').nth(1).unwrap().to_owned()).unwrap();
    for (bearer, expected) in [
        (None, "is needed"),
        (Some(String::new()), "is needed"),
        (Some("x".into()), "not signed"),
        (Some(token(&other, 0, 60, "admin")), "not signed"),
        (Some(format!("eyJhbGciOiJub25lIn0.{none}.")), "not signed"),
        (Some(guests), "not signed"),
        (Some(token(&own, -100, -1, "admin")), "expired"),
        (Some(token(&own, 0, 601, "admin")), "10 minutes"),
        (Some(token(&own, 50, 690, "admin")), "10 minutes"),
        (Some(token(&own, 100, 200, "admin")), "future"),
        (Some(token(&own, 100, 50, "admin")), "future"),
        (Some(token(&own, 0, 60, "guest")), "role"),
    ] {
        let bearer = bearer.map(|bearer| format!("Bearer {bearer}"));
        let headers: Vec<_> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        for (method, path) in [
            (Method::POST, PATH),
            (Method::DELETE, PATH),
            (Method::GET, "/kbs/v0/admin/resources"),
            (Method::GET, "/kbs/v0/admin/resource/default/web/password"),
            (Method::POST, "/kbs/v0/resource-policy"),
            (Method::GET, "/kbs/v0/resource-policy"),
            (Method::DELETE, "/kbs/v0/resource-policy"),
            (Method::POST, "/kbs/v0/attestation-policy"),
            (Method::POST, "/kbs/v0/reference-value"),
            (Method::GET, "/kbs/v0/reference-value"),
            (Method::GET, "/kbs/v0/reference-value/guest"),
            (Method::DELETE, "/kbs/v0/reference-value/guest"),
            (Method::POST, "/kbs/v0/admin/grant"),
            (Method::GET, "/kbs/v0/admin/grant"),
            (Method::DELETE, "/kbs/v0/admin/grant/web"),
            (Method::GET, "/kbs/v0/admin/audit"),
            (Method::GET, "/kbs/v0/admin/explain/0123"),
        ] {
            let answer = raw.send(method.clone(), path, &headers, "x").await;
            assert_eq!(answer.error(), (401, "AdminAuthAccess".into()), "{method} {path}");
            assert!(answer.detail().contains(expected), "{expected}: {answer:?}");
        }
    }
    let header = format!("Bearer {good}");
    let answer = raw.send(Method::POST, PATH, &[("authorization", &header)], "x").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let administrator = world.administrator();
    assert_eq!(administrator.resources().await.unwrap().len(), 2);
    let entries = administrator.audit(0, 1000).await.unwrap();
    let set = entries.iter().rfind(|entry| entry.event.action == Action::SetResource).unwrap();
    assert_eq!(set.event.administrator.as_deref(), Some("eve"));
    let refused = entries.iter().filter(|entry| entry.event.action == Action::AdminAuthentication);
    assert_eq!(refused.filter(|entry| entry.event.outcome == Outcome::Refused).count(), 12 * 17);
}

#[tokio::test]
async fn reference_values_in_both_forms_count_until_they_expire() {
    let world = World::empty(|config| without_tls(&config));
    let administrator = world.administrator();
    administrator.set_resource(&uri(SECRET), CONTENT).await.unwrap();
    administrator.add_grant(&grant("web", &initdata(), "*/*/*")).await.unwrap();
    let ask = async || {
        let client = world.client(&Guest::genuine());
        client.resource(&uri(SECRET)).await.map_err(|error| error.to_string())
    };
    let refused = ask().await.unwrap_err();
    assert!(refused.contains("snp-references"), "{refused}");
    // Trustee's form, in two messages.
    let message = |values: serde_json::Value| {
        let payload = STANDARD.encode(values.to_string());
        json!({"version": "0.1.0", "type": "sample", "payload": payload})
    };
    let measurement = hex::encode(nacre_emulated::measure(&launch()));
    let first = message(json!({"snp_launch_measurement": [measurement], "tdvfkernel": ["00"]}));
    let answer = administrator.add_trustee_reference_values(&first).await.unwrap();
    assert_eq!((answer.missing.len(), answer.ignored), (4, vec!["tdvfkernel".to_owned()]));
    ask().await.unwrap_err();
    let second = json!({"snp_bootloader": [10], "snp_tee_svn": [0], "snp_snp_svn": [23], "snp_microcode": [84]});
    let answer = administrator.add_trustee_reference_values(&message(second)).await.unwrap();
    assert_eq!(answer.missing, [] as [&str; 0]);
    assert_eq!(ask().await.unwrap().as_slice(), CONTENT);
    let higher = message(json!({"snp_snp_svn": [24]}));
    administrator.add_trustee_reference_values(&higher).await.unwrap();
    let refused = ask().await.unwrap_err();
    assert!(refused.contains("snp-tcb-minimum"), "{refused}");
    administrator.delete_reference_values("trustee-snp").await.unwrap();
    // A document of our own, and its end.
    let mut document = world::references("guest-1", &launch());
    document.expires = Some(OffsetDateTime::now_utc() + Duration::from_secs(4));
    administrator.add_reference_values(&document).await.unwrap();
    ask().await.unwrap();
    assert!(!administrator.reference_values().await.unwrap().documents[0].expired);
    tokio::time::sleep(Duration::from_secs(4)).await;
    ask().await.unwrap_err();
    assert!(administrator.reference_values().await.unwrap().documents[0].expired);
    administrator.delete_reference_values("guest-1").await.unwrap();
    let gone = administrator.delete_reference_values("guest-1").await.unwrap_err();
    assert!(matches!(gone, AdminError::Refused { status: 404, .. }), "{gone}");
}

#[tokio::test]
async fn wrong_registrations_are_told_what_is_wrong() {
    let world = World::new().await;
    let administrator = world.administrator();
    let syntax = administrator.set_policy("package policy\nallow if if").await.unwrap_err();
    assert!(syntax.to_string().contains("not valid Rego"), "{syntax}");
    let package = administrator.set_policy("package other\nallow = true").await.unwrap_err();
    assert!(package.to_string().contains("package"), "{package}");
    let mut bad = grant("web2", &initdata(), "a/b");
    let error = administrator.add_grant(&bad).await.unwrap_err();
    assert!(error.to_string().contains("pattern"), "{error}");
    bad.resources = vec!["a/b/c".into()];
    bad.initdata.clear();
    administrator.add_grant(&bad).await.unwrap_err();
    assert_eq!(administrator.grants().await.unwrap().len(), 1);
    let key = fs::read_to_string(&world.made.admin_key).unwrap();
    let header = {
        let key = Ed25519Key::from_pem(&key).unwrap();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = json!({"iat": now, "exp": now + 60, "role": "admin"});
        format!(
            "Bearer {}",
            jws::sign_eddsa(Header::new(), claims.to_string().as_bytes(), &key).unwrap()
        )
    };
    let path = "/kbs/v0/attestation-policy";
    let answer = world.raw().send(Method::POST, path, &[("authorization", &header)], "{}").await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
    assert!(answer.detail().contains("reference values"), "{answer:?}");
    // A broker behind another certificate is not talked to.
    let tls = World::with_tls().await;
    let other = World::empty(|config| config);
    let ca = fs::read_to_string(&other.made.certificate).unwrap();
    let wrong = Client::new(tls.url(), Some(&ca), &key).unwrap();
    assert!(matches!(wrong.resources().await, Err(AdminError::Connection(_))));
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_when_the_broker_is_killed() {
    let mut world = World::empty(|config| without_tls(&config));
    let mut acknowledged = Vec::new();
    for round in 0..8_u64 {
        let administrator = world.administrator();
        let setting = tokio::spawn(async move {
            let mut done = Vec::new();
            for number in 0.. {
                let name = uri(&format!("kbs:///r{round}/t/n{number}"));
                if administrator.set_resource(&name, name.to_string().as_bytes()).await.is_err() {
                    break;
                }
                done.push(name);
            }
            done
        });
        tokio::time::sleep(Duration::from_millis(60 + 37 * round)).await;
        world.kill();
        acknowledged.extend(setting.await.unwrap());
        world.start().unwrap();
    }
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    let administrator = world.administrator();
    for name in &acknowledged {
        let content = administrator.resource(name).await.unwrap();
        assert_eq!(content.as_slice(), name.to_string().as_bytes());
    }
    let verified = audit::verify(&world.path("audit")).unwrap();
    assert!(verified.first == 1 && verified.torn == 0, "{verified:?}");
    let mut recorded = std::collections::HashSet::new();
    let mut after = 0;
    loop {
        let entries = administrator.audit(after, 1000).await.unwrap();
        let Some(last) = entries.last() else { break };
        after = last.seq;
        let set = entries.iter().filter(|entry| entry.event.action == Action::SetResource);
        recorded.extend(set.filter_map(|entry| entry.event.subject.clone()));
        // Reading them back is in the log as well, so there is an end.
        if entries.len() < 1000 {
            break;
        }
    }
    assert!(acknowledged.iter().all(|name| recorded.contains(&name.to_string())));
}

#[tokio::test]
async fn another_store_key_and_a_changed_log_stop_the_broker() {
    let mut world = World::new().await;
    let key = TeeKey::generate();
    let (cookie, _) = world.raw().handshake(&Guest::genuine(), &key).await;
    let answer = world.raw().resource(SECRET, &[("cookie", &cookie)]).await;
    assert_eq!(decrypt(&answer, &key), CONTENT);
    assert!(world.stop());
    let original = fs::read_to_string(&world.made.store_key).unwrap();
    fs::write(&world.made.store_key, format!("{}\n", "0a".repeat(32))).unwrap();
    let said = world.start().unwrap_err();
    assert!(said.contains("made with another key"), "{said}");
    fs::write(&world.made.store_key, original).unwrap();
    world.start().unwrap();
    assert!(world.stop());
    // Somebody removes the line of the release.
    let log = world.path("audit").join("audit-000000000001.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    let without: String =
        text.split_inclusive('\n').filter(|line| !line.contains("get-resource")).collect();
    assert_ne!(text, without);
    fs::write(&log, without).unwrap();
    let error = audit::verify(&world.path("audit")).unwrap_err();
    assert!(matches!(error, AuditError::Line { .. }), "{error}");
    let said = world.start().unwrap_err();
    assert!(said.contains("audit log"), "{said}");
    // Somebody cuts the end off.
    let cut: String = text.split_inclusive('\n').take(3).collect();
    fs::write(&log, cut).unwrap();
    let said = world.start().unwrap_err();
    assert!(said.contains("entries were removed"), "{said}");
    fs::write(&log, text).unwrap();
    world.start().unwrap();
}

#[tokio::test]
async fn a_second_broker_of_the_same_store_does_not_start() {
    let mut world = World::new().await;
    let first = world.pid();
    let said = world.start().unwrap_err();
    assert!(said.contains("store"), "{said}");
    assert_eq!(world.pid(), first);
    world.administrator().resources().await.unwrap();
}
