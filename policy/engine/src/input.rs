//! Requests as the policy sees them.
//!
//! The shape is the one that policies for Kata Containers' agent are written for: an object a message,
//! the fields' names as in the `.proto` files (`type` becomes `type_`), every field present, an unset
//! message `null`, an enumeration its number, bytes an array of numbers. One exception, as there:
//! [`CopyFileRequest`] has no data, but what is known about the file.

use std::collections::{BTreeMap, HashMap};

use nacre_protocol::agent::*;
use nacre_protocol::oci::*;
use nacre_protocol::ports::*;
use nacre_protocol::types::*;
use nacre_trust::{Algorithm, Digest};
use protobuf::{EnumOrUnknown, MessageField};
use regorus::Value;

use crate::guest_api::GuestApiRequest;
use crate::image_user::ImageUserRequest;

/// A message that the host may send to the agent and that a policy can judge.
pub trait AgentRequest: Send + 'static {
    /// The message's name, which is also the name of the rule that decides.
    const NAME: &'static str;

    /// What the rule gets as `input`.
    fn input(&self) -> Value;
}

/// A part of a request.
trait Input {
    fn to_input(&self) -> Value;
}

impl Input for bool {
    fn to_input(&self) -> Value {
        Value::Bool(*self)
    }
}

macro_rules! numbers {
    ($($kind:ty as $wide:ty),*) => {
        $(impl Input for $kind {
            fn to_input(&self) -> Value {
                Value::from(<$wide>::from(*self))
            }
        })*
    };
}

numbers!(u8 as u64, u32 as u64, u64 as u64, i32 as i64, i64 as i64);

impl Input for String {
    fn to_input(&self) -> Value {
        Value::from(self.as_str())
    }
}

impl<T: Input> Input for Vec<T> {
    fn to_input(&self) -> Value {
        Value::from(self.iter().map(Input::to_input).collect::<Vec<_>>())
    }
}

impl<T: Input> Input for Option<T> {
    fn to_input(&self) -> Value {
        self.as_ref().map_or(Value::Null, Input::to_input)
    }
}

impl<T: Input> Input for MessageField<T> {
    fn to_input(&self) -> Value {
        self.as_ref().map_or(Value::Null, Input::to_input)
    }
}

impl<T: protobuf::Enum> Input for EnumOrUnknown<T> {
    fn to_input(&self) -> Value {
        Value::from(i64::from(self.value()))
    }
}

impl<T: Input> Input for HashMap<String, T> {
    fn to_input(&self) -> Value {
        let entries = self.iter().map(|(key, value)| (Value::from(key.as_str()), value.to_input()));
        Value::from(entries.collect::<BTreeMap<_, _>>())
    }
}

macro_rules! messages {
    ($($message:ident { $($field:ident),* })*) => {
        $(impl Input for $message {
            fn to_input(&self) -> Value {
                Value::from(BTreeMap::<Value, Value>::from([
                    $((Value::from(stringify!($field)), self.$field.to_input()),)*
                ]))
            }
        })*
    };
}

messages! {
    Spec { Version, Process, Root, Hostname, Mounts, Hooks, Annotations, Linux, Solaris, Windows }
    Process { Terminal, ConsoleSize, User, Args, Env, Cwd, Capabilities, Rlimits, NoNewPrivileges,
        ApparmorProfile, OOMScoreAdj, SelinuxLabel }
    Box { Height, Width }
    User { UID, GID, AdditionalGids, Username }
    LinuxCapabilities { Bounding, Effective, Inheritable, Permitted, Ambient }
    POSIXRlimit { Type, Hard, Soft }
    Mount { destination, source, type_, options }
    Root { Path, Readonly }
    Hooks { Prestart, Poststart, Poststop, CreateRuntime, CreateContainer, StartContainer }
    Hook { Path, Args, Env, Timeout }
    Linux { UIDMappings, GIDMappings, Sysctl, Resources, CgroupsPath, Namespaces, Devices, Seccomp,
        RootfsPropagation, MaskedPaths, ReadonlyPaths, MountLabel, IntelRdt }
    Windows { dummy }
    Solaris { dummy }
    LinuxIDMapping { HostID, ContainerID, Size }
    LinuxNamespace { Type, Path }
    LinuxDevice { Path, Type, Major, Minor, FileMode, UID, GID }
    LinuxResources { Devices, Memory, CPU, Pids, BlockIO, HugepageLimits, Network }
    LinuxMemory { Limit, Reservation, Swap, Kernel, KernelTCP, Swappiness, DisableOOMKiller }
    LinuxCPU { Shares, Quota, Period, RealtimeRuntime, RealtimePeriod, Cpus, Mems }
    LinuxWeightDevice { Major, Minor, Weight, LeafWeight }
    LinuxThrottleDevice { Major, Minor, Rate }
    LinuxBlockIO { Weight, LeafWeight, WeightDevice, ThrottleReadBpsDevice, ThrottleWriteBpsDevice,
        ThrottleReadIOPSDevice, ThrottleWriteIOPSDevice }
    LinuxPids { Limit }
    LinuxDeviceCgroup { Allow, Type, Major, Minor, Access }
    LinuxNetwork { ClassID, Priorities }
    LinuxHugepageLimit { Pagesize, Limit }
    LinuxInterfacePriority { Name, Priority }
    LinuxSeccomp { DefaultAction, Architectures, Flags, Syscalls }
    LinuxSeccompArg { Index, Value, ValueTwo, Op }
    LinuxSyscall { Names, Action, errnoret, Args }
    LinuxIntelRdt { L3CacheSchema }
    StringUser { uid, gid, additionalGids }
    Device { id, type_, vm_path, container_path, options }
    Storage { driver, driver_options, source, fstype, options, mount_point, fs_group, shared }
    FSGroup { group_id, group_change_policy }
    SharedMount { name, src_ctr, src_path, dst_ctr, dst_path }
    KernelModule { name, parameters }
    IPAddress { family, address, mask }
    Interface { device, name, IPAddresses, mtu, hwAddr, devicePath, type_, raw_flags }
    Route { dest, gateway, device, source, scope, family, flags, mtu, metric }
    Routes { Routes }
    ARPNeighbor { toIPAddress, device, lladdr, state, flags }
    ARPNeighbors { ARPNeighbors }
    CreateContainerRequest { container_id, exec_id, string_user, devices, storages, OCI,
        sandbox_pidns, shared_mounts, stdin_port, stdout_port, stderr_port }
    StartContainerRequest { container_id }
    RemoveContainerRequest { container_id, timeout }
    ExecProcessRequest { container_id, exec_id, string_user, process, stdin_port, stdout_port,
        stderr_port }
    SignalProcessRequest { container_id, exec_id, signal }
    WaitProcessRequest { container_id, exec_id }
    UpdateContainerRequest { container_id, resources }
    StatsContainerRequest { container_id }
    PauseContainerRequest { container_id }
    ResumeContainerRequest { container_id }
    WriteStreamRequest { container_id, exec_id, data }
    ReadStreamRequest { container_id, exec_id, len }
    CloseStdinRequest { container_id, exec_id }
    TtyWinResizeRequest { container_id, exec_id, row, column }
    CreateSandboxRequest { hostname, dns, storages, sandbox_pidns, sandbox_id, guest_hook_path,
        kernel_modules }
    DestroySandboxRequest { }
    RemoveStaleVirtiofsShareMountsRequest { }
    UpdateInterfaceRequest { interface }
    UpdateRoutesRequest { routes }
    UpdateEphemeralMountsRequest { storages }
    ListInterfacesRequest { }
    ListRoutesRequest { }
    AddARPNeighborsRequest { neighbors }
    GetIPTablesRequest { is_ipv6 }
    SetIPTablesRequest { is_ipv6, data }
    OnlineCPUMemRequest { wait, nb_cpus, cpu_only }
    ReseedRandomDevRequest { data }
    GuestDetailsRequest { mem_block_size, mem_hotplug_probe }
    MemHotplugByProbeRequest { memHotplugProbeAddr }
    SetGuestDateTimeRequest { Sec, Usec }
    GetOOMEventRequest { }
    AddSwapRequest { PCIPath }
    AddSwapPathRequest { path }
    GetMetricsRequest { }
    VolumeStatsRequest { volume_guest_path }
    ResizeVolumeRequest { volume_guest_path, size }
    SetPolicyRequest { policy }
    GetDiagnosticDataRequest { log_type, container_id, path }
    MemAgentMemcgConfig { disabled, swap, swappiness_max, period_secs, period_psi_percent_limit,
        eviction_psi_percent_limit, eviction_run_aging_count_min }
    MemAgentCompactConfig { disabled, period_secs, period_psi_percent_limit,
        compact_psi_percent_limit, compact_sec_max, compact_order, compact_threshold,
        compact_force_times }
    PortForwardRequest { port }
    PortReadRequest { port, connection, len }
    PortWriteRequest { port, connection, data }
    PortCloseRequest { port, connection, write_only }
}

/// Bits of a file's mode that say what it is (`inode(7)`).
const FILE_TYPE: u32 = 0o170_000;

impl Input for CopyFileRequest {
    fn to_input(&self) -> Value {
        let (kind, target) = match self.file_mode & FILE_TYPE {
            // Kata sends a regular file's mode with or without its type.
            0o100_000 | 0 => ("Regular", String::new()),
            0o040_000 => ("Directory", String::new()),
            0o120_000 => ("Symlink", String::from_utf8_lossy(&self.data).into_owned()),
            _ => ("Unknown", String::new()),
        };
        let whole = self.offset == 0 && usize::try_from(self.file_size) == Ok(self.data.len());
        let sha256 = if kind == "Regular" && whole {
            Value::from(Digest::of(Algorithm::Sha256, &self.data).hex())
        } else {
            Value::Null
        };
        Value::from(BTreeMap::from([
            ("path".into(), self.path.to_input()),
            ("file_type".into(), kind.into()),
            ("symlink_target".into(), target.to_input()),
            ("file_size".into(), self.file_size.to_input()),
            ("file_mode".into(), self.file_mode.to_input()),
            ("dir_mode".into(), self.dir_mode.to_input()),
            ("uid".into(), self.uid.to_input()),
            ("gid".into(), self.gid.to_input()),
            ("offset".into(), self.offset.to_input()),
            // Not known to Kata: digest of a regular file that comes in one piece, else null.
            ("sha256".into(), sha256),
        ]))
    }
}

macro_rules! requests {
    ($($message:ident),* $(,)?) => {
        $(impl AgentRequest for $message {
            const NAME: &'static str = stringify!($message);

            fn input(&self) -> Value {
                self.to_input()
            }
        })*

        /// Names of all requests that a policy can judge: the host's, what containers ask of the guest, and
        /// what the agent asks about the user of an image.
        pub const REQUESTS: &[&str] =
            &[$(stringify!($message),)* GuestApiRequest::NAME, ImageUserRequest::NAME];

        #[cfg(test)]
        fn every_request() -> Vec<(std::boxed::Box<dyn protobuf::MessageDyn>, Value)> {
            vec![$({
                let message = $message::new();
                let input = message.input();
                (std::boxed::Box::new(message) as std::boxed::Box<dyn protobuf::MessageDyn>, input)
            }),*]
        }
    };
}

requests! {
    CreateContainerRequest,
    StartContainerRequest,
    RemoveContainerRequest,
    ExecProcessRequest,
    SignalProcessRequest,
    WaitProcessRequest,
    UpdateContainerRequest,
    StatsContainerRequest,
    PauseContainerRequest,
    ResumeContainerRequest,
    WriteStreamRequest,
    ReadStreamRequest,
    CloseStdinRequest,
    TtyWinResizeRequest,
    CreateSandboxRequest,
    DestroySandboxRequest,
    CopyFileRequest,
    RemoveStaleVirtiofsShareMountsRequest,
    UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest,
    UpdateRoutesRequest,
    ListInterfacesRequest,
    ListRoutesRequest,
    AddARPNeighborsRequest,
    GetIPTablesRequest,
    SetIPTablesRequest,
    OnlineCPUMemRequest,
    ReseedRandomDevRequest,
    GuestDetailsRequest,
    MemHotplugByProbeRequest,
    SetGuestDateTimeRequest,
    GetOOMEventRequest,
    AddSwapRequest,
    AddSwapPathRequest,
    GetMetricsRequest,
    VolumeStatsRequest,
    ResizeVolumeRequest,
    SetPolicyRequest,
    GetDiagnosticDataRequest,
    MemAgentMemcgConfig,
    MemAgentCompactConfig,
    PortForwardRequest,
    PortReadRequest,
    PortWriteRequest,
    PortCloseRequest,
}

#[cfg(test)]
mod tests {
    use protobuf::reflect::{MessageDescriptor, RuntimeFieldType, RuntimeType};

    use super::*;

    /// The fields of a message must be the keys of its input, also within messages that are unset
    /// here: their descriptors are compared with a default value.
    fn check(descriptor: &MessageDescriptor, input: &Value, seen: &mut Vec<String>) {
        let object = input.as_object().unwrap();
        let mut expected: Vec<String> = Vec::new();
        for field in descriptor.fields() {
            let name = match field.name() {
                "type" => "type_".to_owned(),
                name => name.to_owned(),
            };
            expected.push(name);
        }
        expected.sort();
        let mut found: Vec<String> =
            object.iter().map(|(key, _)| key.as_string().unwrap().to_string()).collect();
        found.sort();
        assert_eq!(found, expected, "{}", descriptor.full_name());
        seen.push(descriptor.full_name().to_owned());
    }

    fn nested(descriptor: &MessageDescriptor) -> Vec<MessageDescriptor> {
        let of = |kind: RuntimeType| match kind {
            RuntimeType::Message(message) => Some(message),
            _ => None,
        };
        let each = descriptor.fields().filter_map(|field| match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) | RuntimeFieldType::Repeated(kind) => of(kind),
            RuntimeFieldType::Map(_, kind) => of(kind),
        });
        each.collect()
    }

    #[test]
    fn every_field_of_every_request_is_in_its_input() {
        let mut seen = Vec::new();
        for (message, input) in every_request() {
            let descriptor = message.descriptor_dyn();
            if descriptor.name() == "CopyFileRequest" {
                continue;
            }
            check(&descriptor, &input, &mut seen);
        }
        // CopyFileRequest has another shape, GuestApiRequest and ImageUserRequest are no messages.
        assert_eq!(seen.len() + 3, REQUESTS.len());
    }

    #[test]
    fn every_field_of_the_messages_within_is_in_the_input() {
        // One of each message that occurs within a request.
        macro_rules! samples {
            ($($message:ident),*) => {
                vec![$(($message::new().descriptor_of(), $message::new().to_input())),*]
            };
        }
        trait DescriptorOf {
            fn descriptor_of(&self) -> MessageDescriptor;
        }
        impl<M: protobuf::MessageFull> DescriptorOf for M {
            fn descriptor_of(&self) -> MessageDescriptor {
                M::descriptor()
            }
        }
        let samples = samples!(
            Spec,
            Process,
            Box,
            User,
            LinuxCapabilities,
            POSIXRlimit,
            Mount,
            Root,
            Hooks,
            Hook,
            Linux,
            Windows,
            Solaris,
            LinuxIDMapping,
            LinuxNamespace,
            LinuxDevice,
            LinuxResources,
            LinuxMemory,
            LinuxCPU,
            LinuxWeightDevice,
            LinuxThrottleDevice,
            LinuxBlockIO,
            LinuxPids,
            LinuxDeviceCgroup,
            LinuxNetwork,
            LinuxHugepageLimit,
            LinuxInterfacePriority,
            LinuxSeccomp,
            LinuxSeccompArg,
            LinuxSyscall,
            LinuxIntelRdt,
            StringUser,
            Device,
            Storage,
            FSGroup,
            SharedMount,
            KernelModule,
            IPAddress,
            Interface,
            Route,
            Routes,
            ARPNeighbor,
            ARPNeighbors
        );
        let mut seen = Vec::new();
        for (descriptor, input) in &samples {
            check(descriptor, input, &mut seen);
        }
        // None is missing in the list above.
        let mut ahead: Vec<_> =
            every_request().iter().map(|(message, _)| message.descriptor_dyn()).collect();
        while let Some(descriptor) = ahead.pop() {
            for inner in nested(&descriptor) {
                assert!(seen.iter().any(|name| name == inner.full_name()), "{inner:?}");
                ahead.push(inner);
            }
        }
    }

    #[test]
    fn values_have_the_types_that_policies_expect() {
        let mut request = CreateContainerRequest::new();
        request.OCI.mut_or_insert_default().Annotations.insert("k".into(), "v".into());
        request
            .OCI
            .mut_or_insert_default()
            .Mounts
            .push(Mount { type_: "bind".into(), ..Default::default() });
        let input = request.input();
        assert_eq!(input["OCI"]["Annotations"]["k"], Value::from("v"));
        assert_eq!(input["OCI"]["Mounts"][0]["type_"], Value::from("bind"));
        assert_eq!(input["OCI"]["Process"], Value::Null);
        assert_eq!(input["stdin_port"], Value::from(0_u64));
        let mut write = WriteStreamRequest::new();
        write.data = vec![1, 255];
        assert_eq!(
            write.input()["data"].to_json_str().unwrap().replace([' ', '\n'], ""),
            "[1,255]"
        );
        let mut sandbox = CreateSandboxRequest::new();
        let mut group = FSGroup::new();
        group.group_change_policy = FSGroupChangePolicy::OnRootMismatch.into();
        sandbox.storages.push(Storage { fs_group: Some(group).into(), ..Default::default() });
        assert_eq!(
            sandbox.input()["storages"][0]["fs_group"]["group_change_policy"],
            Value::from(1_u64)
        );
    }

    #[test]
    fn a_copied_file_is_described_without_its_data() {
        let request = |mode, data: &[u8], size| CopyFileRequest {
            path: "/p".into(),
            file_mode: mode,
            data: data.to_vec(),
            file_size: size,
            ..Default::default()
        };
        let link = request(0o120_777, b"target", 6).input();
        assert_eq!(link["file_type"], Value::from("Symlink"));
        assert_eq!(link["symlink_target"], Value::from("target"));
        let file = request(0o100_644, b"abc", 3).input();
        assert!(file["sha256"].as_string().unwrap().starts_with("ba7816bf"));
        let part = request(0o644, b"abc", 4).input();
        assert_eq!((&part["sha256"], &part["file_type"]), (&Value::Null, &"Regular".into()));
        assert_eq!(request(0o020_644, b"", 0).input()["file_type"], Value::from("Unknown"));
        assert_eq!(file.as_object().unwrap().iter().count(), 10);
    }
}
