package agent_policy
import future.keywords.in
default CreateContainerRequest := false
CreateContainerRequest := {"ops": ops, "allowed": true} {
  not data.pstate.n
  ops := [{"op":"add","path":"/pstate/n","value":input.container_id}]
}
