//! What `--explain` says: which bytes were measured, and what came of them.

use std::fmt::Write as _;

use nacre_measurement::tdx::Prediction;
use serde_json::{Value, json};

use super::launch::{Digests, Measured};

/// For every prediction, in words that a reader may rely on.
pub(super) const BY_RULE: &str = "predicted by rule, never compared with hardware";

pub(super) fn text(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for source in &measured.sources {
        let (path, digest) = (source.path.display(), hex::encode(source.sha256));
        let _ = writeln!(text, "{:9} {path} ({} bytes, sha256 {digest})", source.what, source.size);
    }
    let _ = writeln!(text, "{:9} {:?}", "line", measured.command_line);
    for danger in &measured.dangers {
        let _ = writeln!(text, "{:9} {danger}", "accepted");
    }
    match &measured.digests {
        Digests::Snp(digests) => {
            let cpu = digests.cpu.unwrap_or("emulated");
            let smt = if digests.smt { "allowed" } else { "refused" };
            let _ = writeln!(text, "{:9} {cpu}, hyper-threads {smt}", "processor");
            for (name, key) in [("id key", digests.id_key), ("author", digests.author_key)] {
                if let Some(key) = key {
                    let _ = writeln!(text, "{name:9} {}", hex::encode(key));
                }
            }
            for (vcpus, digest) in &digests.by_vcpus {
                let _ = writeln!(text, "{vcpus:3} vcpus {}", hex::encode(digest));
            }
        }
        Digests::Tdx(tdx) => {
            let _ = writeln!(text, "{:9} {}", "mrtd", hex::encode(tdx.mr_td));
            for (number, prediction) in tdx.rtmr.iter().enumerate() {
                let _ = writeln!(text, "rtmr{number}     {prediction}");
                if let Prediction::ByRule { events, .. } = prediction {
                    let end = if events.is_empty() { " nothing" } else { "" };
                    let _ = writeln!(text, "          {BY_RULE}; extended with:{end}");
                    for event in events {
                        let digest = hex::encode(event.digest);
                        let _ = writeln!(text, "          {digest} {}", event.what);
                    }
                }
            }
        }
    }
    text
}

pub(super) fn json(measured: &Measured) -> Value {
    let sources = measured.sources.iter().map(|source| {
        let value = json!({
            "path": source.path.display().to_string(),
            "size": source.size,
            "sha256": hex::encode(source.sha256),
        });
        (source.what.to_owned(), value)
    });
    let mut value = Value::Object(sources.collect());
    value["command_line"] = measured.command_line.as_str().into();
    match &measured.digests {
        Digests::Snp(digests) => {
            value["cpu"] = digests.cpu.into();
            value["smt"] = digests.smt.into();
            value["id_key_digest"] = digests.id_key.map(hex::encode).into();
            value["author_key_digest"] = digests.author_key.map(hex::encode).into();
            let by_vcpus = digests.by_vcpus.iter();
            let by_vcpus =
                by_vcpus.map(|(vcpus, digest)| (vcpus.to_string(), hex::encode(digest).into()));
            value["measurements"] = Value::Object(by_vcpus.collect());
        }
        Digests::Tdx(tdx) => {
            value["mr_td"] = hex::encode(tdx.mr_td).into();
            value["rtmr"] = tdx.rtmr.iter().map(prediction).collect();
        }
    }
    value
}

/// A register for programs.
pub(super) fn prediction(prediction: &Prediction) -> Value {
    match prediction {
        Prediction::ByRule { value, events } => json!({
            "value": hex::encode(value),
            "basis": BY_RULE,
            "events": events.iter().map(|event| {
                json!({ "what": event.what, "digest": hex::encode(event.digest) })
            }).collect::<Vec<_>>(),
        }),
        Prediction::Unpredictable(reason) => json!({ "unpredictable": reason }),
    }
}
