package agent_policy

policy_data := {
  "containers": {
    "web": {
      "args": ["/bin/entry", "--listen", ":8080", "--name", "web"],
      "capabilities": [],
      "cpu_period": 100000,
      "cpu_quota": 100000,
      "cpu_shares": 256,
      "cwd": "/srv",
      "env": ["GREETING=hello", "PATH=/usr/local/bin:/usr/bin:/bin", "POD_NAME=web"],
      "exec": [["/bin/web", "--check"]],
      "guest_api": {"resources": true},
      "image": "registry.example/shop/web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "lines": {"allowPrivilegeEscalation": 28, "args": 11, "capabilities": 30, "env": 12, "exec": 26, "image": 10, "readOnlyRootFilesystem": 29, "resources": 21, "seccompProfile": 32},
      "memory_limit": 134217728,
      "mounts": {
        "/var/run/secrets/kubernetes.io/serviceaccount": {"kind": "token", "read_only": true, "source_pattern": "^kube-api-access-[a-z0-9]{5}$", "updates": true}
      },
      "no_new_privileges": true,
      "readonly_root": true,
      "seccomp": "runtime",
      "service_env": "all",
      "signals": [3],
      "users": [{"gid": 101, "groups": [7, 101], "uid": 100}]
    }
  },
  "pod": {
    "lines": {"namespace": 6},
    "name": "web",
    "namespace": "shop"
  },
  "runtimes": ["containerd-1.6"],
  "source": "pod.yaml",
  "version": 1
}
