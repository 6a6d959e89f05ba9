//! What a container asks of the guest itself, over the endpoint on 127.0.0.1:8006: judged as the host's
//! requests are.

use std::collections::BTreeMap;

use regorus::Value;

use crate::input::AgentRequest;

/// Something that a container of the pod wants from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestApiRequest {
    /// The container, by the identifier that the host gave it.
    pub container_id: String,
    /// What it wants.
    pub api: GuestApi,
}

/// The parts of the guest's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestApi {
    /// A resource of the key broker: `repository/type/tag`, with `plugin+` before it for another plugin
    /// than the resources'.
    Resource(String),
    /// The attestation token and the key that belongs to it.
    Token,
    /// Evidence about this guest, over data of the container's choice.
    Evidence,
    /// An event in the runtime measurement.
    Aael,
    /// Version and kind of the guest.
    Info,
}

impl GuestApi {
    /// The word for it in `input.api`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resource(_) => "resource",
            Self::Token => "token",
            Self::Evidence => "evidence",
            Self::Aael => "aael",
            Self::Info => "info",
        }
    }
}

impl AgentRequest for GuestApiRequest {
    const NAME: &'static str = "GuestApiRequest";

    fn input(&self) -> Value {
        let resource = match &self.api {
            GuestApi::Resource(resource) => resource.as_str(),
            _ => "",
        };
        Value::from(BTreeMap::from([
            ("container_id".into(), self.container_id.as_str().into()),
            ("api".into(), self.api.name().into()),
            ("resource".into(), resource.into()),
        ]))
    }
}
