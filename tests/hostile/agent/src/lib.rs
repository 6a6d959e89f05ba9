//! A guest whose agent means harm to the shim.
//!
//! The program of this crate is started by the shim as if it were QEMU (`vm.qemu`). It takes the sockets that
//! QEMU would inherit, says on the control channel that a machine runs, and speaks on the agent channel what
//! its [`Behaviour`] says: broken frames, floods, lies, nothing. So the whole shim is tested, as it runs on a
//! node, against everything that a guest can do to it by that channel.
//!
//! It runs on developers' machines, trusts whoever starts it, and does no more than write to the descriptors
//! that it was given.

pub mod frame;
mod hostility;
mod machine;

pub use hostility::{Behaviour, Guest};
pub use machine::Machine;
