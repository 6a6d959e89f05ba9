package agent_policy

policy_data := {
  "containers": {
    "migrate": {
      "args": ["/bin/migrate"],
      "cwd": "/srv",
      "env": ["PASSWORD=correct horse", "PATH=/usr/local/bin:/usr/bin:/bin"],
      "guest_api": {"resources": true},
      "image": "registry.example/shop/web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "init": true,
      "lines": {"args": 26, "env": 27, "image": 25, "user": 17},
      "secret_env": ["PASSWORD"],
      "service_env": "kubernetes",
      "signals": [3],
      "users": [{"gid": 2000, "groups": [2000, 3000], "uid": 1000}]
    },
    "proxy": {
      "args": ["/bin/entry", "serve"],
      "cwd": "/srv",
      "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
      "guest_api": {"resources": true},
      "image": "registry.example/shop/proxy@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
      "lines": {"image": 30, "user": 17},
      "service_env": "kubernetes",
      "sidecar": true,
      "signals": [3],
      "users": [{"gid": 2000, "groups": [2000, 3000], "uid": 1000}]
    },
    "web": {
      "args": ["/bin/entry", "serve"],
      "cwd": "/srv",
      "env": ["MODE=production", "PASSWORD=correct horse", "PATH=/usr/local/bin:/usr/bin:/bin"],
      "env_from_pod": {"HOST_IP": "host_ip"},
      "env_pattern": {"DATABASE": "^postgres://shop:correct horse@[0-9a-fA-F:.]{2,45}/shop$"},
      "guest_api": {"resources": true},
      "image": "registry.example/shop/web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      "lines": {"env": 35, "image": 34, "mounts": 44, "user": 17},
      "mounts": {
        "/etc/mode": {"kind": "config", "read_only": true, "source": "web.1", "sub_path": "mode", "volume": "config"},
        "/etc/web": {"kind": "config", "read_only": true, "source": "config"},
        "/keys": {"kind": "secret", "read_only": true, "source": "keys"},
        "/tmp": {"kind": "empty_dir", "memory": true, "volume": "scratch"}
      },
      "secret_env": ["DATABASE", "PASSWORD"],
      "service_env": "kubernetes",
      "signals": [3],
      "users": [{"gid": 2000, "groups": [2000, 3000], "uid": 1000}]
    }
  },
  "copies": {
    "config": {"files": {"mode": "ab8e18ef4ebebeddc0b3152ce9c9006e14fc05242e3fc9ce32246ea6a9543074", "web.conf": "ca46a7c64dc9626fbf770b2913720144ac99f297caaeb8ee93402c689cd1291a"}},
    "keys": {"files": {"PASSWORD": "4104d36f8da2c254349f85836793ebe029e0c957063a34c91c2e9203187b5631"}, "secret": true}
  },
  "pod": {
    "lines": {"sysctls": 20},
    "name_prefix": "web-",
    "shared_pid": true,
    "sysctls": {"net.core.somaxconn": "1024"}
  },
  "runtimes": ["containerd-1.6"],
  "source": "deployment.yaml",
  "version": 1
}
