//! The annotation that says what a pod's images take of its machine's memory.

use nacre_configuration::sizing::annotation::IMAGES_MIB;
use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::workload::Workload;
use nacre_policy_author::yaml::Insertion;
use nacre_protocol::guest_memory::StoredSize;

use super::{Made, inserted, named};

/// The annotation's value, if it is to be put into the YAML; what there is to say about it otherwise.
pub(super) fn images(
    workload: &Workload,
    stored: Result<Option<StoredSize>, String>,
    into_yaml: bool,
) -> Option<String> {
    let place = format!("{}:{}: {}", workload.source, workload.line, named(workload));
    let unknown = |why: &str| {
        eprintln!(
            "note: {place}: {why}: give it the annotation {IMAGES_MIB} with the unpacked size of its images, or \
             the node decides how much memory they get"
        );
    };
    let stored = match stored {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            unknown("nobody can tell what its encrypted images take without their keys");
            return None;
        }
        Err(why) => {
            unknown(&format!("what its images take is not known ({why})"));
            return None;
        }
    };
    let mebibytes = stored.mebibytes().to_string();
    match workload.pod.annotations.get(IMAGES_MIB) {
        Some(said) if said.parse::<u64>().is_ok_and(|said| said >= stored.mebibytes()) => None,
        Some(said) => {
            eprintln!(
                "note: {place}: its images take {mebibytes} MiB, but {IMAGES_MIB} is {said:?}"
            );
            None
        }
        None if into_yaml => Some(mebibytes),
        None => {
            eprintln!(
                "note: {place}: its images take {mebibytes} MiB: annotation {IMAGES_MIB}: {mebibytes:?}"
            );
            None
        }
    }
}

/// The files with the annotation, too. The texts have changed since they were read: they are read again, for
/// where everything stands now.
pub(super) fn inserted_sizes(
    files: &[SourceFile],
    made: &[Made<'_>],
) -> anyhow::Result<Vec<SourceFile>> {
    let reading = read(files)?;
    let same = |a: &Workload, b: &Workload| {
        (&a.source, a.document, &a.kind, &a.object_name, &a.namespace)
            == (&b.source, b.document, &b.kind, &b.object_name, &b.namespace)
    };
    let insertions = made.iter().filter_map(|made| {
        let workload = reading.workloads.iter().find(|found| same(found, made.workload))?;
        let value = made.images_mib.as_deref()?;
        Some(Insertion { workload, annotation: IMAGES_MIB, value, pinned: &[] })
    });
    let insertions: Vec<_> = insertions.collect();
    inserted(files, &insertions)
}
