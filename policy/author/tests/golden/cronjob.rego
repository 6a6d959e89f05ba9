package agent_policy

policy_data := {
  "containers": {
    "backup": {
      "args": ["/bin/store", "backup"],
      "cwd": "/srv",
      "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
      "guest_api": {"resources": true},
      "image": "registry.example/shop/store@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "lines": {"args": 17, "image": 16},
      "mounts": {
        "/var/run/secrets/kubernetes.io/serviceaccount": {"kind": "token", "read_only": true, "source_pattern": "^kube-api-access-[a-z0-9]{5}$", "updates": true}
      },
      "restartable": false,
      "service_env": "all",
      "signals": [3],
      "users": [{"gid": 101, "groups": [7, 101], "uid": 100}]
    }
  },
  "pod": {
    "lines": {"namespace": 6},
    "name_prefix": "backup-",
    "namespace": "shop"
  },
  "runtimes": ["containerd-1.6"],
  "source": "cronjob.yaml",
  "version": 1
}
