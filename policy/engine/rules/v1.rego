# Nacre's rules, version 1: what the host may ask of the agent, given what the owner wrote about the pod.
#
# data.nacre.policy   the owner's document (policy_data, docs/policy.md)
# data.nacre.runtime  what the named container runtimes add to specifications
# data.nacre.init     names of the init containers that must have ended before the others
# input.nacre.state   what has been carried out in this guest so far
# input.nacre.image_user   true: this guest's agent asks ImageUserRequest
#
# How this is written. A rule with a request's name allows it: a conjunction of facts that must hold
# (`..._ok`), so that whatever is missing or of another type denies. Rules with `_problems` only explain
# a denial; they decide nothing. A container is found by its name, never by trying each. Alternatives are
# written with `else`: several rules of one name would all be evaluated.
package agent_policy

import rego.v1

policy := data.nacre.policy

runtime := data.nacre.runtime

state := input.nacre.state

grants := object.get(policy, "allow", {})

granted(name) if grants[name] == true

containers_root := "/run/kata-containers/"

copy_root := "/run/kata-containers/shared/containers/"

shm := "/run/kata-containers/sandbox/shm"

ephemeral_volumes := "/run/kata-containers/sandbox/ephemeral/"

local_volumes := "/run/kata-containers/sandbox/local/"

block_volumes := "/run/kata-containers/sandbox/volumes/"

#
# The pod
#

default CreateSandboxRequest := false

CreateSandboxRequest if {
	sandbox_first_ok
	sandbox_plain_ok
	sandbox_hostname_ok
	sandbox_storages_ok
	sandbox_dns_ok
}

sandbox_first_ok if state.sandbox == null

sandbox_plain_ok if {
	input.kernel_modules == []
	input.guest_hook_path == ""
	regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`, input.sandbox_id)
}

sandbox_hostname_ok if hostname_matches(input.hostname)

sandbox_storages_ok if {
	count(input.storages) == 1
	storage := input.storages[0]
	storage.driver == "ephemeral"
	storage.fstype == "tmpfs"
	storage.mount_point == shm
	storage.fs_group == null
	every option in storage.options {
		regex.match(`^(noexec|nosuid|nodev|mode=1777|size=[0-9]{1,12})$`, option)
	}
}

sandbox_dns_ok if {
	count(input.dns) <= 64
	every line in input.dns {
		regex.match(`^([#;].*|(nameserver|search|domain|options|sortlist)[ \t][^\n\r]*)$`, line)
	}
}

CreateSandboxRequest_problems contains {
	"field": "sandbox_id", "expected": "one sandbox", "got": input.sandbox_id,
	"fix": "this VM has its pod already",
} if {
	not sandbox_first_ok
}

CreateSandboxRequest_problems contains {
	"field": "hostname", "expected": expected_hostname, "got": input.hostname, "key": "hostname",
} if {
	not sandbox_hostname_ok
}

CreateSandboxRequest_problems contains {"field": "storages", "got": input.storages} if {
	not sandbox_storages_ok
}

CreateSandboxRequest_problems contains {"field": "dns", "got": input.dns} if not sandbox_dns_ok

CreateSandboxRequest_problems contains {
	"field": "sandbox_id, kernel_modules, guest_hook_path",
	"expected": "a plain identifier, no modules, no hooks",
	"got": [input.sandbox_id, input.kernel_modules, input.guest_hook_path],
} if {
	not sandbox_plain_ok
}

pod_name_matches(name) if {
	name == policy.pod.name
} else if {
	prefix := policy.pod.name_prefix
	startswith(name, prefix)
	regex.match(`^[a-z0-9.-]{0,63}$`, trim_prefix(name, prefix))
} else if {
	regex.match(sprintf("^(?:%s)$", [policy.pod.name_pattern]), name)
}

expected_pod_name := object.get(
	policy.pod, "name",
	sprintf("%s...", [object.get(policy.pod, "name_prefix", object.get(policy.pod, "name_pattern", "?"))]),
)

expected_hostname := object.get(policy.pod, "hostname", expected_pod_name)

hostname_matches(name) if {
	name == policy.pod.hostname
} else if {
	regex.match(sprintf("^(?:%s)$", [policy.pod.hostname_pattern]), name)
} else if {
	# The kubelet cuts a pod's name to what Linux takes for a host.
	not policy.pod.hostname
	not policy.pod.hostname_pattern
	pod_name_matches(name)
} else if {
	not policy.pod.hostname
	not policy.pod.hostname_pattern
	count(name) >= 60
	startswith(object.get(policy.pod, "name", object.get(policy.pod, "name_prefix", "")), name)
}

default DestroySandboxRequest := true

default GuestDetailsRequest := true

default OnlineCPUMemRequest := true

default GetOOMEventRequest := true

# What the host sends is mixed in, and not believed to be random.
default ReseedRandomDevRequest := true

# The agent's own size; nothing of the workload.
default GetMetricsRequest := true

default GetDiagnosticDataRequest := false

# Durations, how far a pull has come, and in development images recorded requests.
GetDiagnosticDataRequest if {
	input.log_type in {"nacre.start", "nacre.pulls", "nacre.requests"}
} else if {
	input.log_type == "nacre.termination"
	termination_ended_ok
	termination_file_ok
	termination_granted_ok
}

# A container's last words: the owner's manifest names the file, and Kubernetes shows it in the pod's status.
termination_ended_ok if {
	state.containers[input.container_id].pod == false
	state.containers[input.container_id].phase == "exited"
}

termination_file_ok if {
	owner := policy.containers[state.containers[input.container_id].name]
	input.path == termination_log(owner)
}

termination_log(container) := object.get(container, "termination_log", "/dev/termination-log")

termination_granted_ok if object.get(grants, "termination_message", true) == true

GetDiagnosticDataRequest_problems contains {
	"field": "container_id", "expected": "a container that has ended", "got": input.container_id,
} if {
	input.log_type == "nacre.termination"
	not termination_ended_ok
}

GetDiagnosticDataRequest_problems contains {
	"field": "path", "expected": "the container's terminationMessagePath", "got": input.path,
	"key": "termination_log",
} if {
	input.log_type == "nacre.termination"
	termination_ended_ok
	not termination_file_ok
}

GetDiagnosticDataRequest_problems contains {
	"field": "log_type", "got": input.log_type,
	"fix": "the host may not read termination messages; the setting allow.termination_message would permit it",
} if {
	input.log_type == "nacre.termination"
	not termination_granted_ok
}

default SetGuestDateTimeRequest := false

SetGuestDateTimeRequest if granted("set_time")

SetGuestDateTimeRequest_problems contains {
	"field": "Sec", "got": input.Sec,
	"fix": "the host may not set the guest's clock; the setting allow.set_time would permit it",
} if {
	not granted("set_time")
}

#
# The network: the host's to give, until the first application container exists.
#

default UpdateInterfaceRequest := false

UpdateInterfaceRequest if {
	network_open_ok
	interface_ok
}

network_open_ok if state.sealed == false

interface_ok if {
	interface := input.interface
	interface_name_ok(interface.name)
	interface_name_ok(interface.device)
	regex.match(`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`, interface.hwAddr)
	interface.hwAddr != "00:00:00:00:00:00"
	bits.and(interface.raw_flags, 4294967167) == 0 # nothing but IFF_NOARP
	every address in interface.IPAddresses {
		host_address_ok(address.address)
	}
}

interface_name_ok(name) if {
	name != "lo"
	regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`, name)
}

# Addresses that are not for the network: their use would take over what only the guest itself is.
own_address_ranges := [
	"127.0.0.0/8", "0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "169.254.169.254/32",
	"::/127", "ff00::/8", "::ffff:0:0/96",
]

host_address_ok(address) if {
	some all in ["0.0.0.0/0", "::/0"]
	net.cidr_contains(all, address)
	every range in own_address_ranges {
		not net.cidr_contains(range, address)
	}
}

network_problem := {
	"field": "network", "expected": "changes before the first container is created",
	"got": "a change afterwards", "fix": "the network of a running pod is fixed",
}

UpdateInterfaceRequest_problems contains network_problem if not network_open_ok

UpdateInterfaceRequest_problems contains {
	"field": "interface", "expected": "an interface of the pod with addresses of its network",
	"got": {
		"name": input.interface.name, "hwAddr": input.interface.hwAddr,
		"addresses": [a.address | some a in input.interface.IPAddresses],
	},
} if {
	not interface_ok
}

default UpdateRoutesRequest := false

UpdateRoutesRequest if {
	network_open_ok
	every route in input.routes.Routes {
		route_ok(route)
	}
}

route_ok(route) if {
	interface_name_ok(route.device)
	every part in [route.gateway, route.source] {
		empty_or_host_address(part)
	}
	destination_ok(route.dest)
}

empty_or_host_address(address) if {
	address == ""
} else if {
	host_address_ok(address)
}

destination_ok(destination) if destination in {"", "default", "0.0.0.0/0", "::/0"}

destination_ok(destination) if {
	not contains(destination, "/")
	host_address_ok(destination)
} else if {
	# Multicast has routes; loopback has not.
	contains(destination, "/")
	some all in ["0.0.0.0/0", "::/0"]
	net.cidr_contains(all, split(destination, "/")[0])
	every range in ["127.0.0.0/8", "::1/128"] {
		not net.cidr_contains(range, split(destination, "/")[0])
		not net.cidr_contains(destination, split(range, "/")[0])
	}
}

UpdateRoutesRequest_problems contains network_problem if not network_open_ok

UpdateRoutesRequest_problems contains {
	"field": sprintf("routes.Routes[%d]", [index]),
	"expected": "a route of the pod's network, not over loopback",
	"got": {"dest": route.dest, "gateway": route.gateway, "source": route.source, "device": route.device},
} if {
	some index, route in input.routes.Routes
	not route_ok(route)
}

default AddARPNeighborsRequest := false

AddARPNeighborsRequest if {
	network_open_ok
	every neighbour in input.neighbors.ARPNeighbors {
		neighbour_ok(neighbour)
	}
}

neighbour_ok(neighbour) if {
	interface_name_ok(neighbour.device)
	host_address_ok(neighbour.toIPAddress.address)
}

AddARPNeighborsRequest_problems contains network_problem if not network_open_ok

AddARPNeighborsRequest_problems contains {
	"field": sprintf("neighbors.ARPNeighbors[%d]", [index]),
	"got": {"device": neighbour.device, "lladdr": neighbour.lladdr},
} if {
	some index, neighbour in input.neighbors.ARPNeighbors
	not neighbour_ok(neighbour)
}

#
# Files that the host copies into the guest
#

default CopyFileRequest := false

CopyFileRequest if {
	copy_path_ok
	copy_new_ok
	copy_name_ok
	copy_kind_ok
	copy_content_ok
}

copy_parts := split(trim_prefix(input.path, copy_root), "/")

# <container>-<16 hexadecimal digits>-<name>
copy_top := regex.find_all_string_submatch_n(
	`^([A-Za-z0-9][A-Za-z0-9_.-]{0,127}?)-([0-9a-f]{16})-([A-Za-z0-9._-]{1,80})$`,
	copy_parts[0], 1,
)[0]

copy_name := copy_top[3]

copy_path_ok if {
	startswith(input.path, copy_root)
	count(copy_parts) <= 33
	count(input.path) <= 4096
	every part in copy_parts {
		not part in {"", ".", ".."}
	}
	copy_top
}

# What a container has been given stays as it is, but for volumes of which the owner lets the files change.
# Those change as the kubelet's do: a directory ..NAME with the new files, then the link ..data to it, and
# links to files that came. The agent holds to the same, and removes what is old by itself.
copy_new_ok if {
	not state.containers[copy_top[1]]
} else if {
	copy_update_mount_ok
	copy_update_kind_ok
}

copy_update_mount_ok if {
	owner := state.containers[copy_top[1]]
	owner.pod == false
	some mount in policy.containers[owner.name].mounts
	mount.updates == true
	copy_is_of(mount)
}

copy_is_of(mount) if {
	copy_name == mount.source
} else if {
	regex.match(sprintf("^(?:%s)$", [mount.source_pattern]), copy_name)
}

copy_update_kind_ok if {
	input.file_type == "Directory"
	generation(copy_parts[1])
} else if {
	input.file_type == "Regular"
	count(copy_parts) > 2
	generation(copy_parts[1])
} else if {
	input.file_type == "Symlink"
	count(copy_parts) == 2
	copy_parts[1] == "..data"
	generation(input.symlink_target)
} else if {
	input.file_type == "Symlink"
	count(copy_parts) == 2
	not startswith(copy_parts[1], "..")
	input.symlink_target == sprintf("..data/%s", [copy_parts[1]])
}

generation(directory) if {
	regex.match(`^\.\.[0-9A-Za-z_.-]{1,64}$`, directory)
	directory != "..data"
}

copy_name_ok if {
	copy_name in copy_names
} else if {
	some pattern in copy_patterns
	regex.match(sprintf("^(?:%s)$", [pattern]), copy_name)
}

copy_names contains source if {
	some container in policy.containers
	some mount in container.mounts
	source := mount.source
}

copy_patterns contains pattern if {
	some container in policy.containers
	some mount in container.mounts
	pattern := mount.source_pattern
}

copy_patterns contains pattern if {
	some known_mount in runtime.mounts
	pattern := known_mount.copy
}

copy_kind_ok if {
	input.file_type in {"Regular", "Directory"}
	copy_numbers_ok
} else if {
	input.file_type == "Symlink"
	not startswith(input.symlink_target, "/")
	not ".." in split(input.symlink_target, "/")
	copy_numbers_ok
}

copy_numbers_ok if {
	input.file_size >= 0
	input.offset >= 0
	input.uid >= 0
	input.gid >= 0
	bits.and(input.file_mode, 3072) == 0 # neither set-user-ID nor set-group-ID
} else if {
	input.file_type == "Directory"
	input.uid >= 0
	input.gid >= 0
	bits.and(input.file_mode, 2048) == 0
}

# Volumes whose content stands in the owner's YAML: nothing else may be in them, except in those that
# also have files which the cluster makes (`open`).
copy_verified if policy.copies[copy_name]

copy_verified if count(copy_sub_paths) > 0

# Kubernetes keeps a volume's files in a directory of their own (..2026_11_22_...), to which the link
# ..data points, and a link for each file.
copy_key := concat("/", [part |
	some index, part in copy_parts
	index > 0
	not startswith(part, "..")
])

# Digests that a regular file of this path may have.
copy_digests contains digest if digest := policy.copies[copy_name].files[copy_key]

copy_digests contains digest if {
	some place in copy_sub_paths
	digest := policy.copies[place[0]].files[place[1]]
}

# Where mounts of a part of a volume (subPath) take this file from: [volume, path within it]. Their copies are
# named by container and number of the mount, so that there is one, and its contents are no other's.
copy_sub_paths contains [mount.volume, concat("/", [part | some part in [mount.sub_path, copy_key]; part != ""])] if {
	some container in policy.containers
	some mount in container.mounts
	mount.source == copy_name
	policy.copies[mount.volume]
}

copy_content_ok if {
	not copy_verified
} else if {
	copy_verified
	input.file_type == "Directory"
} else if {
	copy_verified
	input.file_type == "Regular"
	input.sha256 in copy_digests
} else if {
	policy.copies[copy_name].open == true
	input.file_type == "Regular"
	not policy.copies[copy_name].files[copy_key]
} else if {
	policy.copies[copy_name]
	input.file_type == "Symlink"
	copy_parts[count(copy_parts) - 1] == "..data"
	regex.match(`^\.\.[0-9A-Za-z_.]+$`, input.symlink_target)
} else if {
	policy.copies[copy_name]
	input.file_type == "Symlink"
	count(copy_parts) == 2
	input.symlink_target == sprintf("..data/%s", [copy_parts[1]])
}

CopyFileRequest_problems contains {
	"field": "path", "expected": sprintf("%s<container>-<16 hexadecimal digits>-<volume>/...", [copy_root]),
	"got": input.path,
} if {
	not copy_path_ok
}

CopyFileRequest_problems contains {
	"field": "path",
	"expected": "a file of a container that is still to be created, or new files of a volume that may change",
	"got": input.path, "fix": "setting volume_updates",
} if {
	copy_path_ok
	not copy_new_ok
}

CopyFileRequest_problems contains {
	"field": "path", "expected": "a volume of the pod", "got": copy_name,
	"fix": "no container of the policy mounts it",
} if {
	copy_path_ok
	not copy_name_ok
}

CopyFileRequest_problems contains {
	"field": "file_type", "expected": "a regular file, a directory or a link within the volume",
	"got": [input.file_type, input.symlink_target, input.file_mode, input.uid, input.gid],
} if {
	not copy_kind_ok
}

CopyFileRequest_problems contains {
	"field": "data", "expected": sprintf("the content of %s in the policy's source", [copy_key]),
	"got": "other content, or a file in several pieces",
	"fix": sprintf("volume %s: write the policy again when its ConfigMap or Secret changes", [copy_name]),
} if {
	copy_path_ok
	not copy_content_ok
}

#
# Creating a container
#

spec := input.OCI

process := input.OCI.Process

linux := input.OCI.Linux

annotations := input.OCI.Annotations

container_type := annotations["io.kubernetes.cri.container-type"]

# While a denial is explained, the container is compared with others.
name := input.nacre.assume

name := annotations["io.kubernetes.cri.container-name"] if not input.nacre.assume

expected := policy.containers[name]

root_path := sprintf("%s%s/rootfs", [containers_root, input.container_id])

default CreateContainerRequest := false

CreateContainerRequest if {
	container_type == "container"
	expected
	order_ok
	identity_ok
	image_ok
	volumes_ok
	args_ok
	cwd_ok
	env_ok(expected, process.Env)
	user_ok(process.User)
	capabilities_ok(process.Capabilities)
	privileges_ok
	terminal_ok
	mounts_ok
	limits_ok
	confinement_ok
	namespaces_ok
	sysctls_ok
	root_ok
	plain_ok
}

# The pod's own container: the guest runs its own program, whatever the host's sandbox image says.
CreateContainerRequest if {
	container_type == "sandbox"
	pod_container_ok
	identity_ok
	capabilities_in(process.Capabilities, runtime.capabilities)
	process.Terminal == false
	every mount in spec.Mounts {
		runtime_mount_ok(mount)
	}
	limits_none_ok
	device_rules_ok
	seccomp_plain_ok
	namespaces_ok
	sysctls_ok
	plain_ok
}

pod_container_ok if {
	state.sandbox == input.container_id
	count(state.containers) == 0
	storage_is("pause")
	count(input.storages) == 1
	process.User
}

# Sandbox first, init containers before the others, each once at a time.
order_ok if {
	plain_id_ok
	state.sandbox != null
	state.sandbox == annotations["io.kubernetes.cri.sandbox-id"]
	not state.live[name]
	not ended_for_good
	init_done_ok
}

# An identifier cannot be taken for the beginning of another container's copied file.
plain_id_ok if not regex.match(`-[0-9a-f]{16}(-|$)`, input.container_id)

ended_for_good if {
	expected.restartable == false
	state.ended[name]
}

init_done_ok if {
	expected.init == true
} else if {
	expected.sidecar == true
} else if {
	every init in data.nacre.init {
		init_ran(init)
	}
}

init_ran(init) if {
	state.ended[init]
} else if {
	policy.containers[init].sidecar == true
	state.live[init] in {"created", "running"}
}

identity_ok if {
	namespace_ok
	pod_name_ok
	unknown_annotations == set()
	hostname_in_spec_ok
}

namespace_ok if {
	namespace := annotations["io.kubernetes.cri.sandbox-namespace"]
	namespace == object.get(policy.pod, "namespace", namespace)
	state.namespace in {"", namespace}
}

pod_name_ok if {
	pod_name_matches(annotations["io.kubernetes.cri.sandbox-name"])
	state.pod_name in {"", annotations["io.kubernetes.cri.sandbox-name"]}
}

known_annotations := {key | some key in runtime.annotations}

unknown_annotations := {key |
	some key in object.keys(annotations) - known_annotations
	not annotation_granted(key)
}

annotation_granted(key) if {
	some prefix in array.concat(runtime.annotation_prefixes, object.get(grants, "annotations", []))
	startswith(key, trim_suffix(prefix, "*"))
}

hostname_in_spec_ok if {
	spec.Hostname == ""
} else if {
	hostname_matches(spec.Hostname)
}

storage_is(source) if {
	storage := image_storage
	storage.source == source
}

image_storage := input.storages[0] if {
	input.storages[0].driver == "image_guest_pull"
	input.storages[0].mount_point == root_path
	input.storages[0].options == []
	input.storages[0].fs_group == null
	input.storages[0].shared == false
}

image_ok if {
	image_storage.source == expected.image
} else if {
	image_storage.source == expected.image_tag
} else if {
	# name:tag@digest is the same image as name@digest, and busybox the same as docker.io/library/busybox.
	[wanted, digest] := split(expected.image, "@")
	[written, digest] = split(image_storage.source, "@")
	same_image_name(wanted, full_image_name(written))
}

same_image_name(wanted, got) if {
	wanted == got
} else if {
	startswith(got, sprintf("%s:", [wanted]))
	not contains(trim_prefix(got, sprintf("%s:", [wanted])), "/")
}

full_image_name(name) := name if names_registry(name)

full_image_name(name) := sprintf("docker.io/library/%s", [name]) if not contains(name, "/")

full_image_name(name) := sprintf("docker.io/%s", [name]) if {
	contains(name, "/")
	not names_registry(name)
}

names_registry(name) if {
	contains(name, "/")
	regex.match(`[.:]|^localhost$`, split(name, "/")[0])
}

args_ok if {
	process.Args == expected.args
} else if {
	# An argument may be an object with a pattern: it holds a part that is decided at run time.
	count(process.Args) == count(expected.args)
	every index, wanted in expected.args {
		arg_matches(wanted, process.Args[index])
	}
}

arg_matches(wanted, arg) if {
	wanted == arg
} else if {
	regex.match(sprintf("^(?:%s)$", [wanted.pattern]), arg)
}

cwd_ok if process.Cwd == expected.cwd

# All that the policy lists, nothing that it does not, no name twice.
env_ok(container, env) if {
	actual := {entry | some entry in env}
	wanted := {entry | some entry in container.env}
	wanted - actual == set()
	count({split(entry, "=")[0] | some entry in actual}) == count(env)
	added := (actual - wanted) - runtime_env
	every entry in added - service_entries(container, added) {
		env_entry_ok(container, entry)
	}
	every variable, _ in object.get(container, "env_from_pod", {}) {
		some entry in env
		startswith(entry, sprintf("%s=", [variable]))
	}
}

runtime_env := {entry | some entry in runtime.env} | known_hostname

default known_hostname := set()

known_hostname := {sprintf("HOSTNAME=%s", [object.get(policy.pod, "hostname", policy.pod.name)])} if {
	not policy.pod.hostname_pattern
}

env_entry_ok(container, entry) if {
	kind := container.env_from_pod[split(entry, "=")[0]]
	run_time_value_ok(kind, substring(entry, indexof(entry, "=") + 1, -1))
} else if {
	startswith(entry, "HOSTNAME=")
	hostname_matches(trim_prefix(entry, "HOSTNAME="))
} else if {
	some variable, pattern in object.get(container, "env_pattern", {})
	startswith(entry, sprintf("%s=", [variable]))
	regex.match(sprintf("^(?:%s)$", [pattern]), substring(entry, count(variable) + 1, -1))
}

# Variables that the kubelet adds for services.
service_entries(container, env) := {entry |
	pattern := service_patterns[object.get(container, "service_env", "kubernetes")]
	some entry in env
	regex.match(pattern, entry)
}

service_patterns := {
	"all": `^[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)=((tcp|udp|sctp)(://[0-9a-fA-F.:\[\]]+)?|[0-9a-fA-F.:]*)$`,
	"kubernetes": `^KUBERNETES_(SERVICE_HOST|SERVICE_PORT(_HTTPS)?|PORT(_[0-9]+_TCP(_PROTO|_PORT|_ADDR)?)?)=(tcp(://[0-9a-fA-F.:\[\]]+)?|[0-9a-fA-F.:]+)$`,
}

run_time_value_ok(kind, value) if {
	kind in {"ip", "host_ip"}
	regex.match(`^[0-9a-fA-F.:]{2,45}$`, value)
}

run_time_value_ok(kind, value) if {
	kind in {"ips", "host_ips"}
	regex.match(`^[0-9a-fA-F.:]{2,45}(,[0-9a-fA-F.:]{2,45}){0,3}$`, value)
}

run_time_value_ok("node_name", value) if regex.match(`^[a-z0-9]([a-z0-9.-]{0,252})$`, value)

# The pod's own container has told both.
run_time_value_ok("pod_name", value) if value == state.pod_name

run_time_value_ok("namespace", value) if value == state.namespace

run_time_value_ok("uid", value) if {
	regex.match(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, value)
}

run_time_value_ok("service_account", value) if regex.match(`^[a-z0-9][a-z0-9.-]{0,252}$`, value)

run_time_value_ok("number", value) if regex.match(`^[0-9]{1,20}$`, value)

# What a label may be; an annotation with run-time parts is a pattern of the owner's.
run_time_value_ok("label", value) if regex.match(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`, value)

run_time_value_ok("service_host", value) if regex.match(`^[0-9a-fA-F.:]{2,45}$`, value)

run_time_value_ok("service_port", value) if regex.match(`^[0-9]{1,5}$`, value)

run_time_value_ok("service_url", value) if {
	regex.match(`^(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]{2,60}$`, value)
}

run_time_value_ok("service_protocol", value) if value in {"tcp", "udp", "sctp"}

user_ok(user) if {
	user.Username == ""
	groups := {group | some group in user.AdditionalGids}
	some candidate in expected.users
	candidate.uid == user.UID
	candidate.gid == user.GID
	{group | some group in candidate.groups} == groups
} else if {
	stands_for_image_user(user)
}

# Numbers that the node puts where containerd has a name and the node not the image's files. The agent looks
# the name up in the image that it has verified, and asks again (ImageUserRequest) before anything runs. One
# that does not say so may be older than that question, where a document brings these rules along.
image_user_markers := {2147438147, 2147438148, 2147438149}

stands_for_image_user(user) if {
	input.nacre.image_user == true
	user.Username == ""
	numbers := {user.UID, user.GID} | {group | some group in user.AdditionalGids}
	numbers & image_user_markers != set()
}

allowed_capabilities := [expected.capabilities] if expected.capabilities

allowed_capabilities := runtime.capabilities if not expected.capabilities

capabilities_ok(capabilities) if capabilities_in(capabilities, allowed_capabilities)

capabilities_in(capabilities, allowed) if {
	capabilities.Inheritable == []
	capabilities.Ambient == []
	bounding := {capability | some capability in capabilities.Bounding}
	capabilities.Effective == capabilities.Bounding
	capabilities.Permitted == capabilities.Bounding
	some list in allowed
	{capability | some capability in list} == bounding
}

privileges_ok if process.NoNewPrivileges == object.get(expected, "no_new_privileges", false)

terminal_ok if process.Terminal == object.get(expected, "terminal", false)

#
# Volumes that the pod's containers share, made by the guest: all storages but the image.
#

volumes_ok if {
	volumes := array.slice(input.storages, 1, count(input.storages))
	count({storage.mount_point | some storage in volumes}) == count(volumes)
	every storage in volumes {
		volume_ok(storage)
	}
}

# An empty directory, of the kind that the owner chose. A bound that the host makes smaller ends in errors of
# the workload, one that it makes larger in those of the VM's memory.
volume_ok(storage) if {
	some mount in expected.mounts
	mount.kind == "empty_dir"
	storage.mount_point == empty_dir_place(mount)
	empty_dir_type_ok(storage, mount)
	storage.driver_options == []
	storage.fs_group == null
	storage.shared == false
}

# A disk with the file system of a claim. What is on it, and under which key, the guest has from its owner
# (volumes.toml in the initdata), not from this request.
volume_ok(storage) if {
	storage.driver == "blk"
	regex.match(`^nacre-volume-[0-7]$`, storage.source)
	storage.mount_point == concat("", [block_volumes, storage.source])
	storage.fstype == "ext4"
	storage.options in [[], ["ro"]]
	storage.driver_options == []
	storage.fs_group == null
	storage.shared == false
	some mount in spec.Mounts
	mount.source == storage.mount_point
	expected.mounts[mount.destination].kind == "claim"
}

empty_dir_type_ok(storage, mount) if {
	mount.memory == true
	[storage.driver, storage.fstype, storage.source] == ["ephemeral", "tmpfs", "tmpfs"]
	every option in storage.options {
		regex.match(`^(mode=[0-3]?[0-7]{3}|gid=[0-9]{1,10}|size=[0-9]{1,15})$`, option)
	}
} else if {
	object.get(mount, "memory", false) == false
	[storage.driver, storage.fstype, storage.source] == ["local", "local", "local"]
	every option in storage.options {
		regex.match(`^(mode=[0-3]?[0-7]{3}|gid=[0-9]{1,10})$`, option)
	}
}

empty_dir_place(mount) := concat("", [ephemeral_volumes, mount.volume]) if mount.memory == true

empty_dir_place(mount) := concat("", [local_volumes, mount.volume]) if {
	object.get(mount, "memory", false) == false
}

empty_dir_source_ok(source, wanted) if {
	wanted.sub_path
	source == concat("/", [empty_dir_place(wanted), wanted.sub_path])
} else if {
	place := concat("", [empty_dir_place(wanted), "/"])
	startswith(source, place)
	regex.match(sprintf("^(?:%s)$", [wanted.sub_path_pattern]), trim_prefix(source, place))
} else if {
	not wanted.sub_path
	not wanted.sub_path_pattern
	source == empty_dir_place(wanted)
}

CreateContainerRequest_problems contains {
	"field": "storages",
	"expected": "the image, then the pod's empty directories and the disks of its claims, each once",
	"got": [[storage.driver, storage.mount_point, storage.options] | some storage in input.storages],
	"key": "mounts",
} if {
	expected
	not volumes_ok
}

#
# Mounts: by destination. The guest mounts parents before children, whatever order they come in.
#

mounts_ok if {
	destinations := {mount.destination | some mount in spec.Mounts}
	count(destinations) == count(spec.Mounts)
	required_mounts - destinations == set()
	every mount in unusual_mounts {
		mount_ok(mount)
	}
}

# What is left when the runtimes' own mounts, which are most, are taken away at once.
unusual_mounts := [mount |
	some mount in spec.Mounts
	not mount.destination in usual_destinations
	not [mount.destination, mount.type_, copied_name(mount.source), mount.options] in usual_copies
]

usual_copies := {[destination, "bind", mount.source, options] |
	some destination, mount in expected.mounts
	some options in runtime.bind_options[bind_mode(mount)]
} | {entry |
	some entry in data.nacre.usual_copies
	not expected.mounts[entry[0]]
}

usual_destinations := {entry[0] | some entry in all_mounts & data.nacre.usual_mounts} -
	object.keys(object.get(expected, "mounts", {}))

all_mounts := {[mount.destination, mount.type_, mount.source, mount.options] |
	some mount in spec.Mounts
}

# A service-account token may be switched off by its account.
required_mounts := {destination |
	some destination, mount in object.get(expected, "mounts", {})
	object.get(mount, "kind", "") != "token"
}

mount_ok(mount) if {
	not expected.mounts[mount.destination]
	runtime_mount_ok(mount)
} else if {
	# Kubernetes' file for last words, in another place than the usual one.
	not expected.mounts[mount.destination]
	mount.destination == expected.termination_log
	known := runtime.mounts["/dev/termination-log"]
	[mount.type_, mount.options] in known.copied
	copied_as(mount.source, known.copy)
} else if {
	wanted := expected.mounts[mount.destination]
	mount.type_ == "bind"
	mount.options in runtime.bind_options[bind_mode(wanted)]
	bind_source_ok(mount.source, wanted)
}

bind_source_ok(source, wanted) if {
	wanted.kind == "empty_dir"
	empty_dir_source_ok(source, wanted)
} else if {
	not wanted.kind == "empty_dir"
	source_ok(source, wanted)
}

bind_mode(wanted) := "ro" if object.get(wanted, "read_only", false) == true

bind_mode(wanted) := "rw" if object.get(wanted, "read_only", false) == false

# [type, source, options], exactly one of the known ones.
runtime_mount_ok(mount) if {
	[mount.type_, mount.source, mount.options] in runtime.mounts[mount.destination].forms
} else if {
	# A file that the runtime made for the pod and the host has copied.
	known := runtime.mounts[mount.destination]
	[mount.type_, mount.options] in known.copied
	copied_as(mount.source, known.copy)
}

source_ok(source, wanted) if {
	copied_name(source) == wanted.source
} else if {
	copied_as(source, wanted.source_pattern)
} else if {
	# The whole of a disk that is one of the request's volumes; never where the owner shows a part of it.
	wanted.kind == "claim"
	not wanted.source
	some storage in input.storages
	[storage.driver, storage.mount_point] == ["blk", source]
}

copied_as(source, pattern) if regex.match(sprintf("^(?:%s)$", [pattern]), copied_name(source))

own_copies := sprintf("%s%s-", [copy_root, input.container_id])

# The container's own copies only, and the whole of one.
copied_name(source) := substring(rest, 17, -1) if {
	startswith(source, own_copies)
	rest := trim_prefix(source, own_copies)
	regex.match(`^[0-9a-f]{16}-[A-Za-z0-9._-]{1,80}$`, rest)
}

#
# Limits and confinement
#

resources := linux.Resources

limits_ok if {
	memory_ok
	cpu_ok
	other_limits_ok
	device_rules_ok
}

limits_none_ok if other_limits_ok

memory_ok if {
	memory := resources.Memory
	memory.Limit == object.get(expected, "memory_limit", 0)
	memory.Swap in {0, memory.Limit}
	[memory.Reservation, memory.Kernel, memory.KernelTCP] == [0, 0, 0]
	memory.DisableOOMKiller == false
} else if {
	resources.Memory == null
	not expected.memory_limit
}

cpu_ok if {
	cpu := resources.CPU
	cpu.Quota in {object.get(expected, "cpu_quota", 0), object.get(expected, "cpu_quota", -1)}
	cpu.Period in {object.get(expected, "cpu_period", 0), object.get(expected, "cpu_period", 100000)}
	cpu.Shares in {object.get(expected, "cpu_shares", 0), object.get(expected, "cpu_shares", 2)}
	[cpu.RealtimeRuntime, cpu.RealtimePeriod] == [0, 0]
} else if {
	resources.CPU == null
	not expected.cpu_quota
}

other_limits_ok if {
	resources.BlockIO in {null, {
		"Weight": 0, "LeafWeight": 0, "WeightDevice": [], "ThrottleReadBpsDevice": [],
		"ThrottleWriteBpsDevice": [], "ThrottleReadIOPSDevice": [], "ThrottleWriteIOPSDevice": [],
	}}
	resources.Network == null
	every limit in resources.HugepageLimits {
		limit.Limit == 0
	}
	every limit in process.Rlimits {
		limit in runtime.rlimits
	}
	process.OOMScoreAdj >= -998
	process.OOMScoreAdj <= 1000
}

device_rules_ok if resources.Devices in runtime.device_rules

confinement_ok if {
	masked_ok
	seccomp_ok
}

masked_ok if {
	expected.unmasked == true
} else if {
	{path | some path in runtime.min_masked_paths} - {path | some path in linux.MaskedPaths} == set()
	{path | some path in runtime.min_readonly_paths} - {path | some path in linux.ReadonlyPaths} == set()
}

seccomp_ok if {
	object.get(expected, "seccomp", "unconfined") == "unconfined"
	linux.Seccomp == null
} else if {
	object.get(expected, "seccomp", "unconfined") == "runtime"
	seccomp_filter_ok
}

seccomp_plain_ok if {
	linux.Seccomp == null
} else if {
	seccomp_filter_ok
}

# A filter can forbid, and say so; one that pretends success would change what programs do.
seccomp_filter_ok if {
	linux.Seccomp.DefaultAction == "SCMP_ACT_ERRNO"
	every call in linux.Seccomp.Syscalls {
		call_ok(call)
	}
}

call_ok(call) if {
	call.Action == "SCMP_ACT_ALLOW"
} else if {
	call.Action == "SCMP_ACT_ERRNO"
	call.errnoret in {0, 1, 38} # the default, EPERM and ENOSYS
}

namespaces_ok if {
	{namespace.Type | some namespace in linux.Namespaces} == {"ipc", "mount", "pid", "uts"}
	every namespace in linux.Namespaces {
		namespace.Path == ""
	}
	input.sandbox_pidns == shares_processes
}

shares_processes if {
	container_type == "container"
	policy.pod.shared_pid == true
} else := false

sysctls_ok if {
	allowed := object.union(runtime.sysctls, object.get(policy.pod, "sysctls", {}))
	every key, value in linux.Sysctl {
		allowed[key] == value
	}
	sysctls_there_ok
}

sysctls_there_ok if {
	container_type == "container"
} else if {
	every key, value in object.get(policy.pod, "sysctls", {}) {
		linux.Sysctl[key] == value
	}
}

root_ok if {
	spec.Root.Path == root_path
	spec.Root.Readonly == object.get(expected, "readonly_root", false)
}

# What no pod has.
plain_ok if {
	spec.Version in runtime.oci_versions
	input.exec_id in {"", input.container_id}
	input.string_user == null
	devices_ok
	input.shared_mounts == []
	[input.stdin_port, input.stdout_port, input.stderr_port] == [0, 0, 0]
	[spec.Hooks, spec.Solaris, spec.Windows, linux.IntelRdt] == [null, null, null, null]
	[linux.UIDMappings, linux.GIDMappings, linux.Devices] == [[], [], []]
	[linux.CgroupsPath, linux.MountLabel] == ["", ""]
	[process.SelinuxLabel, process.ApparmorProfile] == ["", ""]
	linux.RootfsPropagation in {"", "private", "rprivate", "slave", "rslave"}
	spec.Root.Path == root_path
}

# Disks that a container gets as block devices: those of the owner's volumeDevices, all of them.
devices_ok if {
	paths := {device.container_path | some device in input.devices}
	count(paths) == count(input.devices)
	paths == wanted_devices
	every device in input.devices {
		[device.type_, device.vm_path] == ["blk", ""]
		regex.match(`^nacre-volume-[0-7]$`, device.id)
		device.options in [[], ["ro"]]
	}
}

default wanted_devices := set()

wanted_devices := {path | some path in expected.devices} if container_type == "container"

default shown_type := ""

shown_type := container_type

# Explanations. `key` names the line of the container's YAML.

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.container-type]",
	"expected": ["sandbox", "container"], "got": shown_type,
	"fix": "this policy is for pods that a kubelet runs",
} if {
	not container_type in {"sandbox", "container"}
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.container-name]",
	"expected": sort(object.keys(policy.containers)), "got": name,
	"fix": "the policy has no container of this name",
} if {
	container_type == "container"
	not expected
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.container-name]",
	"expected": sort(object.keys(policy.containers)),
	"got": annotations["io.kubernetes.cri.container-name"],
	"fix": "the policy has no container of this name",
} if {
	input.nacre.assume
	not policy.containers[annotations["io.kubernetes.cri.container-name"]]
}

CreateContainerRequest_problems contains {
	"field": "container_id", "expected": "no other running container of this name",
	"got": sprintf("%s is %s", [name, state.live[name]]), "fix": "a container runs once at a time",
} if {
	state.live[name]
}

CreateContainerRequest_problems contains {
	"field": "container_id", "expected": "an identifier without 16 hexadecimal digits between hyphens",
	"got": input.container_id,
} if {
	not plain_id_ok
}

CreateContainerRequest_problems contains {
	"field": "container_id", "expected": "no second run", "got": sprintf("%s has ended before", [name]),
	"fix": "its restartPolicy does not let it run again",
} if {
	ended_for_good
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.sandbox-id]", "expected": state.sandbox,
	"got": object.get(annotations, "io.kubernetes.cri.sandbox-id", ""),
	"fix": "a container belongs to the sandbox that was created before it",
} if {
	container_type == "container"
	not state.sandbox == annotations["io.kubernetes.cri.sandbox-id"]
}

CreateContainerRequest_problems contains {
	"field": "container_id", "expected": sprintf("after init container %s has run", [init]),
	"got": input.container_id, "fix": "init containers run first",
} if {
	container_type == "container"
	expected
	not init_done_ok
	some init in data.nacre.init
	not init_ran(init)
}

CreateContainerRequest_problems contains {
	"field": "container_id", "expected": "the sandbox's own container, once and first",
	"got": input.container_id,
} if {
	container_type == "sandbox"
	not pod_container_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.sandbox-namespace]",
	"expected": object.get(policy.pod, "namespace", state.namespace),
	"got": object.get(annotations, "io.kubernetes.cri.sandbox-namespace", ""), "key": "namespace",
} if {
	not namespace_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations[io.kubernetes.cri.sandbox-name]", "expected": expected_pod_name,
	"got": object.get(annotations, "io.kubernetes.cri.sandbox-name", ""),
} if {
	not pod_name_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Annotations", "unexpected": unknown_annotations,
	"fix": "setting allow.annotations, or a newer runtime profile",
} if {
	unknown_annotations != set()
}

CreateContainerRequest_problems contains {
	"field": "OCI.Hostname", "expected": expected_hostname, "got": spec.Hostname,
} if {
	not hostname_in_spec_ok
}

CreateContainerRequest_problems contains {
	"field": "storages", "expected": object.get(expected, "image", object.get(expected, "image_tag", "")),
	"got": [storage.source | some storage in input.storages], "key": "image",
} if {
	expected
	not image_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Args", "expected": expected.args, "got": process.Args, "key": "args",
} if {
	not args_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Cwd", "expected": expected.cwd, "got": process.Cwd, "key": "cwd",
} if {
	not cwd_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Env",
	"missing": {entry | some entry in expected.env} - {entry | some entry in process.Env},
	"key": "env",
} if {
	{entry | some entry in expected.env} - {entry | some entry in process.Env} != set()
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Env", "unexpected": unexpected_env(expected, process.Env), "key": "env",
} if {
	unexpected_env(expected, process.Env) != set()
}

unexpected_env(container, env) := {entry |
	given := {e | some e in env}
	some entry in ((given - {e | some e in container.env}) - runtime_env) - service_entries(container, given)
	not env_entry_ok(container, entry)
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Env", "expected": "each variable once", "got": [split(entry, "=")[0] | some entry in process.Env],
} if {
	expected
	count({split(entry, "=")[0] | some entry in process.Env}) != count(process.Env)
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.User", "expected": expected.users, "key": "user",
	"got": {"uid": process.User.UID, "gid": process.User.GID, "groups": process.User.AdditionalGids},
} if {
	not user_ok(process.User)
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Capabilities", "key": "capabilities",
	"missing": {c | some c in allowed_capabilities[0]} - {c | some c in process.Capabilities.Bounding},
	"unexpected": all_capabilities - {c | some c in allowed_capabilities[0]},
} if {
	not capabilities_ok(process.Capabilities)
	all_capabilities != {c | some c in allowed_capabilities[0]}
}

CreateContainerRequest_problems contains {
	"field": sprintf("OCI.Process.Capabilities.%s", [set_name]), "expected": [], "got": found,
	"key": "capabilities",
} if {
	some set_name in ["Ambient", "Inheritable"]
	found := process.Capabilities[set_name]
	found != []
}

all_capabilities := {capability |
	some set_name in ["Bounding", "Effective", "Permitted", "Inheritable", "Ambient"]
	some capability in process.Capabilities[set_name]
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.NoNewPrivileges", "expected": object.get(expected, "no_new_privileges", false),
	"got": process.NoNewPrivileges, "key": "allowPrivilegeEscalation",
} if {
	expected
	not privileges_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Terminal", "expected": object.get(expected, "terminal", false),
	"got": process.Terminal, "key": "tty",
} if {
	expected
	not terminal_ok
}

CreateContainerRequest_problems contains {
	"field": sprintf("OCI.Mounts[%s]", [mount.destination]),
	"expected": object.get(object.get(expected, "mounts", {}), mount.destination, "no such mount"),
	"got": {"type": mount.type_, "source": mount.source, "options": mount.options}, "key": "mounts",
} if {
	container_type == "container"
	some mount in spec.Mounts
	not mount_ok(mount)
}

CreateContainerRequest_problems contains {
	"field": sprintf("OCI.Mounts[%s]", [mount.destination]), "expected": "no such mount",
	"got": {"type": mount.type_, "source": mount.source, "options": mount.options},
} if {
	container_type == "sandbox"
	some mount in spec.Mounts
	not runtime_mount_ok(mount)
}

CreateContainerRequest_problems contains {
	"field": "OCI.Mounts", "missing": missing, "key": "mounts",
} if {
	missing := required_mounts - {mount.destination | some mount in spec.Mounts}
	missing != set()
}

CreateContainerRequest_problems contains {
	"field": "OCI.Mounts", "expected": "each destination once", "got": [mount.destination | some mount in spec.Mounts],
} if {
	expected
	count({mount.destination | some mount in spec.Mounts}) != count(spec.Mounts)
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Resources.Memory", "expected": object.get(expected, "memory_limit", 0),
	"got": resources.Memory, "key": "resources",
} if {
	expected
	not memory_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Resources.CPU",
	"expected": {"Quota": object.get(expected, "cpu_quota", 0), "Shares": object.get(expected, "cpu_shares", 0)},
	"got": resources.CPU, "key": "resources",
} if {
	expected
	not cpu_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Process.Rlimits, OCI.Process.OOMScoreAdj, OCI.Linux.Resources",
	"got": [process.Rlimits, process.OOMScoreAdj, resources.HugepageLimits, resources.BlockIO],
} if {
	not other_limits_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Resources.Devices", "expected": "the runtime's rules for devices",
	"got": resources.Devices,
} if {
	not device_rules_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.MaskedPaths, OCI.Linux.ReadonlyPaths", "key": "procMount",
	"missing": ({path | some path in runtime.min_masked_paths} - {path | some path in linux.MaskedPaths}) |
		({path | some path in runtime.min_readonly_paths} - {path | some path in linux.ReadonlyPaths}),
} if {
	expected
	not masked_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Seccomp", "expected": object.get(expected, "seccomp", "unconfined"),
	"got": seccomp_kind, "key": "seccompProfile",
} if {
	expected
	not seccomp_ok
}

seccomp_kind := "no filter" if linux.Seccomp == null

seccomp_kind := "a filter" if linux.Seccomp != null

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Namespaces", "expected": ["ipc", "mount", "pid", "uts"],
	"got": [[namespace.Type, namespace.Path] | some namespace in linux.Namespaces],
	"fix": sprintf("shared process namespace (sandbox_pidns): %v, in the policy: %v", [input.sandbox_pidns, shares_processes]),
} if {
	not namespaces_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Linux.Sysctl", "expected": object.get(policy.pod, "sysctls", {}), "got": linux.Sysctl,
	"fix": "securityContext.sysctls of the pod",
} if {
	not sysctls_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Root", "expected": {"Path": root_path, "Readonly": object.get(expected, "readonly_root", false)},
	"got": spec.Root, "key": "readOnlyRootFilesystem",
} if {
	expected
	not root_ok
}

CreateContainerRequest_problems contains {
	"field": "OCI.Version", "expected": runtime.oci_versions, "got": spec.Version,
	"fix": "setting runtimes",
} if {
	not spec.Version in runtime.oci_versions
}

CreateContainerRequest_problems contains {
	"field": "devices", "expected": sort([path | some path in wanted_devices]), "got": array.concat(
		[device.container_path | some device in input.devices],
		[device.Path | some device in linux.Devices],
	), "key": "devices",
} if {
	not no_other_devices
}

no_other_devices if {
	devices_ok
	linux.Devices == []
}

CreateContainerRequest_problems contains {
	"field": "hooks, user and id mappings, shared mounts, ports, labels, propagation",
	"expected": "none", "got": "some",
} if {
	spec.Version in runtime.oci_versions
	no_other_devices
	not plain_ok
}

#
# Requests about a container
#

known := state.containers[input.container_id]

# The policy of the container that a request is about; none for the pod's own.
its_policy := policy.containers[known.name] if known.pod == false

first_process if input.exec_id in {"", input.container_id}

default StartContainerRequest := false

StartContainerRequest if known.phase == "created"

StartContainerRequest_problems contains {
	"field": "container_id", "expected": "a container that was created and not started",
	"got": phase_of(input.container_id),
} if {
	not known.phase == "created"
}

phase_of(id) := state.containers[id].phase

phase_of(id) := sprintf("unknown container %s", [substring(id, 0, 64)]) if not state.containers[id]

default RemoveContainerRequest := false

RemoveContainerRequest if known

default WaitProcessRequest := false

WaitProcessRequest if known

default StatsContainerRequest := false

StatsContainerRequest if known

default TtyWinResizeRequest := false

TtyWinResizeRequest if known

default CloseStdinRequest := false

CloseStdinRequest if known

RemoveContainerRequest_problems contains unknown_container if not known

WaitProcessRequest_problems contains unknown_container if not known

StatsContainerRequest_problems contains unknown_container if not known

TtyWinResizeRequest_problems contains unknown_container if not known

CloseStdinRequest_problems contains unknown_container if not known

unknown_container := {
	"field": "container_id", "expected": "a container of this pod", "got": substring(input.container_id, 0, 64),
}

default SignalProcessRequest := false

SignalProcessRequest if {
	known
	input.signal in {9, 15}
}

SignalProcessRequest if input.signal in its_policy.signals

SignalProcessRequest_problems contains unknown_container if not known

SignalProcessRequest_problems contains {
	"field": "signal", "expected": [9, 15], "got": input.signal,
	"fix": "further signals are the image's STOPSIGNAL",
} if {
	known
	not input.signal in {9, 15}
}

default ReadStreamRequest := false

ReadStreamRequest if {
	known.pod == true
}

ReadStreamRequest if {
	object.get(its_policy, "logs", true) == true
}

# Output of a command that was allowed to run.
ReadStreamRequest if {
	its_policy
	not first_process
}

ReadStreamRequest_problems contains unknown_container if not known

ReadStreamRequest_problems contains {
	"field": "exec_id", "expected": "no reading of stdout and stderr", "got": "a read",
	"fix": "setting logs", "key": "logs",
} if {
	its_policy
	not ReadStreamRequest
}

default WriteStreamRequest := false

WriteStreamRequest if {
	first_process
	its_policy.stdin == true
}

WriteStreamRequest if {
	its_policy
	not first_process
	granted("stdin")
}

WriteStreamRequest_problems contains unknown_container if not known

WriteStreamRequest_problems contains {
	"field": "data", "expected": "no input", "got": "input for stdin", "key": "stdin",
	"fix": "for the container's own process stdin: true, for further ones the setting allow.stdin",
} if {
	known
	not WriteStreamRequest
}

default ExecProcessRequest := false

ExecProcessRequest if {
	known.phase == "running"
	exec_command_ok
	exec_terminal_ok
	exec_process_ok
	input.string_user == null
	[input.stdin_port, input.stdout_port, input.stderr_port] == [0, 0, 0]
}

exec_command_ok if {
	input.process.Args in its_policy.exec
} else if {
	input.process.Args in grants.exec
} else if {
	its_policy
	granted("exec_any")
}

exec_terminal_ok if {
	input.process.Terminal == false
} else if {
	granted("terminal")
}

# As the container's first process: it gains nothing.
exec_process_ok if {
	its_policy
	input.process.Cwd == its_policy.cwd
	input.process.NoNewPrivileges == object.get(its_policy, "no_new_privileges", false)
	[input.process.SelinuxLabel, input.process.ApparmorProfile] == ["", ""]
	exec_user_ok
	exec_capabilities_ok
	exec_env_ok
}

exec_user_ok if {
	some candidate in its_policy.users
	candidate.uid == input.process.User.UID
	candidate.gid == input.process.User.GID
	{group | some group in input.process.User.AdditionalGids} - {group | some group in candidate.groups} == set()
} else if {
	its_policy
	stands_for_image_user(input.process.User)
}

exec_capabilities_ok if {
	some list in exec_capabilities
	allowed := {capability | some capability in list}
	every set_name in ["Bounding", "Effective", "Permitted", "Inheritable", "Ambient"] {
		{capability | some capability in input.process.Capabilities[set_name]} - allowed == set()
	}
}

exec_capabilities := [its_policy.capabilities] if its_policy.capabilities

exec_capabilities := runtime.capabilities if not its_policy.capabilities

exec_env_ok if {
	wanted := {entry | some entry in its_policy.env}
	actual := {entry | some entry in input.process.Env}
	count({split(entry, "=")[0] | some entry in actual}) == count(input.process.Env)
	added := (actual - wanted) - runtime_env
	every entry in added - service_entries(its_policy, added) {
		env_entry_ok(its_policy, entry)
	}
}

ExecProcessRequest_problems contains unknown_container if not known

ExecProcessRequest_problems contains {
	"field": "container_id", "expected": "a running container", "got": known.phase,
} if {
	not known.phase == "running"
}

ExecProcessRequest_problems contains {
	"field": "process.Args", "expected": object.get(its_policy, "exec", []), "got": input.process.Args,
	"key": "exec",
	"fix": "commands of probes and lifecycle hooks are allowed; others by the setting allow.exec",
} if {
	not exec_command_ok
}

ExecProcessRequest_problems contains {
	"field": "process.Terminal", "expected": false, "got": true, "fix": "setting allow.terminal",
} if {
	not exec_terminal_ok
}

ExecProcessRequest_problems contains {
	"field": "process.User", "expected": object.get(its_policy, "users", []), "key": "user",
	"got": {"uid": input.process.User.UID, "gid": input.process.User.GID, "groups": input.process.User.AdditionalGids},
} if {
	not exec_user_ok
}

ExecProcessRequest_problems contains {
	"field": "process.Capabilities", "expected": "those of the container",
	"got": object.get(input.process, "Capabilities", null), "key": "capabilities",
} if {
	not exec_capabilities_ok
}

ExecProcessRequest_problems contains {
	"field": "process.Env", "expected": "the container's variables",
	"unexpected": unexpected_env(its_policy, input.process.Env), "key": "env",
} if {
	not exec_env_ok
}

ExecProcessRequest_problems contains {
	"field": "process", "expected": {
		"Cwd": object.get(its_policy, "cwd", "/"),
		"NoNewPrivileges": object.get(its_policy, "no_new_privileges", false),
	},
	"got": {"Cwd": input.process.Cwd, "NoNewPrivileges": input.process.NoNewPrivileges},
} if {
	exec_user_ok
	exec_capabilities_ok
	exec_env_ok
	not exec_process_ok
}

default UpdateContainerRequest := false

UpdateContainerRequest if {
	known
	granted("update_container")
}

UpdateContainerRequest_problems contains {
	"field": "resources", "expected": "no change of limits", "got": "a change",
	"fix": "setting allow.update_container",
} if {
	not UpdateContainerRequest
}

default PauseContainerRequest := false

PauseContainerRequest if {
	known
	granted("pause")
}

default ResumeContainerRequest := false

ResumeContainerRequest if {
	known
	granted("pause")
}

PauseContainerRequest_problems contains {
	"field": "container_id", "expected": "no freezing", "got": "a freeze", "fix": "setting allow.pause",
} if {
	not PauseContainerRequest
}

#
# Ports of the pod's localhost (`kubectl port-forward`): each request of a connection names its port
#

default PortForwardRequest := false

PortForwardRequest if port_ok

default PortReadRequest := false

PortReadRequest if port_ok

default PortWriteRequest := false

PortWriteRequest if port_ok

default PortCloseRequest := false

PortCloseRequest if port_ok

# What listens on 8006 is the guest's own, for containers only.
port_ok if {
	input.port in grants.port_forward
	input.port != 8006
}

PortForwardRequest_problems contains port_problem if not port_ok

PortReadRequest_problems contains port_problem if not port_ok

PortWriteRequest_problems contains port_problem if not port_ok

PortCloseRequest_problems contains port_problem if not port_ok

port_problem := {
	"field": "port", "expected": object.get(grants, "port_forward", []), "got": input.port,
	"fix": "setting allow.port_forward",
}

# Nothing in a pod needs these.

default ListInterfacesRequest := false

default ListRoutesRequest := false

default GetIPTablesRequest := false

default SetIPTablesRequest := false

default UpdateEphemeralMountsRequest := false

default RemoveStaleVirtiofsShareMountsRequest := false

default MemHotplugByProbeRequest := false

default AddSwapRequest := false

default AddSwapPathRequest := false

default VolumeStatsRequest := false

default ResizeVolumeRequest := false

default MemAgentMemcgConfig := false

default MemAgentCompactConfig := false

default SetPolicyRequest := false

#
# What a container would run as whose user the host has left to its image: `name` and the numbers are the
# agent's, not the host's
#

default ImageUserRequest := false

ImageUserRequest if {
	some candidate in policy.containers[input.name].users
	candidate.uid == input.uid
	candidate.gid == input.gid
	{group | some group in candidate.groups} == {group | some group in input.groups}
}

ImageUserRequest_problems contains {
	"field": "the image's user", "expected": object.get(policy.containers[input.name], "users", []), "key": "user",
	"got": {"uid": input.uid, "gid": input.gid, "groups": input.groups},
} if {
	not ImageUserRequest
}

#
# What containers ask of the guest itself, over its endpoint on 127.0.0.1:8006 (GuestApiRequest is not the
# host's: `container_id` is whose socket it came from). Without `guest_api` a container gets nothing.
#

guest_api := its_policy.guest_api

default GuestApiRequest := false

GuestApiRequest if {
	known.phase in {"creating", "created", "running"}
	guest_api_ok
}

guest_api_ok if {
	input.api == "resource"
	guest_resource_ok
} else if {
	input.api in {"token", "evidence", "aael"}
	guest_api[input.api] == true
} else if {
	input.api == "info"
	its_policy
}

guest_resource_ok if {
	guest_api.resources == true
} else if {
	some pattern in guest_api.resources
	pattern == input.resource
} else if {
	some pattern in guest_api.resources
	endswith(pattern, "*")
	startswith(input.resource, trim_suffix(pattern, "*"))
}

GuestApiRequest_problems contains {
	"field": "container_id", "expected": "an application container of this pod", "got": "another process",
} if {
	not its_policy
}

GuestApiRequest_problems contains {
	"field": "resource", "expected": object.get(object.get(its_policy, "guest_api", {}), "resources", []),
	"got": input.resource, "key": "guest_api",
	"fix": "setting guest_api.resources",
} if {
	its_policy
	input.api == "resource"
	not guest_resource_ok
}

GuestApiRequest_problems contains {
	"field": "api", "expected": "no use of it", "got": input.api, "key": "guest_api",
	"fix": sprintf("setting guest_api.%s", [input.api]),
} if {
	its_policy
	input.api != "resource"
	not guest_api_ok
}
