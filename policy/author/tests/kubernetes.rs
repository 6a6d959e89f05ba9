//! The Kubernetes front end: every kind of workload, and what the API server and the kubelet make of it.

mod reading;

use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::workload::{PodName, Volume, VolumeKind, Workload};
use reading::{file, mistake, pod, reading, shown};

fn volume<'a>(workload: &'a Workload, name: &str) -> &'a Volume {
    let mut all = workload.pod.volumes.iter();
    all.find(|volume| volume.name == name).expect("the volume is there")
}

const TEMPLATE: &str = "{spec: {containers: [{name: web, image: nginx}]}}";
const JOB_TEMPLATE: &str = "{spec: {restartPolicy: Never, containers: [{name: web, image: nginx, env: \
                            [{name: I, value: $(JOB_COMPLETION_INDEX)}]}]}}";

#[test]
fn every_kind_names_its_pods() {
    let prefix = |text: &str| PodName::Prefix(text.to_owned());
    let pattern = |text: &str| PodName::Pattern(text.to_owned());
    for (version, kind, metadata, spec, name, hostname) in [
        (
            "v1",
            "Pod",
            "name: a.b",
            "containers: [{name: web, image: nginx}]".to_owned(),
            PodName::Exact("a.b".to_owned()),
            None,
        ),
        (
            "v1",
            "Pod",
            "generateName: a-",
            "containers: [{name: web, image: nginx}]".to_owned(),
            prefix("a-"),
            None,
        ),
        ("apps/v1", "Deployment", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        ("apps/v1", "ReplicaSet", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        (
            "v1",
            "ReplicationController",
            "name: a",
            format!("{{template: {TEMPLATE}, selector: {{a: b}}}}"),
            prefix("a-"),
            None,
        ),
        ("apps/v1", "DaemonSet", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        (
            "apps/v1",
            "StatefulSet",
            "name: a.b",
            format!("{{serviceName: s, template: {TEMPLATE}}}"),
            pattern(r"^a\.b-[0-9]+$"),
            None,
        ),
        ("batch/v1", "Job", "name: a", format!("template: {JOB_TEMPLATE}"), prefix("a-"), None),
        (
            "batch/v1",
            "Job",
            "generateName: a-",
            format!("template: {JOB_TEMPLATE}"),
            prefix("a-"),
            None,
        ),
        (
            "batch/v1",
            "Job",
            "name: a",
            format!("{{completionMode: Indexed, template: {JOB_TEMPLATE}}}"),
            prefix("a-"),
            Some(pattern("^a-[0-9]+$")),
        ),
        (
            "batch/v1",
            "CronJob",
            "name: a",
            format!(
                "{{schedule: '* * * * *', jobTemplate: {{spec: {{template: {JOB_TEMPLATE}}}}}}}"
            ),
            prefix("a-"),
            None,
        ),
        (
            "batch/v1",
            "CronJob",
            "name: a",
            format!(
                "{{schedule: '* * * * *', jobTemplate: {{spec: {{completionMode: Indexed, template: {JOB_TEMPLATE}}}}}}}"
            ),
            prefix("a-"),
            Some(pattern("^a-[0-9]+-[0-9]+$")),
        ),
    ] {
        let spec = if spec.starts_with('{') { spec } else { format!("{{{spec}}}") };
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n"
        );
        let all = reading(&text);
        let workload = &all.workloads[0];
        assert_eq!(workload.kind, kind);
        assert_eq!(workload.name, name, "{text}");
        assert_eq!(workload.pod.hostname, hostname, "{text}");
        assert_eq!(workload.pod.containers[0].restartable, version != "batch/v1");
        if kind == "Job" || kind == "CronJob" {
            let indexed = hostname.is_some();
            let index = &workload.pod.containers[0].env;
            assert_eq!(index.len(), if indexed { 2 } else { 1 });
            assert_eq!(index[0].name, "I");
        }
    }
    let long = "x".repeat(60);
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {long}}}\nspec: {{template: {TEMPLATE}}}"
    );
    assert_eq!(reading(&text).workloads[0].name, prefix(&"x".repeat(58)));
    let long = "x".repeat(70);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}}}\nspec: {{containers: [{{name: web, image: nginx}}]}}"
    );
    assert_eq!(reading(&text).workloads[0].pod.hostname, Some(PodName::Exact("x".repeat(63))));
}

#[test]
fn lists_and_several_files_are_one_input() {
    let list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n\
                - apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: {containers: [{name: c, image: i, envFrom: [{configMapRef: {name: m}}]}]}\n\
                - apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: c, image: i}]}}\n";
    let config = SourceFile {
        name: "config.yaml".to_owned(),
        content: b"{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"m\"}, \"data\": {\"A\": \"1\"}}".to_vec(),
    };
    let all = read(&[file(list), config]).unwrap();
    assert_eq!(all.workloads.len(), 2);
    assert_eq!(all.workloads[0].line, 5);
    assert_eq!(all.workloads[0].pod.containers[0].env[0].name, "A");
    assert_eq!(all.workloads[1].line, 12);
    let list = list.replace(", envFrom: [{configMapRef: {name: m}}]", "");
    let error = mistake(&list.replace("{name: c, image: i}]}}\n", "{name: c, imagee: i}]}}\n"));
    assert_eq!(
        error,
        "web.yaml:12: items[1].items[0].spec.containers[0].imagee: unknown field; did you mean image?"
    );
}

#[test]
fn claim_templates_are_volumes() {
    let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db}\nspec:\n  serviceName: db\n  template:\n    spec:\n      \
                containers:\n      - name: db\n        image: db\n        volumeMounts: [{name: data, mountPath: /data}]\n        \
                volumeDevices: [{name: raw, devicePath: /dev/raw}]\n  volumeClaimTemplates:\n  - metadata: {name: data}\n    spec: \
                {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n  - metadata: {name: raw}\n    spec: {volumeMode: Block}\n";
    let all = reading(text);
    let workload = &all.workloads[0];
    assert_eq!(workload.pod.subdomain.as_deref(), Some("db"));
    assert_eq!(
        volume(workload, "data").kind,
        VolumeKind::Claim { name: "data".to_owned(), block: Some(false), read_only: false }
    );
    assert!(matches!(volume(workload, "raw").kind, VolumeKind::Claim { block: Some(true), .. }));
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {anything: 1}\n---\n\
                apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n---\n\
                apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\n---\n\
                apiVersion: v1\nkind: LimitRange\n";
    let notes: Vec<_> = reading(text).notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "web.yaml:1: Service is skipped: it makes no pods",
            "web.yaml:6: Role is skipped: it makes no pods",
            "web.yaml:9: Job (batch.volcano.sh/v1alpha1) is not known and is skipped: pods that it makes get no policy",
            "web.yaml:12: LimitRange is skipped: if it changes the resources of pods, write them into the pods, or the \
             agent will refuse them",
        ]
    );
}

#[test]
fn objects_are_found_in_their_namespace() {
    let config = |namespace: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, namespace: {namespace}}}\ndata: {{A: '{value}'}}\n---\n"
        )
    };
    let pod = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{containers: [{{name: c, image: i, \
                 env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: m, key: A}}}}}}]}}]}}\n"
        )
    };
    let both = config("one", "1") + &config("two", "2");
    let value = |text: &str| shown(&reading(text).workloads[0].pod.containers[0].env[0].value);
    assert_eq!(value(&(both.clone() + &pod("two"))), "2");
    assert!(mistake(&(both.clone() + &pod("three"))).contains("is not in the given files"));
    assert!(mistake(&(both + &pod(""))).contains("is not in the given files"));
    assert_eq!(value(&(config("", "0") + &pod("three"))), "0");
}

#[test]
fn numbers_are_read_as_kubernetes_reads_them() {
    let all = reading(&pod(
        "securityContext: {runAsUser: 0o1750}",
        "resources: {limits: {memory: 1e3, cpu: \"0.1\"}, requests: {memory: 100m}}",
    ));
    let container = &all.workloads[0].pod.containers[0];
    assert_eq!(container.security.run_as_user, Some(1000));
    assert_eq!(container.resources.memory_limit, Some(1000));
    assert_eq!(container.resources.cpu_limit, Some(100));
    assert_eq!(container.resources.cpu_request, Some(100));
    assert_eq!(
        all.notes[0].text,
        "spec.containers[0].resources.requests.memory: \"100m\" is a fraction of a byte; if mega is meant, write M or Mi"
    );
}

#[test]
fn data_may_be_null_or_loosely_encoded() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  empty:\n  loose: YWK=\n  lines: |\n    YW\n    Jj\n";
    let all = reading(text);
    let data = |key: &str| all.secrets[0].data[key].reveal();
    assert_eq!((data("empty"), data("loose"), data("lines")), (&b""[..], &b"ab"[..], &b"abc"[..]));
}

#[test]
fn empty_names_are_absent_ones() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, generateName: '', namespace: ''}\nspec:\n  \
                hostname: ''\n  subdomain: ''\n  serviceAccountName: ''\n  nodeName: ''\n  containers:\n  - {name: web, image: i, \
                command: [], workingDir: '', env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, \
                {name: B, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]}\n";
    let all = reading(text);
    let workload = &all.workloads[0];
    assert_eq!(workload.namespace, None);
    assert_eq!((&workload.pod.hostname, &workload.pod.subdomain), (&None, &None));
    let container = &workload.pod.containers[0];
    assert_eq!((&container.command, &container.working_dir), (&None, &None));
    let values: Vec<_> = container.env.iter().map(|variable| shown(&variable.value)).collect();
    assert_eq!(values, ["from pod node_name", "default"]);
}

#[test]
fn containers_know_whether_they_run_again() {
    let restartable = |policy: &str, own: &str| {
        let text = pod(
            &format!("restartPolicy: {policy}\ninitContainers: [{{name: init, image: i}}]"),
            own,
        );
        let all = reading(&text);
        let containers = &all.workloads[0].pod.containers;
        (containers[0].restartable, containers[1].restartable)
    };
    let rule = |action: &str| {
        format!(
            "restartPolicyRules: [{{action: {action}, exitCodes: {{operator: In, values: [88]}}}}]"
        )
    };
    assert_eq!(restartable("Always", ""), (true, true));
    assert_eq!(restartable("OnFailure", ""), (true, true));
    assert_eq!(restartable("Never", ""), (false, false));
    assert_eq!(restartable("Never", "restartPolicy: OnFailure"), (false, true));
    assert_eq!(restartable("Always", "restartPolicy: Never"), (true, false));
    assert_eq!(restartable("Never", &rule("Restart")), (false, true));
    assert_eq!(restartable("Never", &rule("RestartAllContainers")), (true, true));
}

#[test]
fn a_controller_decides_on_the_hostname() {
    let text = format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec: {{template: {}}}\n",
        TEMPLATE.replace("{spec: {", "{spec: {hostname: other, ")
    );
    assert_eq!(reading(&text).workloads[0].pod.hostname, None);
}

#[test]
fn a_later_variable_counts_and_sees_the_earlier() {
    let all = reading(&pod(
        "",
        "env:\n- {name: A, value: '1'}\n- {name: A, value: $(A)2}\n- {name: B, value: $(C)}\n- {name: C, value: $(A)}\n\
         - {name: A, valueFrom: {configMapKeyRef: {name: absent, key: key, optional: true}}}",
    ));
    let env: Vec<_> = all.workloads[0].pod.containers[0]
        .env
        .iter()
        .map(|variable| (variable.name.as_str(), shown(&variable.value), variable.line))
        .collect();
    assert_eq!(
        env,
        [("A", "12".to_owned(), 10), ("B", "$(C)".to_owned(), 11), ("C", "12".to_owned(), 12)]
    );
}

#[test]
fn pod_limits_hold_for_containers_without_their_own() {
    let all = reading(&pod(
        "resources: {limits: {cpu: '2', memory: 1Gi, pids: '100'}}",
        "resources: {requests: {cpu: 100m}}",
    ));
    let resources = &all.workloads[0].pod.containers[0].resources;
    assert_eq!((resources.cpu_limit, resources.memory_limit), (None, None));
    assert_eq!((resources.linux.cpu_shares, resources.linux.cpu_quota), (102, 200_000));
    assert_eq!(resources.linux.memory_limit, 1 << 30);
}
