//! A registry, a store and a key broker that answer with what the fuzzer makes up, at once.

#![allow(dead_code)] // each target uses its part

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use nacre_image_security::{Admitted, ImagePolicy, Refused, Sources, Subject};
use nacre_trust::{Algorithm, Digest};
use zeroize::Zeroizing;

#[derive(Default)]
pub struct Answers<'a> {
    pub manifest: Option<&'a [u8]>,
    pub referrers: Option<&'a [u8]>,
    pub blob: &'a [u8],
    pub lookaside: Option<&'a [u8]>,
    pub resource: &'a [u8],
}

#[async_trait]
impl Sources for Answers<'_> {
    async fn manifest(&self, _: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.manifest.map(<[u8]>::to_vec))
    }

    async fn referrers(&self, _: &Digest) -> Result<Option<Vec<u8>>, String> {
        Ok(self.referrers.map(<[u8]>::to_vec))
    }

    async fn blob(&self, _: &Digest, _: u64) -> Result<Vec<u8>, String> {
        Ok(self.blob.to_vec())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, String> {
        // One signature: the store has no second.
        Ok(self.lookaside.filter(|_| url.ends_with("-1")).map(<[u8]>::to_vec))
    }

    async fn resource(&self, _: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        Ok(Zeroizing::new(self.resource.to_vec()))
    }
}

pub fn decide(policy: &ImagePolicy, answers: &Answers<'_>) -> Result<Admitted, Refused> {
    let subject = Subject {
        host: "r.example".into(),
        path: "team/app".into(),
        tag: Some("v1".into()),
        digest: None,
        // Nobody ever signed it.
        manifests: vec![Digest::of(Algorithm::Sha256, b"an image of the fuzzer")],
    };
    let mut future = pin!(policy.admit(&subject, answers));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(decided) => decided,
        Poll::Pending => unreachable!("every answer is there at once"),
    }
}

/// That the answers do not admit, and that the reason is fit for a terminal.
pub fn refused(policy: &ImagePolicy, answers: &Answers<'_>) {
    let text = decide(policy, answers).expect_err("a signature of nobody").to_string();
    assert!(text.len() <= 600 && text.bytes().all(|b| (0x20..0x7f).contains(&b)));
}
