//! Bodies of requests: bounded each, bounded in time, and bounded altogether.

use std::future::poll_fn;
use std::pin::pin;

use axum::extract::Request;
use axum::http::header;
use hyper::body::Body as _;
use nacre_protocol::kbs::ErrorKind;
use tokio::sync::OwnedSemaphorePermit;

use super::Caller;
use super::refusal::Refusal;
use crate::broker::Broker;

/// Bodies take memory in pieces of this many bytes.
const UNIT: usize = 1024;
/// Pieces altogether.
pub(crate) const UNITS: usize = 64 * 1024;
/// What a client sends beyond a limit is read and forgotten up to as many bytes, so that it sees the
/// answer.
const FORGOTTEN: usize = 4 * 1024 * 1024;

/// A body, and its share of the memory that bodies have.
pub(super) struct Whole {
    bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

impl std::ops::Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

enum Trouble {
    TooLarge,
    Cut,
}

/// The whole body, if it is no larger than `limit` and comes in time.
pub(super) async fn body(
    broker: &Broker,
    caller: &Caller,
    request: Request,
    limit: usize,
) -> Result<Whole, Refusal> {
    let told = request.headers().get(header::CONTENT_LENGTH);
    let told = told.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(limit);
    // What is too large is not kept.
    let share = if told > limit { 0 } else { told.div_ceil(UNIT) };
    let share = u32::try_from(share).unwrap_or(u32::MAX);
    let read = async {
        let share = broker.bodies.clone().acquire_many_owned(share).await;
        let share = share.map_err(|_| Trouble::Cut)?;
        let kept = if told > limit { 0 } else { limit };
        let bytes = collect(request.into_body(), kept).await?;
        Ok(Whole { bytes, _share: share })
    };
    let invalid = |detail: &str| caller.refuse(ErrorKind::InvalidRequest, detail);
    match tokio::time::timeout(broker.config.request_time(), read).await {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(Trouble::TooLarge)) => {
            Err(invalid(&format!("the request's body has more than {limit} bytes")).too_large())
        }
        Ok(Err(Trouble::Cut)) => Err(invalid("the request's body is cut off")),
        Err(_) => Err(invalid("the request's body did not come in time")),
    }
}

async fn collect(body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Trouble> {
    let mut body = pin!(body);
    let (mut bytes, mut forgotten) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| Trouble::Cut)?;
        let Some(data) = frame.data_ref() else { continue };
        if forgotten > 0 || bytes.len() + data.len() > limit {
            forgotten += data.len();
            bytes = Vec::new();
            if forgotten > FORGOTTEN {
                break;
            }
        } else {
            bytes.extend_from_slice(data);
        }
    }
    if forgotten > 0 { Err(Trouble::TooLarge) } else { Ok(bytes) }
}
