//! A name server for one name, as a cluster's DNS would be.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::namespaces::Namespaces;

/// Where pods find it.
pub(crate) const ADDRESS: &str = "10.88.0.1";

/// Keeps the name server running.
#[derive(Debug)]
pub(crate) struct ClusterDns {
    _alive: Arc<()>,
}

/// Answers `name` with `address`, and NXDOMAIN to all else, until the returned value is dropped.
pub(crate) fn serve(
    namespaces: &Namespaces,
    name: &'static str,
    address: Ipv4Addr,
) -> std::io::Result<ClusterDns> {
    let socket = namespaces.in_network(|| UdpSocket::bind((ADDRESS, 53)))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let alive = Arc::new(());
    let wanted = Arc::downgrade(&alive);
    std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
        let mut query = [0; 512];
        while wanted.strong_count() > 0 {
            match socket.recv_from(&mut query) {
                Ok((length, from)) => {
                    if let Some(answer) = answer(&query[..length], name, address) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(ClusterDns { _alive: alive })
}

/// RFC 1035: header of 12 bytes, then the question, which is sent back with the answer.
fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    const TYPE_A: [u8; 2] = [0, 1];
    let question = query.get(12..)?;
    let end = question.iter().position(|b| *b == 0)?;
    let (labels, rest) = question.split_at(end + 1);
    let kind = rest.get(..2)?;
    let known = labels == wire(name);
    let found = known && kind == TYPE_A;
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x85, if known { 0x80 } else { 0x83 }]);
    answer.extend([0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend_from_slice(labels);
    answer.extend_from_slice(rest.get(..4)?);
    if found {
        // Name: pointer to byte 12; type A, class IN, 60 s, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

fn wire(name: &str) -> Vec<u8> {
    let mut labels = Vec::new();
    for label in name.split('.') {
        labels.push(u8::try_from(label.len()).unwrap_or(0));
        labels.extend_from_slice(label.as_bytes());
    }
    labels.push(0);
    labels
}
