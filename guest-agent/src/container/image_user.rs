//! Containers whose user the host leaves to their image: where containerd has a name to look up and the node
//! has not the image's files, the request comes with numbers that stand for the answer.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use nacre_image_pull::{Image, ImageUser};
use nacre_policy::{Gate, ImageUserRequest};
use nacre_protocol::image_user::{IMAGE_GROUP, IMAGE_GROUPS, IMAGE_USER, is_marker};
use oci_spec::runtime::User;

use crate::error::RpcError;

/// Most supplementary groups of a process (`NGROUPS_MAX` of Linux).
const MOST_GROUPS: usize = 65_536;

/// Whether any of a user's numbers stands for one that the image has.
pub(super) fn is_wanted(user: &User) -> bool {
    let groups = user.additional_gids().iter().flatten().copied();
    [user.uid(), user.gid()].into_iter().chain(groups).any(is_marker)
}

/// The answer for one container: what its image says, as far as the policy allows it.
#[derive(Debug)]
pub(super) struct UserOfImage {
    gate: Arc<Gate>,
    container_id: String,
    /// The owner's name for the container.
    name: String,
    image: ImageUser,
}

impl UserOfImage {
    /// Looks the user up in a root that nothing has run in yet.
    pub(super) fn read(
        gate: &Arc<Gate>,
        container_id: &str,
        name: &str,
        image: Option<&Image>,
        rootfs: &Path,
    ) -> Result<Self, RpcError> {
        let image = image.ok_or_else(|| {
            let why = "the pod's own container has no image whose user it could have; give the node's \
                       sandbox image a number as USER";
            RpcError::invalid("OCI.Process.User", why)
        })?;
        let context = format!("failed to create container {container_id:?}");
        let image =
            ImageUser::read(&image.config, rootfs).map_err(|e| RpcError::internal(context, e))?;
        let (container_id, name) = (container_id.to_owned(), name.to_owned());
        Ok(Self { gate: Arc::clone(gate), container_id, name, image })
    }

    /// Gives a process the user that its numbers stand for, if the policy allows that.
    pub(super) fn put(&self, field: &str, user: &mut User) -> Result<(), RpcError> {
        let request = self.ask(field, user)?;
        let allowed = self.gate.judge(request);
        let allowed = allowed.map_err(|denied| RpcError::denied(denied.denial()))?;
        // It changes nothing of the pod: whatever comes of it, the policy has nothing to undo.
        let _ = allowed.witness().settle(Ok::<_, Infallible>(()));
        let ImageUserRequest { uid, gid, groups, .. } = allowed.get();
        user.set_uid(*uid).set_gid(*gid).set_additional_gids(Some(groups.clone()));
        Ok(())
    }

    fn ask(&self, field: &str, user: &User) -> Result<ImageUserRequest, RpcError> {
        let uid = match user.uid() {
            IMAGE_USER => self.image.uid(),
            IMAGE_GROUP | IMAGE_GROUPS => {
                return Err(RpcError::invalid(format!("{field}.UID"), "stands for a group"));
            }
            number => number,
        };
        let gid = match user.gid() {
            IMAGE_GROUPS => {
                return Err(RpcError::invalid(format!("{field}.GID"), "stands for several groups"));
            }
            gid => self.group(field, gid)?,
        };
        let mut groups = Vec::new();
        for group in user.additional_gids().iter().flatten() {
            match *group {
                IMAGE_GROUPS => groups.extend_from_slice(self.image.listed_groups()),
                group => groups.push(self.group(field, group)?),
            }
        }
        let mut seen = HashSet::new();
        groups.retain(|group| seen.insert(*group));
        if groups.len() > MOST_GROUPS {
            let why = "are more than Linux allows (65536), with those that the image has";
            return Err(RpcError::invalid(format!("{field}.AdditionalGids"), why));
        }
        let (container_id, name) = (self.container_id.clone(), self.name.clone());
        Ok(ImageUserRequest { container_id, name, uid, gid, groups })
    }

    fn group(&self, field: &str, number: u32) -> Result<u32, RpcError> {
        match number {
            IMAGE_USER => Ok(self.image.primary_group()),
            IMAGE_GROUP => {
                let named = self.image.group().map_err(|e| RpcError::invalid(field, e))?;
                named.ok_or_else(|| {
                    let why = "stands for the group that the image's User names, and it names none";
                    RpcError::invalid(format!("{field}.GID"), why)
                })
            }
            number => Ok(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use nacre_policy::Policy;
    use oci_spec::image::ImageConfiguration;
    use oci_spec::runtime::UserBuilder;

    use super::*;

    /// The image's `User` for a container of an owner who allows 100 with 101, 102 and, when asked for, 5000.
    fn of(image_user: &str) -> UserOfImage {
        let rootfs = tempfile::tempdir().unwrap();
        std::fs::create_dir(rootfs.path().join("etc")).unwrap();
        let file = |name: &str, text: &str| std::fs::write(rootfs.path().join(name), text).unwrap();
        file("etc/passwd", "root:x:0:0::/:\napp:x:100:101::/:\n");
        file("etc/group", "root:x:0:\nlogs:x:102:app\nstaff:x:50:\n");
        let config: ImageConfiguration = serde_json::from_str(&format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},
                "config":{{"User":{image_user:?}}}}}"#
        ))
        .unwrap();
        let policy = "package agent_policy\nimport rego.v1\n\
            users := [[100, 101, {101, 102}], [100, 101, {101, 102, 5000}], [100, 50, {50, 102}], \
                      [100, 7, {7}]]\n\
            ImageUserRequest if {\n\tinput.name == \"app\"\n\tsome user in users\n\
            \t[input.uid, input.gid, {group | some group in input.groups}] == user\n}\n";
        UserOfImage {
            gate: Gate::bound_to(Policy::parse(policy).unwrap()),
            container_id: "c".into(),
            name: "app".into(),
            image: ImageUser::read(&config, rootfs.path()).unwrap(),
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        UserBuilder::default().uid(uid).gid(gid).additional_gids(groups.to_vec()).build().unwrap()
    }

    #[test]
    fn what_a_number_stands_for_is_the_images() {
        for (image, asked, answer) in [
            (
                "app",
                user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS]),
                user(100, 101, &[101, 102]),
            ),
            // Groups that the pod adds stay; none is there twice.
            (
                "app",
                user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS, 5000, 102]),
                user(100, 101, &[101, 102, 5000]),
            ),
            ("app", user(IMAGE_USER, 7, &[7]), user(100, 7, &[7])),
            (
                "app:staff",
                user(IMAGE_USER, IMAGE_GROUP, &[IMAGE_GROUP, IMAGE_GROUPS]),
                user(100, 50, &[50, 102]),
            ),
            // As the kubelet asks, which drops the group.
            (
                "app:ghosts",
                user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS]),
                user(100, 101, &[101, 102]),
            ),
        ] {
            let mut put = asked.clone();
            assert!(is_wanted(&put));
            of(image).put("f", &mut put).unwrap_or_else(|e| panic!("{image} {asked:?}: {e}"));
            assert_eq!(put, answer, "{image}");
        }
        assert!(!is_wanted(&user(100, 101, &[101, 102])));
    }

    #[test]
    fn what_the_owner_does_not_want_does_not_run() {
        // Of an image with another user, with groups that nobody asked for or without those that somebody did.
        for (image, asked) in [
            ("root", user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS])),
            ("", user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS])),
            ("100", user(0, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS])),
            ("app", user(IMAGE_USER, 0, &[0])),
            ("app", user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, IMAGE_GROUPS, 0])),
            ("app", user(IMAGE_USER, IMAGE_USER, &[IMAGE_GROUPS])),
        ] {
            let mut put = asked.clone();
            let error = of(image).put("f", &mut put).unwrap_err();
            assert!(matches!(error, RpcError::Denied(_)), "{image} {asked:?}: {error}");
            assert_eq!(put, asked, "nothing is half put");
        }
        let mut other = of("app");
        other.name = "other".into();
        assert!(other.put("f", &mut user(IMAGE_USER, IMAGE_USER, &[IMAGE_USER, 102])).is_err());
    }

    #[test]
    fn numbers_in_places_of_others_are_refused() {
        for (image, asked, says) in [
            ("app", user(IMAGE_GROUP, 101, &[]), "f.UID"),
            ("app", user(IMAGE_GROUPS, 101, &[]), "f.UID"),
            ("app", user(IMAGE_USER, IMAGE_GROUPS, &[]), "f.GID"),
            ("app", user(IMAGE_USER, IMAGE_GROUP, &[]), "names none"),
            ("app:ghosts", user(IMAGE_USER, IMAGE_GROUP, &[]), "ghosts"),
            ("app:ghosts", user(100, 101, &[IMAGE_GROUP]), "ghosts"),
        ] {
            let error = of(image).put("f", &mut asked.clone()).unwrap_err();
            assert!(matches!(error, RpcError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
