//! Images that may not be used, whoever serves them.

use std::sync::Arc;

use anyhow::ensure;
use nacre_image_pull::{Mirror, PullConfig};
use nacre_image_security::ImagePolicy;

use crate::case::Class::Policy;
use crate::case::Expect::{Accept, Reject};
use crate::case::{Case, Check, Expect, Hosts, Mode, Seen};
use crate::image::{Image, MANIFEST};
use crate::registry::{Served, Turn};
use crate::tar::Tar;

const CONTENT: Check = |tree| tree.holds("f", "content");

fn image() -> Image {
    Tar::new().file("f", "content").into()
}

fn case<S: Into<Served>>(
    name: &'static str,
    attack: &'static str,
    make: impl Fn(&Hosts) -> S + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Policy, name, attack, make, expect)
}

/// Rejects all images but those of `scope`, in the form of containers' policy.json.
fn only(config: &mut PullConfig, scope: &str) {
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{scope}":[{{"type":"insecureAcceptAnything"}}]}}}}}}"#
    );
    config.policy = Arc::new(ImagePolicy::parse(text.as_bytes()).expect("a policy"));
}

fn no_layer(seen: &Seen) -> anyhow::Result<()> {
    let blobs: Vec<_> = seen.registry.iter().chain(&seen.other).filter(|r| r.is_blob()).collect();
    ensure!(blobs.is_empty(), "content was fetched: {blobs:?}");
    Ok(())
}

fn mirror(config: &mut PullConfig, hosts: &Hosts) {
    let mirror = Mirror { host: hosts.other.clone(), danger_plain_http: true };
    config.registries.mirrors.insert(hosts.registry.clone(), vec![mirror]);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("policy-rejects", "An image that no rule allows: nothing of it is fetched.", |_| image(), Reject(&["policy"]))
            .configure(|config, _| only(config, "registry.example/app"))
            .audit(no_layer),
        case("policy-allows", "The same with a rule for it.", |_| image(), Accept(CONTENT))
            .configure(|config, hosts| only(config, &format!("{}/app", hosts.registry))),
        case(
            "policy-of-another-path",
            "A repository whose name begins like one that is allowed.",
            |_| Served::from(image()).reference("application:latest"),
            Reject(&["policy"]),
        )
        .configure(|config, hosts| only(config, &format!("{}/app", hosts.registry)))
        .audit(no_layer),
        case(
            "policy-of-the-mirror",
            "The mirror's name is allowed, the registry's is not: what the pod asked for counts.",
            |_| Served::from(image()).other(serve),
            Reject(&["policy"]),
        )
        .configure(|config, hosts| {
            mirror(config, hosts);
            only(config, &format!("{}/app", hosts.other));
        })
        .audit(no_layer),
        case(
            "policy-with-unsigned-image",
            "The rule wants a signature, the image has none.",
            |_| image(),
            Reject(&["refused by"]),
        )
        .configure(|config, hosts| {
            let scope = format!("{}/app", hosts.registry);
            let key = "LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFeTY0ZFRlenJyaTJyVEZmUmdDQzRCY2UzRzJXZQp2ZkZaYWlyTGtmVWFZT1hpczUvM1ZoWGFyZTlWeUNtaFNXQ0xPVnFyWGtKNkZ0dFZaTjVUV1ZBRFFRPT0KLS0tLS1FTkQgUFVCTElDIEtFWS0tLS0tCg==";
            let text = format!(
                r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{scope}":[{{"type":"sigstoreSigned","keyData":"{key}"}}]}}}}}}"#
            );
            config.policy = Arc::new(ImagePolicy::parse(text.as_bytes()).expect("a policy"));
        })
        .audit(no_layer),
        case(
            "policy-and-an-image-that-is-here",
            "The layers are here, by a name that is allowed; by the other name they may not be used.",
            |_| image(),
            Reject(&["policy"]),
        )
        .configure(|config, _| only(config, "registry.example/app"))
        .mode(Mode::Twice)
        .audit(no_layer),
        case(
            "mirror-that-changes-content",
            "The mirror has another layer under the right name: it is noticed, and the registry is asked.",
            |_| {
                Served::from(image()).other(|request, connection| {
                    if request.is_manifest() {
                        let headers = [("Content-Type", MANIFEST)];
                        return connection.answer("200 OK", &headers, &image().manifest);
                    }
                    if request.path.ends_with(&image().layers[0].digest) {
                        let length = usize::try_from(image().layers[0].size).unwrap_or_default();
                        return connection.answer("200 OK", &[], &vec![b'!'; length]);
                    }
                    connection.answer("200 OK", &[], &image().config)
                })
            },
            Accept(CONTENT),
        )
        .configure(mirror),
        case(
            "mirror-that-is-gone",
            "The mirror knows nothing: the registry is asked.",
            |_| image(),
            Accept(CONTENT),
        )
        .configure(mirror)
        .audit(|seen| {
            ensure!(!seen.other.is_empty() && !seen.registry.is_empty(), "one was not asked");
            Ok(())
        }),
        case(
            "mirror-that-stalls",
            "The mirror never answers: the registry is asked.",
            |_| Served::from(image()).other(|_, connection| connection.stall()),
            Accept(CONTENT),
        )
        .configure(|config, hosts| {
            mirror(config, hosts);
            config.limits.stall = std::time::Duration::from_millis(500);
            config.limits.connect = std::time::Duration::from_millis(500);
        }),
        case(
            "mirror-that-changes-a-manifest",
            "The pod names a digest, the mirror has another manifest for it: the registry is asked.",
            |_| {
                let name = crate::image::digest(&image().manifest);
                let served = Served::from(image()).reference(format!("app@{name}"));
                served.other(|request, connection| {
                    if request.is_manifest() {
                        let headers = [("Content-Type", MANIFEST)];
                        let wrong: Image = Tar::new().file("f", "another").into();
                        return connection.answer("200 OK", &headers, &wrong.manifest);
                    }
                    connection.answer("404 Not Found", &[], b"{}")
                })
            },
            Accept(CONTENT),
        )
        .configure(mirror),
        case(
            "mirror-serves",
            "The mirror has everything: the registry is left alone.",
            |_| Served::from(image()).other(serve),
            Accept(CONTENT),
        )
        .configure(mirror)
        .audit(|seen| {
            ensure!(seen.registry.iter().all(|r| !r.is_blob()), "the registry was asked for content");
            Ok(())
        }),
    ]
}

/// The image, by whatever names.
fn serve(
    request: &crate::registry::Request,
    connection: &mut crate::registry::Connection,
) -> std::io::Result<Turn> {
    let image = image();
    if request.is_manifest() {
        return connection.answer("200 OK", &[("Content-Type", MANIFEST)], &image.manifest);
    }
    let mut layer = Vec::new();
    image.layers[0].content.write(&mut layer, 0, u64::MAX)?;
    let is_layer = request.path.ends_with(&image.layers[0].digest);
    connection.answer("200 OK", &[], if is_layer { &layer } else { &image.config })
}
