//! The door of the fuzz targets (`shim/fuzz`) to what parses others' bytes: the guest's answers and files of storage
//! drivers. Built for them alone.

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use nacre_protocol::agent::StatsContainerResponse;
use nacre_protocol::pull_progress;
use protobuf::Message;

use crate::block_volumes::MountInfo;
use crate::{error, pull_progress as progress, stats};

/// An agent's statistics, and what containerd gets for them: most entries of a list, and longest name in bytes.
#[must_use]
pub fn statistics(bytes: &[u8]) -> Option<(usize, usize)> {
    let answer = StatsContainerResponse::parse_from_bytes(bytes).ok()?;
    let converted = stats::convert(&answer).expect("messages in memory can be written");
    let metrics = Metrics::parse_from_bytes(&converted.value).expect("it was just written");
    let lists = [metrics.network.len(), metrics.hugetlb.len(), metrics.io.usage.len()];
    let names = metrics.network.iter().map(|network| network.name.len());
    let names = names.chain(metrics.hugetlb.iter().map(|huge| huge.pagesize.len()));
    Some((lists.into_iter().max().unwrap_or(0), names.max().unwrap_or(0)))
}

/// An answer about pulls, in the words that reach the log.
#[must_use]
pub fn pulls(text: &str) -> Vec<String> {
    pull_progress::parse(text).iter().map(progress::in_words).collect()
}

/// Words of the guest, as they reach an error or a log.
#[must_use]
pub fn words(text: &str, most: usize) -> String {
    error::printable(text, most)
}

/// A storage driver's description of a direct volume: the device.
///
/// # Errors
/// What is wrong with it.
pub fn direct_volume(text: &str) -> Result<std::path::PathBuf, String> {
    MountInfo::parse(text).map(|info| info.device)
}
