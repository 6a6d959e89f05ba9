//! The arguments that make a guest confidential.

use std::ffi::OsString;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{Argument, Options};
use crate::memory_encryption::MemoryEncryption;
use crate::{QuoteService, SnpLaunch, TdxLaunch};

/// `-object sev-snp-guest`.
pub(in crate::qemu) struct SnpGuest<'a> {
    /// What the machine names it by.
    pub(in crate::qemu) id: &'static str,
    pub(in crate::qemu) host: MemoryEncryption,
    pub(in crate::qemu) launch: &'a SnpLaunch,
}

/// `-object tdx-guest`.
pub(in crate::qemu) struct TdxGuest<'a> {
    /// What the machine names it by.
    pub(in crate::qemu) id: &'static str,
    pub(in crate::qemu) launch: &'a TdxLaunch,
}

impl Argument for SnpGuest<'_> {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let SnpLaunch { policy, host_data, id_block, .. } = self.launch;
        let guest = Options::of("sev-snp-guest")
            .value("id", self.id)
            .value("cbitpos", self.host.c_bit.to_string())
            .value("reduced-phys-bits", self.host.reduced_address_bits.to_string())
            .value("policy", format!("{:#x}", policy.bits()))
            // Kernel, initrd and command line reach the guest through the host, after the launch: their
            // hashes are put among the measured pages, and the firmware compares. Without this the host
            // could boot what it likes under the same measurement.
            .switch("kernel-hashes", true)
            // Reports can be signed by the chip's own key, which is what verifiers have chains for.
            .switch("vcek-disabled", false)
            // Binds the initdata: an attacker can exchange it, but not with the report unchanged.
            .value("host-data", STANDARD.encode(host_data));
        let guest = match id_block {
            None => guest,
            Some(signed) => guest
                .value("id-block", STANDARD.encode(signed.block()))
                .value("id-auth", STANDARD.encode(signed.authentication()))
                .switch("author-key-enabled", signed.has_author_key()),
        };
        ("-object", guest.done())
    }
}

/// As QEMU's schema names its members (qapi/qom.json, "`TdxGuestProperties`").
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct TdxGuestProperties<'a> {
    qom_type: &'static str,
    id: &'static str,
    attributes: u64,
    /// Binds the initdata.
    mrconfigid: String,
    mrowner: String,
    mrownerconfig: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    quote_generation_socket: Option<SocketAddress<'a>>,
}

/// qapi/sockets.json, "`SocketAddress`": numbers are strings there.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum SocketAddress<'a> {
    Unix { path: &'a str },
    Vsock { cid: String, port: String },
}

impl Argument for TdxGuest<'_> {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let TdxLaunch { attributes, mr_config_id, mr_owner, mr_owner_config, .. } = self.launch;
        let quotes = self.launch.quote_generation.as_ref().map(|service| match service {
            // It was checked to be UTF-8.
            QuoteService::Unix(path) => {
                SocketAddress::Unix { path: path.to_str().unwrap_or_default() }
            }
            QuoteService::Vsock { cid, port } => {
                SocketAddress::Vsock { cid: cid.to_string(), port: port.to_string() }
            }
        });
        let properties = TdxGuestProperties {
            qom_type: "tdx-guest",
            id: self.id,
            // Debugging off, and SEPT_VE_DISABLE, whatever QEMU's own default becomes.
            attributes: attributes.bits(),
            mrconfigid: STANDARD.encode(mr_config_id),
            mrowner: STANDARD.encode(mr_owner),
            mrownerconfig: STANDARD.encode(mr_owner_config),
            quote_generation_socket: quotes,
        };
        // A socket's address has no other form than JSON; a comma in it is data.
        let json = serde_json::to_string(&properties).unwrap_or_default();
        ("-object", Some(json.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestPolicy, IdBlock, SnpCpu, TdAttributes};

    fn rendered(argument: &impl Argument) -> String {
        let (flag, value) = argument.render();
        format!("{flag} {}", value.unwrap_or_default().into_string().unwrap())
    }

    #[test]
    fn an_owners_signature_goes_along_whole() {
        let mut authentication = [0; 4096];
        authentication[0x880..0x8a0].fill(9);
        let signed = IdBlock::new(&[1; 96], &authentication).unwrap();
        let launch = SnpLaunch {
            firmware: "/fw".into(),
            policy: GuestPolicy::new(false),
            host_data: [0xff; 32],
            cpu: SnpCpu::EpycV4,
            id_block: Some(signed),
        };
        let host = MemoryEncryption { c_bit: 51, reduced_address_bits: 1 };
        assert_eq!(
            rendered(&SnpGuest { id: "t", host, launch: &launch }),
            format!(
                "-object sev-snp-guest,id=t,cbitpos=51,reduced-phys-bits=1,policy=0x20000,\
                 kernel-hashes=on,vcek-disabled=off,\
                 host-data=//////////////////////////////////////////8=,id-block={},id-auth={},\
                 author-key-enabled=on",
                STANDARD.encode([1; 96]),
                STANDARD.encode(authentication),
            )
        );
    }

    #[test]
    fn no_path_can_add_a_property() {
        let launch = TdxLaunch {
            firmware: "/fw".into(),
            attributes: TdAttributes::default(),
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            quote_generation: Some(QuoteService::Unix("/a\"},\"attributes\":1,{".into())),
        };
        let (_, json) = TdxGuest { id: "t", launch: &launch }.render();
        let json: serde_json::Value =
            serde_json::from_str(json.unwrap().to_str().unwrap()).unwrap();
        assert_eq!(json["attributes"], 0x1000_0000);
        assert_eq!(json["quote-generation-socket"]["path"], "/a\"},\"attributes\":1,{");
    }
}
