//! A blob that streams from a registry: exactly its size, and across cut connections.

use bytes::Bytes;
use nacre_trust::Digest;
use reqwest::{Response, StatusCode, header};

use crate::PullError;
use crate::reference::Reference;
use crate::registry::{Registry, Request, text};

/// A blob on its way. A cut connection is taken up where it was.
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    resource: String,
    what: &'a str,
    size: u64,
    done: u64,
    /// Bytes to drop because the registry started again from the first.
    skip: u64,
    response: Option<Response>,
    attempt: u32,
}

impl<'a> Blob<'a> {
    /// Nothing is asked for yet. The blob must have exactly `size` bytes.
    pub(crate) fn new(
        registry: &'a Registry,
        reference: &'a Reference,
        digest: Digest,
        size: u64,
        what: &'a str,
    ) -> Self {
        Self {
            registry,
            reference,
            resource: format!("blobs/{digest}"),
            what,
            size,
            done: 0,
            skip: 0,
            response: None,
            attempt: 1,
        }
    }

    /// The next piece; none after exactly the announced size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => self.open().await?,
            };
            let host = self.reference.registry();
            match self.registry.chunk(&mut response, host, self.what).await {
                Ok(Some(mut chunk)) => {
                    self.response = Some(response);
                    let skip =
                        usize::try_from(self.skip).map_or(chunk.len(), |n| n.min(chunk.len()));
                    chunk = chunk.split_off(skip);
                    self.skip -= skip as u64;
                    if chunk.is_empty() {
                        continue;
                    }
                    self.done += chunk.len() as u64;
                    if self.done > self.size {
                        return Err(self.size_mismatch("the registry sends more".into()));
                    }
                    return Ok(Some(chunk));
                }
                // Everything came; how the connection ended no longer matters.
                Ok(None) | Err(_) if self.done == self.size => return Ok(None),
                Ok(None) => {
                    return Err(self.size_mismatch(format!("it ended after {}", self.done)));
                }
                Err(failure) => self
                    .registry
                    .pause(&failure, &mut self.attempt)
                    .await
                    .map_err(|()| failure.error)?,
            }
        }
    }

    async fn open(&mut self) -> Result<Response, PullError> {
        let request = Request {
            reference: self.reference,
            resource: &self.resource,
            what: self.what,
            offset: self.done,
        };
        let response = self.registry.get(&request).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let expected = format!("bytes {}-", self.done);
            let range = text(response.headers(), header::CONTENT_RANGE.as_str());
            if !range.is_some_and(|range| range.starts_with(&expected)) {
                return Err(request.problem("it resumed at another place than asked".into()));
            }
        }
        self.skip = if partial { 0 } else { self.done };
        let expected = self.size - (self.done - self.skip);
        match response.content_length() {
            Some(length) if length != expected => {
                Err(self
                    .size_mismatch(format!("the registry has {}", length + self.done - self.skip)))
            }
            _ => Ok(response),
        }
    }

    fn size_mismatch(&self, actual: String) -> PullError {
        PullError::SizeMismatch { what: self.what.to_owned(), expected: self.size, actual }
    }
}
