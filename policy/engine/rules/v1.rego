package agent_policy

import rego.v1

default CreateSandboxRequest := false
