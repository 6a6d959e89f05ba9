//! Which devices the processes of a container may open: a small eBPF program on its cgroup.
//!
//! Everything is denied that no rule allows. Two kinds of devices stay denied even to a container
//! that asks for all: the agent's channel to the host (who could speak for the agent with it) and the
//! guest's console (whose text the host reads).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nacre_protocol::oci;

use crate::error::RpcError;
use crate::raw::{self, Instruction};

/// Most rules that a specification may hold; more would not fit the kernel's program limit.
const MOST_RULES: usize = 256;

/// Linux' fixed numbers (Documentation/admin-guide/devices.txt).
const MEMORY_MAJOR: u32 = 1;
const TTY_MAJOR: u32 = 5;
const PTS_MAJOR: u32 = 136;
const HVC_MAJOR: u32 = 229;
const CONSOLE_MINOR: u32 = 1;

/// The kinds of access, as the kernel numbers them (linux/bpf.h, `BPF_DEVCG_ACC_*`).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const OPEN: u8 = READ | WRITE;
const ALL: u8 = MKNOD | OPEN;

/// Block or character device, numbered as in the kernel (`BPF_DEVCG_DEV_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule. `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// The rules of one container, the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePolicy {
    rules: Vec<Rule>,
}

impl DevicePolicy {
    /// The default devices and what a specification's rules add. As in cgroup v1, a later rule of
    /// the specification overrides an earlier one.
    pub(crate) fn new(
        field: &str,
        rules: &[oci::LinuxDeviceCgroup],
        guests_own: &GuestDevices,
    ) -> Result<Self, RpcError> {
        if rules.len() > MOST_RULES {
            let why = format!("{} rules are more than the {MOST_RULES} allowed", rules.len());
            return Err(RpcError::invalid(field, why));
        }
        let mut ordered = guests_own.denials();
        ordered.extend(default_rules());
        for (index, rule) in rules.iter().enumerate().rev() {
            ordered.push(Rule::parse(&format!("{field}[{index}]"), rule)?);
        }
        Ok(Self { rules: ordered })
    }

    /// Adds a block device that the container was given, by its numbers in this guest.
    pub(crate) fn allow_block(&mut self, major: u32, minor: u32, read_only: bool) {
        let access = if read_only { MKNOD | READ } else { ALL };
        let (major, minor) = (Some(major), Some(minor));
        let rule = Rule { allow: true, kind: Some(Kind::Block), major, minor, access };
        self.rules.insert(0, rule);
    }

    /// Puts the policy into force for all processes that are or come into `cgroup`.
    pub(crate) fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        let program = raw::load_device_program(&self.program())?;
        raw::attach_device_program(cgroup, program.as_fd())
    }

    fn program(&self) -> Vec<Instruction> {
        let mut program = vec![
            load_word(KIND, CONTEXT, 0),
            load_word(MAJOR, CONTEXT, 4),
            load_word(MINOR, CONTEXT, 8),
            move_register(ACCESS, KIND),
            and(KIND, 0xffff),
            shift_right(ACCESS, 16),
        ];
        for rule in &self.rules {
            program.extend(rule.instructions());
        }
        program.extend([set(RESULT, 0), EXIT]);
        program
    }
}

/// The devices by which the guest itself talks to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GuestDevices {
    /// Majors that the kernel gave to virtio-serial ports.
    port_majors: Vec<u32>,
}

impl GuestDevices {
    /// Looks for virtio-serial ports.
    pub(crate) fn find() -> Self {
        let mut port_majors: Vec<u32> = fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|port| {
                let number = fs::read_to_string(port.path().join("dev")).ok()?;
                number.split_once(':')?.0.parse().ok()
            })
            .collect();
        port_majors.sort_unstable();
        port_majors.dedup();
        Self { port_majors }
    }

    fn denials(&self) -> Vec<Rule> {
        let deny = |major, minor| Rule {
            allow: false,
            kind: Some(Kind::Character),
            major: Some(major),
            minor,
            access: OPEN,
        };
        let ports = self.port_majors.iter().map(|major| deny(*major, None));
        ports.chain([deny(HVC_MAJOR, None), deny(TTY_MAJOR, Some(CONSOLE_MINOR))]).collect()
    }
}

/// Making any node is allowed (opening is what counts), and the devices that each container has by the
/// OCI runtime specification ("Default Devices").
fn default_rules() -> impl Iterator<Item = Rule> {
    let character = |major, minor| Rule {
        allow: true,
        kind: Some(Kind::Character),
        major: Some(major),
        minor,
        access: ALL,
    };
    let null_zero_full_random_urandom =
        [3, 5, 7, 8, 9].map(|minor| character(MEMORY_MAJOR, Some(minor)));
    let tty_ptmx = [0, 2].map(|minor| character(TTY_MAJOR, Some(minor)));
    let mknod = Rule { allow: true, kind: None, major: None, minor: None, access: MKNOD };
    null_zero_full_random_urandom
        .into_iter()
        .chain(tty_ptmx)
        .chain([character(PTS_MAJOR, None), mknod])
}

impl Rule {
    fn parse(field: &str, rule: &oci::LinuxDeviceCgroup) -> Result<Self, RpcError> {
        let kind = match rule.Type.as_str() {
            "c" => Some(Kind::Character),
            "b" => Some(Kind::Block),
            "" | "a" => None,
            other => {
                let why = format!("{other:?} is not a kind of device: use a, b or c");
                return Err(RpcError::invalid(format!("{field}.Type"), why));
            }
        };
        let mut access = 0;
        for letter in rule.Access.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => {
                    let why = format!("{other:?} is not a kind of access: use r, w and m");
                    return Err(RpcError::invalid(format!("{field}.Access"), why));
                }
            };
        }
        if rule.Access.is_empty() {
            access = ALL;
        }
        // No device has the number 0:0: it is what is left of numbers that were not given.
        let absent = rule.Major == 0 && rule.Minor == 0;
        let number = |name: &str, value: i64| match value {
            -1 => Ok(None),
            _ if absent || kind.is_none() => Ok(None),
            _ => u32::try_from(value).map(Some).map_err(|_| {
                let why = format!("{value} is not a device number: use -1 for any");
                RpcError::invalid(format!("{field}.{name}"), why)
            }),
        };
        let (major, minor) = (number("Major", rule.Major)?, number("Minor", rule.Minor)?);
        Ok(Self { allow: rule.Allow, kind, major, minor, access })
    }

    /// Falls through to the next rule unless this one matches. An allowing rule matches when it covers
    /// all that is asked, a denying one when it covers a part.
    fn instructions(&self) -> Vec<Instruction> {
        let mut tests = Vec::new();
        if let Some(kind) = self.kind {
            tests.push(Test::Equal(KIND, kind as i32));
        }
        if self.allow {
            tests.push(Test::NoneOf(i32::from(!self.access & ALL)));
        } else {
            tests.push(Test::SomeOf(i32::from(self.access)));
        }
        for (register, value) in [(MAJOR, self.major), (MINOR, self.minor)] {
            if let Some(value) = value {
                tests.push(Test::Equal(register, value.cast_signed()));
            }
        }
        let end = [set(RESULT, i32::from(self.allow)), EXIT];
        let mut left: usize = tests.iter().map(Test::length).sum::<usize>() + end.len();
        let mut instructions = Vec::with_capacity(left);
        for test in tests {
            left -= test.length();
            test.emit(i16::try_from(left).unwrap_or(i16::MAX), &mut instructions);
        }
        instructions.extend(end);
        instructions
    }
}

/// One condition of a rule.
#[derive(Debug, Clone, Copy)]
enum Test {
    Equal(u8, i32),
    NoneOf(i32),
    SomeOf(i32),
}

impl Test {
    fn length(&self) -> usize {
        match self {
            Self::Equal(..) => 1,
            Self::NoneOf(_) | Self::SomeOf(_) => 3,
        }
    }

    /// `skip` instructions lie between the test and the next rule.
    fn emit(self, skip: i16, instructions: &mut Vec<Instruction>) {
        match self {
            Self::Equal(register, value) => instructions.push(jump_unless(register, value, skip)),
            Self::NoneOf(mask) => instructions.extend([
                move_register(SCRATCH, ACCESS),
                and(SCRATCH, mask),
                jump_unless(SCRATCH, 0, skip),
            ]),
            Self::SomeOf(mask) => instructions.extend([
                move_register(SCRATCH, ACCESS),
                and(SCRATCH, mask),
                jump_if(SCRATCH, 0, skip),
            ]),
        }
    }
}

/// Registers. The kernel passes the context in the second, which is free once it is read.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operation codes (`linux/bpf.h` and `linux/bpf_common.h`).
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb4;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x74;
const JUMP_UNEQUAL: u8 = 0x56;
const JUMP_EQUAL: u8 = 0x16;
const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

const fn load_word(target: u8, base: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: target | base << 4, offset, immediate: 0 }
}

const fn move_register(target: u8, source: u8) -> Instruction {
    Instruction { code: MOVE_REGISTER, registers: target | source << 4, offset: 0, immediate: 0 }
}

const fn set(target: u8, immediate: i32) -> Instruction {
    Instruction { code: MOVE_IMMEDIATE, registers: target, offset: 0, immediate }
}

const fn and(target: u8, immediate: i32) -> Instruction {
    Instruction { code: AND_IMMEDIATE, registers: target, offset: 0, immediate }
}

const fn shift_right(target: u8, immediate: i32) -> Instruction {
    Instruction { code: SHIFT_RIGHT_IMMEDIATE, registers: target, offset: 0, immediate }
}

/// 32-bit comparison: an immediate of the 64-bit one would be sign-extended.
const fn jump_unless(register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code: JUMP_UNEQUAL, registers: register, offset, immediate }
}

const fn jump_if(register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code: JUMP_EQUAL, registers: register, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn decide(policy: &DevicePolicy, kind: Kind, access: u8, major: u32, minor: u32) -> bool {
        let program = policy.program();
        let context = [u32::from(access) << 16 | kind as u32, major, minor];
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        loop {
            let instruction = program[at];
            let target = usize::from(instruction.registers & 15);
            let source = usize::from(instruction.registers >> 4);
            let immediate = instruction.immediate.cast_unsigned();
            at += 1;
            let skip = match instruction.code {
                LOAD_WORD => {
                    let offset = usize::try_from(instruction.offset).unwrap();
                    registers[target] = context[offset / 4];
                    false
                }
                MOVE_REGISTER => {
                    registers[target] = registers[source];
                    false
                }
                MOVE_IMMEDIATE => {
                    registers[target] = immediate;
                    false
                }
                AND_IMMEDIATE => {
                    registers[target] &= immediate;
                    false
                }
                SHIFT_RIGHT_IMMEDIATE => {
                    registers[target] >>= immediate;
                    false
                }
                JUMP_UNEQUAL => registers[target] != immediate,
                JUMP_EQUAL => registers[target] == immediate,
                0x95 => return registers[0] != 0,
                other => panic!("unknown operation {other:#x}"),
            };
            if skip {
                at += usize::try_from(instruction.offset).unwrap();
            }
        }
    }

    fn rule(
        allow: bool,
        kind: &str,
        major: i64,
        minor: i64,
        access: &str,
    ) -> oci::LinuxDeviceCgroup {
        oci::LinuxDeviceCgroup {
            Allow: allow,
            Type: kind.into(),
            Major: major,
            Minor: minor,
            Access: access.into(),
            ..Default::default()
        }
    }

    fn policy(rules: &[oci::LinuxDeviceCgroup]) -> DevicePolicy {
        DevicePolicy::new("Devices", rules, &GuestDevices { port_majors: vec![248] }).unwrap()
    }

    #[test]
    fn default_devices_open_and_others_do_not() {
        let policy = policy(&[rule(false, "", 0, 0, "rwm")]);
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 17)] {
            assert!(decide(&policy, Kind::Character, OPEN, major, minor), "{major}:{minor}");
        }
        for (kind, major, minor) in
            [(Kind::Character, 1, 1), (Kind::Character, 10, 200), (Kind::Block, 1, 3)]
        {
            assert!(!decide(&policy, kind, READ, major, minor), "{major}:{minor}");
            assert!(decide(&policy, kind, MKNOD, major, minor), "making a node is harmless");
        }
    }

    #[test]
    fn a_rule_covers_only_the_access_that_it_names() {
        let policy = policy(&[rule(false, "a", -1, -1, "rwm"), rule(true, "c", 10, 200, "r")]);
        assert!(decide(&policy, Kind::Character, READ, 10, 200));
        assert!(!decide(&policy, Kind::Character, OPEN, 10, 200));
        assert!(!decide(&policy, Kind::Character, READ, 10, 201));
    }

    #[test]
    fn a_later_rule_overrides_an_earlier_one() {
        let policy = policy(&[rule(true, "b", 8, -1, "rwm"), rule(false, "b", 8, 1, "w")]);
        assert!(decide(&policy, Kind::Block, OPEN, 8, 0));
        assert!(!decide(&policy, Kind::Block, OPEN, 8, 1));
        assert!(decide(&policy, Kind::Block, READ, 8, 1));
    }

    #[test]
    fn no_rule_opens_the_channel_to_the_host_or_the_console() {
        let policy = policy(&[rule(true, "a", -1, -1, "rwm"), rule(true, "c", 248, 1, "rwm")]);
        assert!(decide(&policy, Kind::Block, OPEN, 8, 0));
        for (major, minor) in [(248, 1), (HVC_MAJOR, 0), (TTY_MAJOR, CONSOLE_MINOR)] {
            assert!(!decide(&policy, Kind::Character, READ, major, minor), "{major}:{minor}");
            assert!(!decide(&policy, Kind::Character, WRITE, major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn a_given_block_device_opens_as_it_was_given() {
        let mut policy = policy(&[rule(false, "a", -1, -1, "rwm")]);
        policy.allow_block(254, 16, false);
        policy.allow_block(254, 32, true);
        assert!(decide(&policy, Kind::Block, OPEN, 254, 16));
        assert!(decide(&policy, Kind::Block, READ, 254, 32));
        assert!(!decide(&policy, Kind::Block, OPEN, 254, 32));
        assert!(!decide(&policy, Kind::Block, READ, 254, 0));
        assert!(!decide(&policy, Kind::Character, READ, 254, 16));
    }

    #[test]
    fn mistakes_are_named() {
        let none = GuestDevices::default();
        for (bad, text) in [
            (rule(true, "x", 1, 1, "r"), "Devices[0].Type"),
            (rule(true, "c", -7, 1, "r"), "Devices[0].Major"),
            (rule(true, "c", 1, 1, "q"), "Devices[0].Access"),
        ] {
            let error = DevicePolicy::new("Devices", &[bad], &none).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        // Needs CAP_BPF; elsewhere the guest test loads it.
        match raw::load_device_program(&policy(&[rule(true, "c", 10, -1, "rwm")]).program()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => {
                result.unwrap();
            }
        }
    }
}
