//! Guests, honest and not, against a real broker.

#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use nacre_jose::TeeKey;
use nacre_kbs::audit::{Action, Outcome};
use nacre_kbs_client::ClientError;
use nacre_protocol::initdata::{Algorithm, Initdata};
use nacre_protocol::kbs;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use world::{CONTENT, Guest, SECRET, World, decrypt, launch, without_tls};

#[tokio::test]
async fn a_genuine_guest_gets_its_secret_over_http_and_https() {
    for world in [World::new().await, World::with_tls().await] {
        let client = world.client(&Guest::genuine());
        let secret = client.resource(&SECRET.parse().unwrap()).await.unwrap();
        assert_eq!(secret.as_slice(), CONTENT);
        let entries = world.administrator().audit(0, 100).await.unwrap();
        let released =
            entries.iter().find(|entry| entry.event.action == Action::GetResource).unwrap();
        assert_eq!(released.event.outcome, Outcome::Done);
        assert_eq!(released.event.subject.as_deref(), Some(SECRET));
        assert_eq!(released.event.emulated, Some(true));
        let attested = entries.iter().find(|entry| entry.event.action == Action::Attest).unwrap();
        assert_eq!(attested.event.request, released.event.attestation);
        assert_eq!(attested.event.appraisal.as_ref().unwrap()["affirming"], true);
    }
}

#[tokio::test]
async fn old_clients_are_served() {
    let world = World::new().await;
    let raw = world.raw();
    let guest = Guest::genuine();
    // Version, and every kind of key.
    for key in [TeeKey::generate(), TeeKey::generate_p521(), TeeKey::generate_rsa(2048).unwrap()] {
        let request = json!({"version": "0.2.0", "tee": "snp", "extra-params": ""});
        let answer = raw.send(Method::POST, kbs::AUTH_PATH, &[], request.to_string()).await;
        let set = answer.headers["set-cookie"].to_str().unwrap();
        assert!(set.starts_with("kbs-session-id=") && set.contains("HttpOnly"), "{set}");
        let nonce = answer.json()["nonce"].as_str().unwrap().to_owned();
        let cookie = format!("other=1; {}", answer.cookie());
        let attestation = guest.attestation(&nonce, &key.public());
        assert_eq!(raw.attest(&cookie, &attestation).await.status, StatusCode::OK);
        let answer = raw.resource(SECRET, &[("cookie", &cookie)]).await;
        assert_eq!(decrypt(&answer, &key), CONTENT);
    }
    for version in ["0.5.0", "1.0.0", "x"] {
        let request = json!({"version": version, "tee": "snp", "extra-params": ""});
        let answer = raw.send(Method::POST, kbs::AUTH_PATH, &[], request.to_string()).await;
        assert_eq!(answer.error(), (401, "VersionMismatch".into()));
    }
}

#[tokio::test]
async fn a_token_serves_without_the_session_until_it_expires() {
    let shorter = |config: String| {
        without_tls(&config).replace("# lifetime_seconds = 300", "lifetime_seconds = 2")
    };
    let mut world = World::with(shorter).await;
    let key = TeeKey::generate();
    let (_, token) = world.raw().handshake(&Guest::genuine(), &key).await;
    let bearer = format!("Bearer {token}");
    let answer = world.raw().resource(SECRET, &[("authorization", &bearer)]).await;
    assert_eq!(decrypt(&answer, &key), CONTENT);
    // Claims that third parties and policies read.
    let claims = nacre_jose::jws::parse(&token).unwrap();
    let claims: Value = serde_json::from_slice(claims.danger_payload()).unwrap();
    let cpu0 = &claims["submods"]["cpu0"];
    assert_eq!(cpu0["ear.status"], "affirming");
    assert_eq!((&cpu0["nacre.emulated"], &cpu0["nacre.root"]), (&json!(true), &json!("emulated")));
    let annotated = &cpu0["ear.veraison.annotated-evidence"];
    assert_eq!(annotated["snp"]["evidence"]["policy"]["debug_allowed"], false);
    assert_eq!(annotated["snp"]["policy_debug_allowed"], "false");
    assert_eq!(annotated["init_data_claims"]["aa.toml"]["token_configs"]["kbs"]["url"], "x");
    assert_eq!(annotated["runtime_data_claims"]["tee-pubkey"], json!(key.public()));

    // A restart forgets sessions, not the key of tokens.
    assert!(world.stop());
    world.start().unwrap();
    let answer = world.raw().resource(SECRET, &[("authorization", &bearer)]).await;
    assert!(answer.status == StatusCode::OK || answer.detail().contains("expired"), "{answer:?}");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let answer = world.raw().resource(SECRET, &[("authorization", &bearer)]).await;
    assert_eq!(answer.error(), (401, "TokenVerifierError".into()));
    assert!(answer.detail().contains("expired"), "{answer:?}");
    // Another broker does not believe it.
    let other = World::new().await;
    let answer = other.raw().resource(SECRET, &[("authorization", &bearer)]).await;
    assert_eq!(answer.error(), (401, "TokenVerifierError".into()));
}

#[tokio::test]
async fn a_challenge_is_answered_once_and_by_its_own_evidence() {
    let world = World::new().await;
    let raw = world.raw();
    let (guest, key) = (Guest::genuine(), TeeKey::generate());
    let (cookie, nonce) = raw.auth().await;
    let attestation = guest.attestation(&nonce, &key.public());
    assert_eq!(raw.attest(&cookie, &attestation).await.status, StatusCode::OK);
    // The same again, and in a session of its own.
    let replayed = raw.attest(&cookie, &attestation).await;
    assert_eq!(replayed.error(), (401, "SessionNotFound".into()));
    let (other, other_nonce) = raw.auth().await;
    let replayed = raw.attest(&other, &attestation).await;
    assert_eq!(replayed.error(), (401, "AttestationFailed".into()));
    // Old evidence under the new nonce.
    let (third, third_nonce) = raw.auth().await;
    let mut patched = attestation.clone();
    patched["runtime-data"]["nonce"] = third_nonce.into();
    let refused = raw.attest(&third, &patched).await;
    assert_eq!(refused.error(), (401, "AttestationFailed".into()));
    assert!(refused.detail().contains("snp-report-data"), "{refused:?}");
    // Refused once, the session is over.
    let attestation = guest.attestation(&other_nonce, &key.public());
    assert_eq!(raw.attest(&other, &attestation).await.error(), (401, "SessionNotFound".into()));
    let answer = raw.resource(SECRET, &[("cookie", &other)]).await;
    assert_eq!(answer.error(), (401, "SessionNotFound".into()));
    let answer = raw.resource(SECRET, &[]).await;
    assert_eq!(answer.error(), (401, "TokenNotFound".into()));
}

#[tokio::test]
async fn evidence_that_is_not_of_this_guest_is_refused() {
    let world = World::new().await;
    let raw = world.raw();
    let key = TeeKey::generate();
    let genuine = Guest::genuine();
    let refusal = async |guest: &Guest, change: &dyn Fn(&mut Value)| {
        let (cookie, nonce) = raw.auth().await;
        let mut attestation = guest.attestation(&nonce, &key.public());
        change(&mut attestation);
        let answer = raw.attest(&cookie, &attestation).await;
        let unattested = raw.resource(SECRET, &[("cookie", &cookie)]).await;
        assert_eq!(unattested.error().0, 401);
        (answer.error().1, answer.detail())
    };
    // Somebody between puts in a key of his own.
    let thief = json!(TeeKey::generate().public());
    let swapped = |body: &mut Value| body["runtime-data"]["tee-pubkey"] = thief.clone();
    let (_, detail) = refusal(&genuine, &swapped).await;
    assert!(detail.contains("snp-report-data"), "{detail}");
    // Another kernel, a debug launch.
    let changed =
        nacre_emulated::Launch::new(&[1; 4096], b"kernel!", b"initrd", "quiet", 1).unwrap();
    let same = |_: &mut Value| ();
    let (kind, detail) = refusal(&Guest::new(&changed, genuine_initdata()), &same).await;
    assert_eq!(kind, "AttestationFailed");
    assert!(detail.contains("snp-measurement") && detail.contains("request "), "{detail}");
    let expected = hex::encode(nacre_emulated::measure(&launch()));
    assert!(!detail.contains(&expected), "what is expected is not the guest's business: {detail}");
    let (_, detail) =
        refusal(&Guest::new(&launch().danger_debug(), genuine_initdata()), &same).await;
    assert!(detail.contains("snp-debug"), "{detail}");
    // Initdata that the launch was not bound to, none where it was, some where it was not.
    let other =
        Initdata::new(Algorithm::Sha256, [("policy.rego".into(), "x".into())].into()).unwrap();
    let wrong = |body: &mut Value| body["init-data"]["body"] = other.text().into();
    let (_, detail) = refusal(&genuine, &wrong).await;
    assert!(detail.contains("snp-host-data"), "{detail}");
    let omitted = |body: &mut Value| body["init-data"] = Value::Null;
    let (_, detail) = refusal(&genuine, &omitted).await;
    assert!(detail.contains("snp-host-data"), "{detail}");
    let added = |body: &mut Value| body["init-data"] = json!(genuine.init_data());
    let (_, detail) = refusal(&Guest::new(&launch(), None), &added).await;
    assert!(detail.contains("snp-host-data"), "{detail}");
    // One byte of the report.
    let flipped = |body: &mut Value| {
        let byte =
            &mut body["tee-evidence"]["primary_evidence"]["attestation_report"]["measurement"][7];
        *byte = (byte.as_u64().unwrap() ^ 1).into();
    };
    let (_, detail) = refusal(&genuine, &flipped).await;
    assert!(detail.contains("snp-signature"), "{detail}");
    // The whole story is in the audit log.
    let request = detail.split("request ").nth(1).unwrap().trim_end_matches(')');
    let story = world.administrator().explain(request).await.unwrap();
    let checks = story[0].event.appraisal.as_ref().unwrap()["checks"].as_array().unwrap();
    assert!(
        checks.iter().any(|check| check["code"] == "snp-signature" && check["verdict"] == "failed")
    );
    assert!(checks.iter().any(|check| check["verdict"] == "passed"));
}

fn genuine_initdata() -> Option<Initdata> {
    Some(world::initdata())
}

#[tokio::test]
async fn without_the_extra_root_emulated_evidence_is_nothing() {
    let without = |config: String| {
        let start = config.find("danger_extra_snp_roots").unwrap();
        let end = start + config[start..].find('\n').unwrap();
        without_tls(&format!("{}{}", &config[..start], &config[end..]))
    };
    let world = World::with(without).await;
    let error =
        world.client(&Guest::genuine()).resource(&SECRET.parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("snp-chain"), "{error}");
}

#[tokio::test]
async fn a_genuine_guest_gets_what_is_granted_and_no_more() {
    let world = World::new().await;
    let administrator = world.administrator();
    let other = "kbs:///default/db/password";
    administrator.set_resource(&other.parse().unwrap(), b"other").await.unwrap();
    let raw = world.raw();
    let key = TeeKey::generate();
    let (cookie, _) = raw.handshake(&Guest::genuine(), &key).await;
    let ask = async |uri| raw.resource(uri, &[("cookie", &cookie)]).await;
    assert_eq!(decrypt(&ask(SECRET).await, &key), CONTENT);
    let denied = ask(other).await;
    assert_eq!(denied.error(), (403, "PolicyDeny".into()));
    let digest = hex::encode(world::initdata().digest().as_bytes());
    assert!(
        denied.detail().contains(&digest) && denied.detail().contains("grant add"),
        "{denied:?}"
    );
    assert_eq!(ask("kbs:///default/db/absent").await.error(), (403, "PolicyDeny".into()));
    assert_eq!(ask("kbs:///default/web/absent").await.error(), (404, "ResourceNotFound".into()));
    assert_eq!(ask("kbs+nebula:///default/web/x").await.error(), (404, "PluginNotFound".into()));
    administrator.delete_grant("web").await.unwrap();
    assert_eq!(ask(SECRET).await.error(), (403, "PolicyDeny".into()));
    // Genuine, under another policy: no grant.
    let other =
        Initdata::new(Algorithm::Sha384, [("policy.rego".into(), "x".into())].into()).unwrap();
    let client = world.client(&Guest::new(&launch(), Some(other)));
    let error = client.resource(&SECRET.parse().unwrap()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_resource_policy_of_trustees_decides_in_place_of_grants() {
    let world = World::new().await;
    let administrator = world.administrator();
    let rego = r#"package policy
import rego.v1
default allow := false
allow if {
    data.plugin == "resource"
    data["resource-path"][0] == "default"
    input["submods"]["cpu0"]["ear.status"] == "affirming"
    input.submods.cpu0["ear.veraison.annotated-evidence"].snp.reported_tcb_snp == "23"
}
"#;
    let other = "kbs:///other/db/password";
    for uri in [other, "kbs:///default/db/password"] {
        administrator.set_resource(&uri.parse().unwrap(), uri.as_bytes()).await.unwrap();
    }
    administrator.set_policy(rego).await.unwrap();
    assert_eq!(administrator.policy().await.unwrap().as_deref(), Some(rego));
    let client = world.client(&Guest::genuine());
    let read = client.resource(&"kbs:///default/db/password".parse().unwrap()).await.unwrap();
    assert_eq!(read.as_slice(), b"kbs:///default/db/password");
    let error = client.resource(&other.parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("resource policy"), "{error}");
    // Grants are data of the policy.
    let by_grant = "package policy\nimport rego.v1\nallow if data.grants[_].id == \"web\"\n";
    administrator.set_policy(by_grant).await.unwrap();
    client.resource(&other.parse().unwrap()).await.unwrap();
    assert!(administrator.delete_policy().await.unwrap());
    assert!(!administrator.delete_policy().await.unwrap());
    assert_eq!(administrator.policy().await.unwrap(), None);
    client.resource(&other.parse().unwrap()).await.unwrap_err();
}

#[tokio::test]
async fn messages_that_are_none_are_refused_and_harm_nobody() {
    let world = World::new().await;
    let raw = world.raw();
    let post = async |path, body: Vec<u8>| {
        let (cookie, _) = raw.auth().await;
        raw.send(Method::POST, path, &[("cookie", &cookie)], body).await
    };
    let (guest, key) = (Guest::genuine(), TeeKey::generate());
    let good = guest.attestation("bm9uY2U=", &key.public()).to_string().into_bytes();
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        let answer = post(kbs::ATTEST_PATH, good[..length].to_vec()).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{length}");
    }
    let large = vec![b' '; kbs::ATTESTATION_LIMIT + 1];
    assert_eq!(post(kbs::ATTEST_PATH, large).await.error(), (413, "InvalidRequest".into()));
    let large = vec![b' '; kbs::REQUEST_LIMIT + 1];
    assert_eq!(post(kbs::AUTH_PATH, large).await.error(), (413, "InvalidRequest".into()));
    for bad in ["", "[]", "{}", r#"{"version":"0.4.0","tee":"sgx"}"#, &"[".repeat(10_000)] {
        let answer = post(kbs::AUTH_PATH, bad.as_bytes().to_vec()).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{bad}");
    }
    // Well formed, with parts that are none.
    for (pointer, value) in [
        ("/tee-evidence/primary_evidence", json!({})),
        ("/tee-evidence/primary_evidence/attestation_report/version", json!(99)),
        ("/tee-evidence/additional_evidence", json!("{\"tpm\":{}}")),
        ("/init-data/format", json!("json")),
        ("/init-data/body", json!("x = 1")),
        ("/runtime-data/tee-pubkey/kty", json!("OKP")),
    ] {
        let (cookie, nonce) = raw.auth().await;
        let mut attestation = guest.attestation(&nonce, &key.public());
        *attestation.pointer_mut(pointer).unwrap() = value;
        let answer = raw.attest(&cookie, &attestation).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{pointer}");
    }
    for path in
        ["/", "/kbs/v0", "/kbs/v0/other", "/kbs/v0/resource/a/b", "/kbs/v0/resource/a/b/c/d"]
    {
        let answer = raw.send(Method::GET, path, &[], "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = raw.send(Method::GET, "/kbs/v0/resource/a/%2e%2e/c", &[], "").await;
    assert_eq!(answer.error(), (404, "InvalidRequestPath".into()));
    world.client(&guest).resource(&SECRET.parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_challenges_is_bounded() {
    let few = |config: String| without_tls(&config).replace("# sessions = 20000", "sessions = 50");
    let world = World::with(few).await;
    let raw = world.raw();
    let key = TeeKey::generate();
    let (cookie, _) = raw.handshake(&Guest::genuine(), &key).await;
    let request = serde_json::to_string(&kbs::Request::new("snp")).unwrap();
    let mut refused = 0;
    for _ in 0..80 {
        let answer = raw.send(Method::POST, kbs::AUTH_PATH, &[], request.clone()).await;
        if answer.status != StatusCode::OK {
            assert_eq!(answer.error(), (429, "Busy".into()));
            assert!(answer.headers.contains_key("retry-after"));
            refused += 1;
        }
    }
    assert_eq!(refused, 31);
    // Who was attested before is served.
    assert_eq!(decrypt(&raw.resource(SECRET, &[("cookie", &cookie)]).await, &key), CONTENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_handshakes_at_once() {
    // Unoptimised, the guests' side is slow, and a connection that waits for so long is closed.
    let patient = |config: String| {
        without_tls(&config).replace("# request_seconds = 15", "request_seconds = 100")
    };
    let world = World::with(patient).await;
    let raw = world.raw();
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let raw = raw.clone();
            tokio::spawn(async move {
                let (guest, key) = (Guest::genuine(), TeeKey::generate());
                let (cookie, _) = raw.handshake(&guest, &key).await;
                decrypt(&raw.resource(SECRET, &[("cookie", &cookie)]).await, &key)
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), CONTENT);
    }
    let metrics = raw.send(Method::GET, "/metrics", &[], "").await;
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("kbs_resources_total{result=\"Done\"} 1000"), "{metrics}");
    let log = nacre_kbs::audit::verify(&world.path("audit")).unwrap();
    assert!(log.entries >= 2000, "{log:?}");
}
