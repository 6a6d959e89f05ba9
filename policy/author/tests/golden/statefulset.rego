package agent_policy

policy_data := {
  "containers": {
    "store": {
      "args": ["/bin/entry", "serve"],
      "cwd": "/srv",
      "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
      "exec": [["/bin/store", "flush"]],
      "guest_api": {"resources": true},
      "image": "registry.example/shop/store@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "lines": {"exec": 22, "image": 17, "mounts": 23, "stdin": 19, "tty": 18},
      "mounts": {
        "/about": {"kind": "downward", "read_only": true, "source": "about", "updates": true},
        "/data": {"kind": "claim", "source_pattern": "^(mount|pvc-[0-9a-f-]{36})$"},
        "/identity": {"kind": "token", "read_only": true, "source": "identity", "updates": true},
        "/var/run/secrets/kubernetes.io/serviceaccount": {"kind": "token", "read_only": true, "source_pattern": "^kube-api-access-[a-z0-9]{5}$", "updates": true}
      },
      "service_env": "all",
      "signals": [3],
      "stdin": true,
      "terminal": true,
      "users": [{"gid": 101, "groups": [7, 101], "uid": 100}]
    }
  },
  "copies": {
    "identity": {"files": {"ca.crt": "03d66dd08835c1ca3f128cceacd1f31ac94163096b20f445ae84285bc0832d72"}, "open": true}
  },
  "pod": {
    "lines": {"namespace": 6},
    "name_pattern": "^store-[0-9]+$",
    "namespace": "shop"
  },
  "runtimes": ["containerd-1.6"],
  "source": "statefulset.yaml",
  "version": 1
}
