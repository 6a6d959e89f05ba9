//! The policy that is generated for a pod admits what runtimes ask of an agent for this pod: recorded
//! requests of every containerd that there is a profile for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_policy::{Event, Judge, Line, Outcome, Policy};
use nacre_policy_author::document::Document;
use nacre_policy_author::generate::{ImageFacts, Images, Options, generate};
use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::settings::Settings;

/// The pod whose requests were recorded.
const YAML: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: stories}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: recorded, namespace: stories}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  volumes:
  - {name: config, configMap: {name: config}}
  containers:
  - name: app
    image: 10.88.0.1:5000/app:1
    args: [sh, -c, echo up; sleep 1000]
    workingDir: /srv
    env:
    - {name: MODE, value: production}
    - {name: PASSWORD, value: hunter2}
    securityContext: {runAsUser: 1000}
    resources: {limits: {memory: 64Mi}}
    livenessProbe: {exec: {command: [cat, /config/key]}}
    volumeMounts:
    - {name: config, mountPath: /config, readOnly: true}
  - name: second
    image: 10.88.0.1:5000/app:1
    args: [sh, -c, exit 4]
";

const RECORDINGS: [&str; 3] = [
    include_str!("../../engine/tests/recorded/containerd-1.6.jsonl"),
    include_str!("../../engine/tests/recorded/containerd-1.7.jsonl"),
    include_str!("../../engine/tests/recorded/containerd-2.1.jsonl"),
];

/// What the registry of the recordings had.
struct Recorded;

impl Images for Recorded {
    fn image(&mut self, _: &str) -> Result<ImageFacts, String> {
        let digest = RECORDINGS[0].split("app@").nth(1).ok_or("no image was recorded")?;
        Ok(ImageFacts {
            name: "10.88.0.1:5000/app".into(),
            tag: Some("1".into()),
            digest: digest.chars().take("sha256:".len() + 64).collect(),
            env: vec!["PATH=/bin".into()],
            ..ImageFacts::default()
        })
    }
}

fn document(standalone: bool) -> String {
    let file = SourceFile { name: "pod.yaml".into(), content: YAML.into() };
    let reading = read(&[file]).unwrap_or_else(|error| panic!("{error}"));
    let options = Options { standalone, ..Options::default() };
    let made = generate(&reading.workloads[0], &mut Recorded, &Settings::default(), options);
    Document::new(made.unwrap_or_else(|error| panic!("{error}")).data).render()
}

#[test]
fn generated_policies_admit_what_each_runtime_asks() {
    for document in [document(false), document(true)] {
        for recording in RECORDINGS {
            let mut judge = Judge::new(Policy::parse(&document).unwrap());
            for line in recording.lines() {
                match serde_json::from_str(line).unwrap() {
                    Line::Event { container_id, .. } => {
                        judge.observe(&Event::Exited { container_id });
                    }
                    Line::Request { request, input, outcome, .. } => {
                        let ticket = judge
                            .judge_json(&request, &input)
                            .unwrap_or_else(|denial| panic!("{denial}\n{input}"));
                        judge.settle(ticket, outcome == Outcome::Ok);
                    }
                }
            }
        }
    }
}
