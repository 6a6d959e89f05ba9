//! Refusals and mistakes, each with its exact message.

mod reading;

use nacre_policy_author::kubernetes::read;
use reading::{file, mistake, pod, reading};

#[test]
fn what_a_confidential_pod_must_not_have_is_refused() {
    for (spec, container, message) in [
        (
            "hostNetwork: true",
            "",
            "web.yaml:5: spec.hostNetwork: hostNetwork: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostPID: true",
            "",
            "web.yaml:5: spec.hostPID: hostPID: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostIPC: true",
            "",
            "web.yaml:5: spec.hostIPC: hostIPC: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostUsers: false",
            "",
            "web.yaml:5: spec.hostUsers: hostUsers: false is refused: the guest runs no user namespaces; its virtual machine already keeps the pod's users from the host's; remove the field",
        ),
        (
            "os: {name: windows}",
            "",
            "web.yaml:5: spec.os.name: os.name: windows is refused: the guest runs Linux; write linux",
        ),
        (
            "ephemeralContainers:\n- {name: debug, image: busybox}",
            "",
            "web.yaml:5: spec.ephemeralContainers: ephemeralContainers is refused: a container that is added while the pod runs is not in its measured policy; remove the field",
        ),
        (
            "securityContext:\n  windowsOptions: {}",
            "",
            "web.yaml:6: spec.securityContext.windowsOptions: windowsOptions is refused: the guest runs Linux; remove the field",
        ),
        (
            "setHostnameAsFQDN: true",
            "",
            "web.yaml:5: spec.setHostnameAsFQDN: setHostnameAsFQDN: true is refused: the full name contains the cluster's domain, which the policy cannot know; remove the field",
        ),
        (
            "volumes:\n- name: code\n  gitRepo: {repository: x}",
            "",
            "web.yaml:7: spec.volumes[0].gitRepo: a gitRepo volume is refused: Kubernetes has removed it; clone the repository in an init container",
        ),
        (
            "",
            "securityContext:\n  privileged: true",
            "web.yaml:9: spec.containers[0].securityContext.privileged: privileged: true is refused: it gives the container every device and capability of the guest; grant single ones with securityContext.capabilities.add",
        ),
        (
            "",
            "securityContext:\n  windowsOptions: {hostProcess: true}",
            "web.yaml:9: spec.containers[0].securityContext.windowsOptions: windowsOptions is refused: the guest runs Linux; remove the field",
        ),
        (
            "",
            "securityContext:\n  seccompProfile: {type: Localhost, localhostProfile: a.json}",
            "web.yaml:9: spec.containers[0].securityContext.seccompProfile.type: a seccomp profile of the type Localhost is refused: it is a file of the host, which the guest does not trust; write RuntimeDefault or Unconfined",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts:\n- {name: v, mountPath: /v, mountPropagation: Bidirectional}",
            "web.yaml:10: spec.containers[0].volumeMounts[0].mountPropagation: mountPropagation: Bidirectional is refused: it needs a privileged container and gives mounts to the host; write None or HostToContainer",
        ),
        (
            "",
            "env:\n- name: A\n  valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}",
            "web.yaml:10: spec.containers[0].env[0].valueFrom.fileKeyRef: fileKeyRef is refused: its value comes from a file that is written while the pod runs, so no policy can know it; let the program read the file",
        ),
    ] {
        assert_eq!(mistake(&pod(spec, container)), message);
    }
    // Said explicitly, the harmless values are fine.
    reading(&pod(
        "hostNetwork: false\nhostPID: false\nhostIPC: false\nhostUsers: true\nos: {name: linux}\nephemeralContainers: []",
        "securityContext: {privileged: false, seccompProfile: {type: Unconfined}}",
    ));
}

#[test]
fn mistakes_in_a_pod_have_their_place() {
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b, 1x: c}\nbinaryData: {raw: AP8=}\n---\n\
                  apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {raw: AP8=}\n---\n";
    for (spec, container, message) in [
        (
            "restartPolicy: Sometimes",
            "",
            "web.yaml:16: spec.restartPolicy: must be Always, OnFailure or Never",
        ),
        ("hostname: a_b", "", "web.yaml:16: spec.hostname: is no hostname"),
        (
            "securityContext: {runAsUser: -1}",
            "",
            "web.yaml:16: spec.securityContext.runAsUser: must be between 0 and 2147483647",
        ),
        (
            "securityContext: {runAsUser: '1000'}",
            "",
            "web.yaml:16: spec.securityContext.runAsUser: must be a whole number, but is text: remove the quotes",
        ),
        (
            "securityContext: {runAsNonRoot: true}",
            "securityContext: {runAsUser: 0}",
            "web.yaml:20: spec.containers[0].securityContext.runAsUser: is 0 where runAsNonRoot is true: choose another user, or remove runAsNonRoot",
        ),
        (
            "securityContext: {sysctls: [{name: a.b, value: '1'}, {name: a/b, value: '2'}]}",
            "",
            "web.yaml:16: spec.securityContext.sysctls[1].name: stands twice: remove one",
        ),
        (
            "securityContext: {supplementalGroupsPolicy: Loose}",
            "",
            "web.yaml:16: spec.securityContext.supplementalGroupsPolicy: must be Merge or Strict",
        ),
        (
            "initContainers: [{name: web, image: i}]",
            "",
            "web.yaml:18: spec.containers[0].name: the pod has two containers \"web\": rename one",
        ),
        (
            "initContainers: [{name: Web, image: i}]",
            "",
            "web.yaml:16: spec.initContainers[0].name: \"Web\" is no name for a container: use up to 63 of a-z, 0-9 and '-', the latter not at the ends",
        ),
        (
            "initContainers: [{name: a}]",
            "",
            "web.yaml:16: spec.initContainers[0].image: is missing",
        ),
        (
            "volumes: [{name: v}, {name: v}]",
            "",
            "web.yaml:16: spec.volumes[1].name: the pod has two volumes \"v\": rename one",
        ),
        (
            "volumes: [{name: v, emptyDir: {}, hostPath: {path: /}}]",
            "",
            "web.yaml:16: spec.volumes[0].hostPath: is a second source of this volume: a volume has one, remove the other",
        ),
        (
            "volumes: [{name: v, emptyDir: {medium: Tape}}]",
            "",
            "web.yaml:16: spec.volumes[0].emptyDir.medium: must be empty, Memory, HugePages or HugePages-SIZE",
        ),
        (
            "volumes: [{name: v, hostPath: {path: /a/../b}}]",
            "",
            "web.yaml:16: spec.volumes[0].hostPath.path: must not contain '..'",
        ),
        (
            "volumes: [{name: v, configMap: {name: m, items: [{key: z, path: z}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].configMap.items[0].key: ConfigMap \"m\" (web.yaml:1) has no key \"z\": add it there, or correct the key",
        ),
        (
            "volumes: [{name: v, configMap: {name: m, items: [{key: a, path: ../a}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].configMap.items[0].path: must be a relative path without '..': name a file within the volume",
        ),
        (
            "volumes: [{name: v, projected: {sources: [{}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].projected.sources[0]: needs exactly one of configMap, secret, downwardAPI, serviceAccountToken, clusterTrustBundle and podCertificate",
        ),
        (
            "volumes: [{name: v, secret: {name: s}}]",
            "",
            "web.yaml:16: spec.volumes[0].secret.name: unknown field: remove it, or correct its name",
        ),
        (
            "",
            "image2: x",
            "web.yaml:19: spec.containers[0].image2: unknown field; did you mean image?",
        ),
        ("", "command: sh", "web.yaml:19: spec.containers[0].command: must be a list, but is text"),
        (
            "",
            "args: [--port, 80]",
            "web.yaml:19: spec.containers[0].args[1]: must be text, but is a number: write it in quotes",
        ),
        (
            "",
            "env:\n- {name: A, value: yes}",
            "web.yaml:20: spec.containers[0].env[0].value: must be text, but is a boolean: write it in quotes",
        ),
        (
            "",
            "env:\n- {name: A=B, value: c}",
            "web.yaml:20: spec.containers[0].env[0].name: is no name of an environment variable: it is empty or contains '='",
        ),
        (
            "",
            "env:\n- {name: A, value: b, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom: stands beside value: remove one of them",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom: needs exactly one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {configMapKeyRef: {name: m, key: z}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: ConfigMap \"m\" (web.yaml:1) has no key \"z\": add it there, or correct the key",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {configMapKeyRef: {name: m, key: raw}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: \"raw\" stands in the ConfigMap's binaryData, which cannot become a variable: move it to data",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {secretKeyRef: {name: s, key: raw}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.secretKeyRef.key: \"raw\" of Secret \"s\" is not UTF-8 text without NUL and cannot become a variable: mount it as a file",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {secretKeyRef: {name: t, key: k}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.secretKeyRef.name: the Secret \"t\" is not in the given files: give its YAML too, so that its values can be in the policy",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {resourceFieldRef: {resource: limits}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: \"limits\" is no resource: use limits.cpu, limits.memory, requests.cpu, requests.memory, limits.ephemeral-storage or requests.ephemeral-storage",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {resourceFieldRef: {containerName: b, resource: limits.cpu}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.resourceFieldRef.containerName: the pod has no container \"b\": correct containerName",
        ),
        (
            "",
            "envFrom:\n- {configMapRef: {name: m}}",
            "web.yaml:20: spec.containers[0].envFrom[0]: \"1x\" of ConfigMap \"m\" is no environment variable in every Kubernetes version: rename the key, or set a variable from it by valueFrom",
        ),
        (
            "",
            "envFrom:\n- {}",
            "web.yaml:20: spec.containers[0].envFrom[0]: needs either configMapRef or secretRef",
        ),
        (
            "",
            "resources: {limits: {cpu: lots}}",
            "web.yaml:19: spec.containers[0].resources.limits.cpu: \"lots\" is no quantity: write a number such as 2, 0.5, 100m, 128Mi or 1e3",
        ),
        (
            "",
            "resources: {limits: {memory: 1Gi}, requests: {memory: 2Gi}}",
            "web.yaml:19: spec.containers[0].resources.requests.memory: is more than the limit: lower it, or raise the limit",
        ),
        (
            "",
            "volumeMounts: [{name: v, mountPath: /v}]",
            "web.yaml:19: spec.containers[0].volumeMounts[0].name: the pod has no volume \"v\": add it to spec.volumes, or correct the name",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v}]",
            "web.yaml:20: spec.containers[0].volumeMounts[1].mountPath: \"/v\" is mounted twice in this container: remove one of the mounts",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v, subPath: ../v}]",
            "web.yaml:20: spec.containers[0].volumeMounts[0]: subPath must be a relative path without '..'",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(NO)}]",
            "web.yaml:20: spec.containers[0].volumeMounts[0].subPathExpr: refers to the variable \"NO\", which the container does not define: add it to env",
        ),
        (
            "volumes: [{name: v}]",
            "volumeDevices: [{name: v, devicePath: /dev/v}]",
            "web.yaml:20: spec.containers[0].volumeDevices[0].name: the volume \"v\" is no block device: use a claim of volumeMode: Block, or name it in volumeMounts",
        ),
        (
            "",
            "livenessProbe: {exec: {command: []}}",
            "web.yaml:19: spec.containers[0].livenessProbe.exec.command: names no program: write the command as a list",
        ),
        (
            "",
            "livenessProbe: {httpGet: {prt: 80}}",
            "web.yaml:19: spec.containers[0].livenessProbe.httpGet.prt: unknown field; did you mean port?",
        ),
        (
            "",
            "lifecycle: {stopSignal: KILL}",
            "web.yaml:19: spec.containers[0].lifecycle.stopSignal: is no signal: write its name, such as SIGTERM",
        ),
        (
            "",
            "securityContext: {capabilities: {add: [CAP_CHOWN]}}",
            "web.yaml:19: spec.containers[0].securityContext.capabilities.add[0]: \"CAP_CHOWN\" must stand without its prefix in Kubernetes: write CHOWN",
        ),
        (
            "",
            "securityContext: {capabilities: {add: [FLY]}}",
            "web.yaml:19: spec.containers[0].securityContext.capabilities.add[0]: \"FLY\" is no Linux capability: write a name such as NET_BIND_SERVICE, or ALL",
        ),
        (
            "",
            "securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [SYS_ADMIN]}}",
            "web.yaml:19: spec.containers[0].securityContext.allowPrivilegeEscalation: is false beside the added capability SYS_ADMIN, which Kubernetes refuses: remove one of them",
        ),
        (
            "",
            "securityContext: {procMount: Some}",
            "web.yaml:19: spec.containers[0].securityContext.procMount: must be Default or Unmasked",
        ),
        (
            "affinity: {nodeAffinity: {requiredDuringScheduling: {}}}",
            "",
            "web.yaml:16: spec.affinity.nodeAffinity.requiredDuringScheduling: unknown field: remove it, or correct its name",
        ),
    ] {
        // The configuration has 11 lines, the pod's head 4.
        let text = format!("{config}{}", pod(spec, container));
        assert_eq!(mistake(&text), message, "{text}");
    }
}

#[test]
fn mistakes_in_objects_have_their_place() {
    let pod = pod("", "");
    for (text, message) in [
        ("a: b", "web.yaml:1: kind: is missing"),
        ("kind: Pod", "web.yaml:1: apiVersion: is missing"),
        ("- a", "web.yaml:1: must be a mapping, but is a list"),
        (
            "apiVersion: apps/v1\nkind: Deploymnt",
            "web.yaml:2: kind: apps/v1 has no kind \"Deploymnt\": it has Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision",
        ),
        (
            "apiVersion: v1\nkind: Deployment",
            "web.yaml:1: apiVersion: v1 has no Deployment: write apps/v1",
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: Deployment",
            "web.yaml:1: apiVersion: extensions/v1beta1 is no longer served by Kubernetes: write apps/v1",
        ),
        (
            "apiVersion: v1\nkind: PodList\nitems: []",
            "web.yaml:2: kind: is not read: write kind: List, with apiVersion: v1",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {containers: []}",
            "web.yaml:3: metadata: has neither name nor generateName: add one",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A}\nspec: {containers: []}",
            "web.yaml:3: metadata.name: \"A\" is no name: use up to 253 of a-z, 0-9, '-' and '.', the latter two not at the ends",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}",
            "web.yaml:4: spec.containers: needs at least one container",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}",
            "web.yaml:4: spec.containers: is missing",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}",
            "web.yaml:5: a stands twice, first at web.yaml:1: remove one",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  k: '%'",
            "web.yaml:5: data.k: is not base64: encode the value, or (in a Secret) move it to stringData",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndatta: {}",
            "web.yaml:4: datta: unknown field; did you mean data?",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  k: 3",
            "web.yaml:5: data.k: must be text, but is a number: write it in quotes",
        ),
        (
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers: [{name: a, image: i}]",
            "web.yaml:6: spec.template.spec: a job's pods need restartPolicy: Never or OnFailure",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a\n",
            "web.yaml:3: not valid YAML: unclosed bracket '{'",
        ),
    ] {
        assert_eq!(mistake(text), message, "{text}");
    }
    assert_eq!(
        mistake(&format!("{pod}---\n{pod}")),
        "web.yaml:9: Pod \"web\" stands twice, first at web.yaml:1: remove one"
    );
}

#[test]
fn variables_that_explode_are_an_error() {
    let mut env = "env:\n- {name: A0, value: xxxxxxxxxx}\n".to_owned();
    for level in 1..9 {
        let value = format!("$(A{})", level - 1).repeat(10);
        env += &format!("- {{name: A{level}, value: \"{value}\"}}\n");
    }
    assert_eq!(
        mistake(&pod("", &env)),
        "web.yaml:14: spec.containers[0].env[5].value: is longer than 131072 bytes after $(VAR) expansion, which no \
         program can be given: shorten it"
    );
}

#[test]
fn an_environment_is_no_larger_than_linux_can_pass_on() {
    let mut env = format!("env:\n- {{name: A, value: {}}}\n", "x".repeat(100_000));
    for index in 0..70 {
        env += &format!("- {{name: B{index}, value: $(A)}}\n");
    }
    assert_eq!(
        mistake(&pod("", &env)),
        "web.yaml:71: spec.containers[0].env[62]: size of the container's environment and command line, in bytes \
         exceeds the limit of 6291456: no program can be given more; shorten it"
    );
}

#[test]
fn messages_do_not_grow_with_their_file() {
    let text = format!("apiVersion: v1\nkind: Pod\n{}: 1\n", "k".repeat(1000));
    let keys = "k".repeat(100);
    assert_eq!(
        mistake(&text),
        format!("web.yaml:3: [\"{keys}...\"]: unknown field: remove it, or correct its name")
    );
    let files: Vec<_> = (0..17).map(|_| file(&" ".repeat(4 << 20))).collect();
    let error = read(&files).map(drop).unwrap_err().to_string();
    assert_eq!(
        error,
        "web.yaml:1: size of all files in bytes exceeds the limit of 67108864: give fewer at a time"
    );
}
