//! `ConfigMaps`, Secrets, service accounts and claims of the owner's files, to be found by the pods that name them.

use std::collections::{BTreeMap, BTreeSet};

use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use base64::{DecodeError, Engine};

use super::decode::{Encoded, Placed, present};
use super::error::{Place, ReadError};
use super::objects::{Claim, ConfigMap, ObjectMeta, Secret, ServiceAccount};
use crate::workload::{Content, DataObject};

/// Name and namespace of an object.
type Key = (String, Option<String>);

#[derive(Default)]
pub(super) struct Store {
    config_maps: BTreeMap<Key, Stored>,
    secrets: BTreeMap<Key, Stored>,
    /// Whether a token is mounted, for accounts that say so.
    accounts: BTreeMap<Key, bool>,
    /// Whether a claim is for a block device.
    claims: BTreeMap<Key, bool>,
}

/// A `ConfigMap` or Secret.
pub(super) struct Stored {
    pub(super) object: DataObject,
    /// Keys of `binaryData`, which cannot become variables.
    pub(super) binary: BTreeSet<String>,
}

impl Store {
    pub(super) fn add_config_map(
        &mut self,
        place: &Place,
        map: ConfigMap,
    ) -> Result<(), ReadError> {
        let mut data: BTreeMap<_, _> = map
            .data
            .into_iter()
            .map(|(key, text)| (key, Content::new(text.into_bytes())))
            .collect();
        let mut binary = BTreeSet::new();
        for (key, text) in map.binary_data {
            if data.contains_key(&key) {
                return Err(text.place.invalid(
                    "stands in data too: a key of a ConfigMap is in data or in binaryData, remove one",
                ));
            }
            data.insert(key.clone(), decoded(&text)?);
            binary.insert(key);
        }
        add(&mut self.config_maps, place, &map.metadata, data, binary)
    }

    pub(super) fn add_secret(&mut self, place: &Place, secret: Secret) -> Result<(), ReadError> {
        let mut data = BTreeMap::new();
        for (key, text) in secret.data {
            data.insert(key, decoded(&text)?);
        }
        for (key, text) in secret.string_data {
            data.insert(key, Content::new(text.into_bytes()));
        }
        let binary = BTreeSet::new();
        add(&mut self.secrets, place, &secret.metadata, data, binary)
    }

    pub(super) fn add_account(&mut self, account: &ServiceAccount) -> Result<(), ReadError> {
        if let Some(automount) = account.automount_token {
            self.accounts.insert(key(&account.metadata)?, automount);
        }
        Ok(())
    }

    pub(super) fn add_claim(&mut self, claim: &Claim) -> Result<(), ReadError> {
        let block = is_block(claim.spec.volume_mode.as_ref())?;
        self.claims.insert(key(&claim.metadata)?, block);
        Ok(())
    }

    pub(super) fn config_map(&self, namespace: Option<&str>, name: &str) -> Option<&Stored> {
        find(&self.config_maps, namespace, name)
    }

    pub(super) fn secret(&self, namespace: Option<&str>, name: &str) -> Option<&Stored> {
        find(&self.secrets, namespace, name)
    }

    pub(super) fn account_automount(&self, namespace: Option<&str>, name: &str) -> Option<bool> {
        find(&self.accounts, namespace, name).copied()
    }

    pub(super) fn claim_is_block(&self, namespace: Option<&str>, name: &str) -> Option<bool> {
        find(&self.claims, namespace, name).copied()
    }

    /// All `ConfigMaps` and all Secrets, in the order of their names.
    pub(super) fn into_objects(self) -> (Vec<DataObject>, Vec<DataObject>) {
        let objects = |stored: BTreeMap<Key, Stored>| {
            stored.into_values().map(|stored| stored.object).collect()
        };
        (objects(self.config_maps), objects(self.secrets))
    }
}

/// `volumeMode` of a claim.
pub(super) fn is_block(mode: Option<&Placed<String>>) -> Result<bool, ReadError> {
    match mode.map(|mode| (mode.value.as_str(), &mode.place)) {
        None | Some(("Filesystem", _)) => Ok(false),
        Some(("Block", _)) => Ok(true),
        Some((_, place)) => Err(place.invalid("must be Filesystem or Block")),
    }
}

fn key(metadata: &Placed<ObjectMeta>) -> Result<Key, ReadError> {
    let Some(name) = present(&metadata.value.name) else {
        return Err(metadata
            .place
            .invalid("has no name: an object that pods refer to needs metadata.name"));
    };
    let namespace = present(&metadata.value.namespace);
    Ok((name.value.clone(), namespace.map(|namespace| namespace.value.clone())))
}

fn add(
    objects: &mut BTreeMap<Key, Stored>,
    place: &Place,
    metadata: &Placed<ObjectMeta>,
    data: BTreeMap<String, Content>,
    binary: BTreeSet<String>,
) -> Result<(), ReadError> {
    let key = key(metadata)?;
    if let Some(first) = objects.get(&key) {
        return Err(place.invalid(format!(
            "{} stands twice, first at {}:{}: remove one",
            key.0, first.object.file, first.object.line
        )));
    }
    let object = DataObject {
        name: key.0.clone(),
        namespace: key.1.clone(),
        data,
        file: place.file.to_string(),
        line: place.line,
    };
    objects.insert(key, Stored { object, binary });
    Ok(())
}

/// The object of that name in the same namespace. A namespace that is not written may be any.
fn find<'a, T>(
    objects: &'a BTreeMap<Key, T>,
    namespace: Option<&str>,
    name: &str,
) -> Option<&'a T> {
    let exact = (name.to_owned(), namespace.map(str::to_owned));
    objects.get(&exact).or_else(|| {
        let mut candidates = objects.iter().filter(|((candidate, its_namespace), _)| {
            candidate == name && (namespace.is_none() || its_namespace.is_none())
        });
        let found = candidates.next();
        // Two in different namespaces: which one is meant is not known.
        found.filter(|_| candidates.next().is_none()).map(|(_, object)| object)
    })
}

/// Base64 as Kubernetes reads it: line breaks do not count, nor do the bits behind the last byte.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, PAD.with_decode_allow_trailing_bits(true));

fn decoded(text: &Placed<Encoded>) -> Result<Content, ReadError> {
    let joined: String =
        text.value.0.chars().filter(|letter| !matches!(letter, '\n' | '\r')).collect();
    BASE64.decode(joined).map(Content::new).map_err(|_: DecodeError| {
        text.place
            .invalid("is not base64: encode the value, or (in a Secret) move it to stringData")
    })
}
