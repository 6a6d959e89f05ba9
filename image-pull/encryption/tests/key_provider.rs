//! A layer that another implementation encrypted in the key-provider form (Python's `cryptography`, after the
//! description of the key provider of Confidential Containers), with both ways of wrapping.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_image_encryption::{EncryptedLayer, KeyRing};

/// AES-256-GCM under the bytes 0 to 31.
const GCM: &str = "\
    eyJraWQiOiAia2JzOi8vL2RlZmF1bHQvaW1hZ2Uva2V5IiwgIndyYXBwZWRfZGF0YSI6ICI2UVZGRFlrNzNKOStqQj\
    FIaEtMR3ZLcFdySWRvR1BsTmI5cVBxYndEcFFFZGxjdWxKa3plaENlT3ZLMmF4cExobmxFQklIcDNhbEM5NnNRbXk2\
    Qmo5ME1lL3FDcDBXUVpROFhST2FSMWZYTzB4UGt5bDhRL0RwTWVLS2Q3ZGJzL2xzVmpvenpGd2hFbEdBckNYbEUzTz\
    RVMUpIYWtlMkZnMGZUK1M1M3lvTENxaWI0cVlqME9PNm5zSm5LcTV6WjJCQmhqM2tldDF4QUpqNXFOd01WT3h2dEF6\
    Uy92NXJwUnFRQTJhejB2blpNNlNvdndZc2RRaTVuZHBoa3dSWUFmenBTU3hQKytFdHk0ZVZ5eGg4QmQ4Uzg3emkvQ2\
    N0TT0iLCAiaXYiOiAiVUZGU1UxUlZWbGRZV1ZwYiIsICJ3cmFwX3R5cGUiOiAiQTI1NkdDTSJ9";
/// AES-256-CTR under the same key.
const CTR: &str = "\
    eyJraWQiOiAia2JzOi8vL2RlZmF1bHQvaW1hZ2Uva2V5IiwgIndyYXBwZWRfZGF0YSI6ICJxNEJ6aDVrQ1FkMmFGOS\
    9hR3MyRTMvU2hEVkxNdHg2UmJFYjNFSm1XRzVIZXpRN3FGZU5UT0pMbkJ6Wmh3aFR0OW5JUysrS3h5WkFxL243RDhk\
    VWs5a2JtbXo0TktVRkhHZlRtL3B1NzduTXovRnNJVjNxWUtIdmhLZEVKZEFHL01pOHE1VTFhTjFvRC96S0k0SGtsUm\
    RvaElscnplazRvQzZtTEcrOFZnZ05zNG9wdjUxa0xiVy81YyswNkdpbWtMVEl3RzRiaDR5dVJDZ2J4WnFNL0hYWGxw\
    SGlxeVhWd3FOd1BVdVY2M211bzdRYmhPNWVudHNOVWJBMFc2VWJuaW43cElrMWxlUT09IiwgIml2IjogIllHRmlZMl\
    JsWm1kb2FXcHJiRzF1Ync9PSIsICJ3cmFwX3R5cGUiOiAiQTI1NkNUUiJ9";
/// The public options.
const OPTIONS: &str = "\
    eyJjaXBoZXIiOiAiQUVTXzI1Nl9DVFJfSE1BQ19TSEEyNTYiLCAiaG1hYyI6ICJvc0ppdlJyUXlIMXJDT29ESDdkeW\
    84dWgwbG50Tk9haU1pWFlBRGVMM1JVPSIsICJjaXBoZXJvcHRpb25zIjoge319";
/// The blob.
const CIPHERTEXT: &str = "\
    6qG57sWUyEPIOQVYse9GIWN1e4sk2/uOgGOnei2C411eWd1enYfERcI=";

#[test]
fn a_layer_by_another_implementation_is_decrypted() {
    for packet in [GCM, CTR] {
        let name = "org.opencontainers.image.enc.keys.provider.attestation-agent";
        let annotations = BTreeMap::from([
            (name.to_owned(), packet.to_owned()),
            ("org.opencontainers.image.enc.pubopts".to_owned(), OPTIONS.to_owned()),
        ]);
        let layer = EncryptedLayer::parse(&annotations).unwrap();
        assert_eq!(layer.key_ids(), ["kbs:///default/image/key"]);
        let key: Vec<u8> = (0..32).collect();
        let mut keys = KeyRing::new();
        keys.add_provider_key("kbs://broker.example/default/image/key", &key).unwrap();
        let mut blob = STANDARD.decode(CIPHERTEXT).unwrap();
        let mut cipher = layer.unwrap(&keys).unwrap();
        cipher.decrypt(&mut blob);
        assert!(cipher.finish().is_ok());
        assert_eq!(blob, b"the layer's blob, before it was encrypted");
    }
}
