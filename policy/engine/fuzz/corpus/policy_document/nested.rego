package agent_policy

policy_data := {
 "version": 1,
 "source": "pod.yaml",
 {{{{{{{{{{{{{{{{{{{{{{{{{{{{"runtimes": [
  "contaiferd-2"
 ],
 "pod": {
  "name": "recorded",
  "namespace": "stories"
 },
 "containers": {
  "app": {
   "image": "10.88.0.1:5000/app@sha256:7bebe59d7963d5e96a7d064f8ae710fa59eb7af477899b9d7bc38ec6420c382a",
   "args": [
    "sh",
    "-c",
    "echo up; sleep 1000"
   ],
   "cwd": "/srv",
   "env": [
    "PATH=/bin",
],
   "cwd": "/",
   "env": [
    "PATH=/bin"
   ],
   "users": [
    {
     "uid": 0,
     "gid": 0,
     "groups": [
      0
     ]
    }
   ],
   "memory_limit": 0
  }
 },
 "copies": {
  "config": {
   "files": {
    "key": "cd42a",
   "args": [
    "sh",
    "-c",
    "efbcbf724118320619"
   }
  }
 }
}
