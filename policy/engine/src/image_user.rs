//! The second question about a container's user, where the host's request said "the user of its image".

use std::collections::BTreeMap;

use regorus::Value;

use crate::input::AgentRequest;

/// What a container would run as: the agent has looked it up in the image's own files. Nothing runs before
/// this is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUserRequest {
    /// The container, by the identifier that the host gave it.
    pub container_id: String,
    /// The owner's name for it, from the request that was allowed before.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

impl AgentRequest for ImageUserRequest {
    const NAME: &'static str = "ImageUserRequest";

    fn input(&self) -> Value {
        let number = |number: u32| Value::from(u64::from(number));
        let groups: Vec<Value> = self.groups.iter().copied().map(number).collect();
        Value::from(BTreeMap::from([
            ("container_id".into(), self.container_id.as_str().into()),
            ("name".into(), self.name.as_str().into()),
            ("uid".into(), number(self.uid)),
            ("gid".into(), number(self.gid)),
            ("groups".into(), groups.into()),
        ]))
    }
}
