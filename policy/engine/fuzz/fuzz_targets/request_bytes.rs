//! Any bytes as the host's messages: what protobuf reads becomes input for the policy without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_policy::AgentRequest;
use nacre_protocol::agent::{
    CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest,
};
use protobuf::Message;

fn check<R: AgentRequest + Message>(bytes: &[u8]) {
    if let Ok(request) = R::parse_from_bytes(bytes) {
        let json = serde_json::to_value(request.input()).expect("input is JSON");
        assert!(json.is_object());
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<CreateContainerRequest>(bytes);
    check::<CreateSandboxRequest>(bytes);
    check::<ExecProcessRequest>(bytes);
    check::<CopyFileRequest>(bytes);
    check::<UpdateInterfaceRequest>(bytes);
    check::<UpdateRoutesRequest>(bytes);
});
