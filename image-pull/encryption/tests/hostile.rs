//! Annotations as a hostile registry would serve them, and properties of the cipher.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nacre_image_encryption::{
    ANNOTATION_LIMIT, EncryptedLayer, EncryptionError, KeyRing, LayerEncryptor, PublicKey,
    RECIPIENT_LIMIT, Recipient,
};
use nacre_trust::Algorithm;
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use proptest::prelude::*;
use serde_json::{Value, json};

const JWE: &str = "org.opencontainers.image.enc.keys.jwe";
const PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";
const OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
const KEY_ID: &str = "kbs:///default/image/key";

type Annotations = BTreeMap<String, String>;

static KEY: LazyLock<p256::SecretKey> =
    LazyLock::new(|| p256::SecretKey::random(&mut rand_core::OsRng));

fn public() -> PublicKey {
    let pem = KEY.public_key().to_public_key_pem(LineEnding::LF).unwrap();
    PublicKey::parse(pem.as_bytes()).unwrap()
}

/// Holds both keys.
fn ring() -> KeyRing {
    let mut ring = KeyRing::new();
    ring.add_provider_key(KEY_ID, &[7; 32]).unwrap();
    ring.add_private_key(KEY.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap();
    ring
}

fn provider() -> Recipient {
    Recipient::Provider { key_id: KEY_ID.parse().unwrap(), key: [7; 32].into() }
}

fn encrypt(plaintext: &[u8], recipients: &[Recipient]) -> (Annotations, Vec<u8>) {
    let mut encryptor = LayerEncryptor::new(Vec::new(), Algorithm::Sha512).unwrap();
    encryptor.write_all(plaintext).unwrap();
    let (sealed, ciphertext) = encryptor.finish().unwrap();
    let old = Annotations::from([
        ("org.opencontainers.image.title".to_owned(), "kept".to_owned()),
        (JWE.to_owned(), "of an earlier encryption".to_owned()),
    ]);
    (sealed.annotations(recipients, &old).unwrap(), ciphertext)
}

fn decrypt(
    annotations: &Annotations,
    blob: &[u8],
    pieces: &[usize],
) -> Result<Vec<u8>, EncryptionError> {
    let mut cipher = EncryptedLayer::parse(annotations)?.unwrap(&ring())?;
    let mut plaintext = blob.to_vec();
    let mut rest = plaintext.as_mut_slice();
    for piece in pieces {
        let (now, later) = rest.split_at_mut((*piece).min(rest.len()));
        cipher.decrypt(now);
        rest = later;
    }
    cipher.decrypt(rest);
    cipher.finish().map(|_proof| plaintext)
}

fn parse(annotations: &[(&str, &str)]) -> String {
    let named = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    match EncryptedLayer::parse(&named.collect()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn edited(annotations: &Annotations, name: &str, edit: impl FnOnce(&mut Value)) -> Annotations {
    let mut annotations = annotations.clone();
    let value = annotations.get_mut(name).unwrap();
    let mut json: Value = serde_json::from_slice(&STANDARD.decode(&*value).unwrap()).unwrap();
    edit(&mut json);
    *value = STANDARD.encode(json.to_string());
    annotations
}

fn with_header(edit: impl FnOnce(&mut Value)) -> impl FnOnce(&mut Value) {
    |json| {
        let header = URL_SAFE_NO_PAD.decode(json["protected"].as_str().unwrap()).unwrap();
        let mut header: Value = serde_json::from_slice(&header).unwrap();
        edit(&mut header);
        json["protected"] = URL_SAFE_NO_PAD.encode(header.to_string()).into();
    }
}

#[test]
fn each_recipient_alone_suffices_and_other_annotations_stay() {
    for recipients in [vec![provider()], vec![Recipient::Jwe(public())]] {
        let (annotations, blob) = encrypt(b"layer", &recipients);
        assert_eq!(annotations["org.opencontainers.image.title"], "kept");
        assert_eq!(annotations.len(), 3, "{annotations:?}");
        assert_eq!(decrypt(&annotations, &blob, &[]).unwrap(), b"layer");
    }
    let (annotations, _) = encrypt(b"layer", &[provider(), Recipient::Jwe(public())]);
    let layer = EncryptedLayer::parse(&annotations).unwrap();
    assert_eq!(layer.key_ids(), [KEY_ID]);
    assert!(layer.takes_private_keys());
    assert_eq!(layer.recipients(), [KEY_ID, "jwe (P-256)"]);
    let error = layer.unwrap(&KeyRing::new()).err().unwrap().to_string();
    assert!(error.contains(KEY_ID) && error.contains("is no key for any of them"), "{error}");
    let mut wrong = KeyRing::new();
    wrong.add_provider_key(KEY_ID, &[8; 32]).unwrap();
    let error = layer.unwrap(&wrong).err().unwrap().to_string();
    assert!(error.contains("one key that does not open it"), "{error}");
}

/// Two images by two owners, whose annotations are joined as a further recipient is added.
#[test]
fn values_joined_by_commas_are_several_recipients() {
    let (annotations, blob) = encrypt(b"layer", &[provider()]);
    let (other, _) = encrypt(b"other layer", &[provider()]);
    let mut wrong = KeyRing::new();
    wrong.add_provider_key("kbs:///default/image/other", &[9; 32]).unwrap();
    let foreign = edited(&other, PROVIDER, |packet| packet["kid"] = "/default/image/other".into());
    let mut joined = annotations.clone();
    joined.insert(PROVIDER.into(), format!("{},{}", foreign[PROVIDER], annotations[PROVIDER]));
    assert_eq!(decrypt(&joined, &blob, &[]).unwrap(), b"layer");
    let layer = EncryptedLayer::parse(&joined).unwrap();
    assert_eq!(layer.key_ids(), ["kbs:///default/image/other", KEY_ID]);
    // The key of another layer opens nothing of this one.
    assert_eq!(decrypt(&other, &blob, &[]), Err(EncryptionError::Changed));
}

#[test]
fn other_schemes_are_refused_by_name() {
    let prefix = "org.opencontainers.image.enc.keys";
    for (scheme, expected) in [
        ("pkcs7", "PKCS#7 recipients"),
        ("pkcs11", "PKCS#11 recipients"),
        ("pgp", "PGP recipients"),
        ("provider.vendor\u{7}", "the key provider vendor?"),
        ("new", "unknown kind new"),
    ] {
        let error = parse(&[(&format!("{prefix}.{scheme}"), "AAAA"), (OPTIONS, "e30=")]);
        assert!(error.contains(expected), "{error}");
    }
    assert!(parse(&[]).contains("no wrapped key"));
    // Beside one that is read they do no harm.
    let (mut annotations, blob) = encrypt(b"layer", &[provider()]);
    annotations.insert(format!("{prefix}.pkcs7"), "AAAA".into());
    assert_eq!(decrypt(&annotations, &blob, &[]).unwrap(), b"layer");
}

#[test]
fn annotations_are_bounded() {
    let (annotations, _) = encrypt(b"layer", &[provider()]);
    let options = annotations[OPTIONS].as_str();
    let one = annotations[PROVIDER].as_str();
    let many = |count: usize| vec![one; count].join(",");
    assert_eq!(parse(&[(PROVIDER, &many(RECIPIENT_LIMIT)), (OPTIONS, options)]), "accepted");
    let error = parse(&[(PROVIDER, &many(RECIPIENT_LIMIT + 1)), (OPTIONS, options)]);
    assert!(error.contains("more than 16 recipients"), "{error}");
    let error = parse(&[(PROVIDER, &"A".repeat(ANNOTATION_LIMIT + 1)), (OPTIONS, options)]);
    assert!(error.contains("more than 65536 bytes"), "{error}");
    let error = parse(&[(PROVIDER, one), (OPTIONS, &"A".repeat(100_000))]);
    assert!(error.contains("more than 4096 bytes"), "{error}");
    assert!(parse(&[(PROVIDER, one)]).contains("absent"));

    let (annotations, _) = encrypt(b"layer", &[Recipient::Jwe(public())]);
    let crowded = edited(&annotations, JWE, |json| {
        let one = json!({"encrypted_key": json["encrypted_key"]});
        json["recipients"] = vec![one; RECIPIENT_LIMIT + 1].into();
    });
    let error = EncryptedLayer::parse(&crowded).err().unwrap().to_string();
    assert!(error.contains("more than 16 recipients"), "{error}");

    let mut ring = KeyRing::new();
    let key = KEY.to_pkcs8_pem(LineEnding::LF).unwrap();
    let full = (0..1000).map_while(|_| ring.add_private_key(key.as_bytes()).ok()).count();
    assert_eq!(full, nacre_image_encryption::KEY_LIMIT);
    let too_many: Vec<Recipient> = (0..=RECIPIENT_LIMIT).map(|_| provider()).collect();
    for recipients in [too_many, Vec::new()] {
        let encryptor = LayerEncryptor::new(Vec::new(), Algorithm::Sha256).unwrap();
        let (sealed, _) = encryptor.finish().unwrap();
        assert!(sealed.annotations(&recipients, &Annotations::new()).is_err());
    }
}

/// What changes the meaning of a message must not pass unseen.
#[test]
fn messages_with_other_algorithms_or_parameters_are_refused() {
    let (annotations, blob) = encrypt(b"layer", &[Recipient::Jwe(public())]);
    assert_eq!(decrypt(&annotations, &blob, &[]).unwrap(), b"layer");
    let set = |name: &'static str, value: Value| {
        let edit = with_header(move |header| header[name] = value);
        EncryptedLayer::parse(&edited(&annotations, JWE, edit)).err().map(|e| e.to_string())
    };
    for (name, value, expected) in [
        ("alg", json!("dir"), "\"dir\" is not supported"),
        ("alg", json!("RSA1_5"), "\"RSA1_5\" is not supported"),
        ("alg", json!("PBES2-HS256+A128KW"), "is not supported"),
        ("enc", json!("A128CBC-HS256"), "is not supported"),
        ("alg", json!("RSA-OAEP"), "malformed"),
        ("zip", json!("DEF"), "malformed"),
        ("crit", json!(["exp"]), "malformed"),
        ("apu", json!("QWxpY2U"), "malformed"),
        ("kid", json!("k".repeat(700)), "more than 256 bytes"),
    ] {
        let error = set(name, value).unwrap_or_default();
        assert!(error.contains(expected), "{name}: {error}");
    }
    // Unprotected parameters must not repeat protected ones.
    let twice = edited(&annotations, JWE, |json| json["header"] = json!({"enc": "A256GCM"}));
    assert!(EncryptedLayer::parse(&twice).is_err());
    // A point that is not on the curve.
    let elsewhere = edited(
        &annotations,
        JWE,
        with_header(|header| header["epk"]["y"] = header["epk"]["x"].clone()),
    );
    assert!(matches!(
        decrypt(&elsewhere, &blob, &[]),
        Err(EncryptionError::NoKey { tried: 1, .. })
    ));
    // The header is authenticated.
    let renamed = edited(&annotations, JWE, with_header(|header| header["kid"] = "x".into()));
    assert!(matches!(decrypt(&renamed, &blob, &[]), Err(EncryptionError::NoKey { .. })));
}

/// RFC 7517, appendices A.1 and A.2: an EC key, which is the same in both.
#[test]
fn json_web_keys_are_read() {
    let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
    let d = "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE";
    let key = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "enc", "kid": "1"});
    let public = PublicKey::parse(key.to_string().as_bytes()).unwrap();
    assert_eq!(public.kind(), "P-256");
    let (annotations, blob) = encrypt(b"layer", &[Recipient::Jwe(public)]);
    let mut ring = KeyRing::new();
    let key = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "d": d});
    ring.add_private_key(key.to_string().as_bytes()).unwrap();
    let mut cipher = EncryptedLayer::parse(&annotations).unwrap().unwrap(&ring).unwrap();
    let mut plaintext = blob;
    cipher.decrypt(&mut plaintext);
    assert!(cipher.finish().is_ok() && plaintext == b"layer");
    for other in [
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": x}),
        json!({"kty": "EC", "crv": "secp256k1", "x": x, "y": y}),
        json!({"kty": "oct", "k": "AAAA"}),
    ] {
        assert!(PublicKey::parse(other.to_string().as_bytes()).is_err(), "{other}");
        assert!(ring.add_private_key(other.to_string().as_bytes()).is_err(), "{other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_layer_comes_back_whatever_the_pieces(
        plaintext in prop::collection::vec(any::<u8>(), 0..3000),
        pieces in prop::collection::vec(0_usize..200, 0..20),
    ) {
        let (annotations, blob) = encrypt(&plaintext, &[provider()]);
        prop_assert_eq!(decrypt(&annotations, &blob, &pieces), Ok(plaintext));
    }

    #[test]
    fn every_change_of_the_blob_is_found(
        plaintext in prop::collection::vec(any::<u8>(), 1..300),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
        cut in any::<bool>(),
    ) {
        let (annotations, mut blob) = encrypt(&plaintext, &[provider()]);
        let at = at.index(blob.len());
        if cut { blob.truncate(at) } else { blob[at] ^= 1_u8 << bit }
        prop_assert_eq!(decrypt(&annotations, &blob, &[]), Err(EncryptionError::Changed));
    }

    /// Each bit of what wraps the key counts: nothing else than the layer ever comes out.
    #[test]
    fn no_change_of_the_annotations_yields_another_layer(
        jwe in any::<bool>(),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let recipients = [if jwe { Recipient::Jwe(public()) } else { provider() }];
        let (mut annotations, blob) = encrypt(b"layer", &recipients);
        let name = [if jwe { JWE } else { PROVIDER }, OPTIONS][which.index(2)];
        let mut value = STANDARD.decode(&annotations[name]).unwrap();
        let at = at.index(value.len());
        value[at] = byte;
        annotations.insert(name.to_owned(), STANDARD.encode(value));
        if let Ok(read) = decrypt(&annotations, &blob, &[]) {
            prop_assert_eq!(read, b"layer".as_slice());
        }
    }

    #[test]
    fn no_annotation_is_fatal(value in ".{0,200}", json in "\\PC{0,200}") {
        for name in [JWE, PROVIDER, OPTIONS] {
            let (mut annotations, _) = encrypt(b"", &[provider()]);
            annotations.insert(name.to_owned(), value.clone());
            let _ = EncryptedLayer::parse(&annotations);
            annotations.insert(name.to_owned(), STANDARD.encode(&json));
            let _ = EncryptedLayer::parse(&annotations);
        }
    }

    #[test]
    fn no_key_file_is_fatal(file in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        for file in [file, format!("-----BEGIN {text}").into_bytes(), format!("{{{text}").into_bytes()] {
            prop_assert!(PublicKey::parse(&file).is_err());
            prop_assert!(KeyRing::new().add_private_key(&file).is_err());
        }
    }
}
