//! Tells in the log how far a pull has come while its container is made: a large image takes minutes, and
//! whoever waits wants to know for what.

use std::convert::Infallible;
use std::time::Duration;

use nacre_protocol::pull_progress::PullProgress;

use crate::sandbox::Sandbox;

/// How often the guest is asked. Pulls that take less are not worth a line.
const EVERY: Duration = Duration::from_secs(3);

/// Waits for `creating`, which makes container `id`, and meanwhile logs what the guest says of its pull.
pub(crate) async fn logged<T>(sandbox: &Sandbox, id: &str, creating: impl Future<Output = T>) -> T {
    tokio::select! {
        done = creating => done,
        never = watch(sandbox, id) => match never {},
    }
}

async fn watch(sandbox: &Sandbox, id: &str) -> Infallible {
    let mut told = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let pulls = match sandbox.agent.pull_progress().await {
            Ok(pulls) => pulls,
            Err(error) => {
                tracing::debug!("container {id}: no word of its pull from the guest: {error}");
                continue;
            }
        };
        let pull = pulls.into_iter().find(|pull| pull.container == id);
        if let Some(pull) = pull.filter(|pull| told.as_ref() != Some(pull)) {
            tracing::info!("container {id}: pulling its image: {}", in_words(&pull));
            told = Some(pull);
        }
    }
}

/// Such as "3 of 7 layers, 40 of 120 MiB". The numbers are the guest's word.
pub(crate) fn in_words(pull: &PullProgress) -> String {
    let PullProgress { layers_done, layers, bytes_done, bytes, .. } = pull;
    let (done, all) = (bytes_done >> 20, bytes.div_ceil(1 << 20));
    format!("{layers_done} of {layers} layers, {done} of {all} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_never_said_to_be_nothing() {
        let pull = PullProgress {
            container: "c".into(),
            layers_done: 3,
            layers: 7,
            bytes_done: (41 << 20) - 1,
            bytes: (119 << 20) + 1,
        };
        assert_eq!(in_words(&pull), "3 of 7 layers, 40 of 120 MiB");
    }
}
