//! Merges an image's configuration under a container's process, as containerd does (its
//! `oci.WithImageConfig`): what the container's spec says wins, the image fills what it leaves open.

use std::io::Read;
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Process;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

use crate::PullError;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// Who decides which user a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserSource {
    /// The spec's `user` stays as it is.
    Spec,
    /// The image's `User`, looked up in its own `/etc/passwd` and `/etc/group`.
    Image,
}

/// Fills `process` from the image: arguments (if it has none), environment (its own variables win),
/// working directory (if empty or `/`), and the user if the image is to decide.
///
/// # Errors
/// [`PullError::Process`] naming the field, if they do not make a process together; `process` is
/// unchanged then.
pub fn merge_process(
    config: &ImageConfiguration,
    process: &mut Process,
    user: UserSource,
    rootfs: &Path,
) -> Result<(), PullError> {
    let image = config.config().clone().unwrap_or_default();
    let mut merged = process.clone();
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        let entrypoint = image.entrypoint().iter().flatten();
        let args: Vec<String> = entrypoint.chain(image.cmd().iter().flatten()).cloned().collect();
        if args.is_empty() {
            return Err(bad(
                "args",
                "neither the container nor the image (Entrypoint, Cmd) names a program; give a command",
            ));
        }
        merged.set_args(Some(args));
    }
    let set = process.env().iter().flatten();
    merged.set_env(Some(merge_env(image.env().iter().flatten(), set)?));
    if process.cwd().as_os_str().is_empty() || process.cwd() == Path::new("/") {
        let cwd = image.working_dir().as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or("/");
        if !cwd.starts_with('/') {
            return Err(bad("cwd", format!("the image's WorkingDir {cwd:?} is not absolute")));
        }
        merged.set_cwd(cwd.into());
    }
    if user == UserSource::Image {
        let account = ImageUser::read(config, rootfs)?;
        let gid = account.group()?.unwrap_or(account.primary);
        let others = account.listed.into_iter().filter(|group| *group != gid);
        merged.user_mut().set_uid(account.uid).set_gid(gid);
        merged.user_mut().set_additional_gids(Some([gid].into_iter().chain(others).collect()));
    }
    *process = merged;
    Ok(())
}

/// The image's variables, then those of the container in place of equal names or behind them. A name
/// of the container's without `=` removes the image's variable.
fn merge_env<'a>(
    image: impl Iterator<Item = &'a String>,
    set: impl Iterator<Item = &'a String>,
) -> Result<Vec<String>, PullError> {
    let mut env: Vec<String> = image.cloned().collect();
    for variable in set {
        let name = name_of(variable);
        if !variable.contains('=') {
            env.retain(|other| name_of(other) != name);
        } else if let Some(other) = env.iter_mut().find(|other| name_of(other) == name) {
            other.clone_from(variable);
        } else {
            env.push(variable.clone());
        }
    }
    if let Some(bad_one) = env.iter().find(|variable| name_of(variable).is_empty()) {
        return Err(bad("env", format!("{bad_one:?} is not NAME=VALUE")));
    }
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.into());
    }
    Ok(env)
}

fn name_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

/// Who an image's `User` is, by the image's own `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    uid: u32,
    primary: u32,
    group: NamedGroup,
    listed: Vec<u32>,
}

/// What stands behind the `:` of `User`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NamedGroup {
    None,
    Known(u32),
    /// It is in no line of `/etc/group`, which matters to those alone who ask for it.
    Unknown(String),
}

impl ImageUser {
    /// Looks the `User` of an image up; `rootfs` has the image's files. No `User` means root.
    ///
    /// # Errors
    /// [`PullError::Process`] if the image does not know the name, or has no files that can be read.
    pub fn read(config: &ImageConfiguration, rootfs: &Path) -> Result<Self, PullError> {
        let user = config.config().as_ref().and_then(|image| image.user().as_deref());
        Self::find(user.unwrap_or_default(), &Accounts::read(rootfs)?)
    }

    /// User id.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Primary group of the user; 0 for a number that the image does not know.
    #[must_use]
    pub const fn primary_group(&self) -> u32 {
        self.primary
    }

    /// The group that `User` names beside the user, if any.
    ///
    /// # Errors
    /// [`PullError::Process`] if the image does not know the name.
    pub fn group(&self) -> Result<Option<u32>, PullError> {
        match &self.group {
            NamedGroup::None => Ok(None),
            NamedGroup::Known(gid) => Ok(Some(*gid)),
            NamedGroup::Unknown(name) => {
                Err(bad("user", format!("the image's group {name:?} is not in its /etc/group")))
            }
        }
    }

    /// Groups whose lines list the user. As for containerd, a group that is called like the user is none.
    #[must_use]
    pub fn listed_groups(&self) -> &[u32] {
        &self.listed
    }

    /// Reads `user[:group]`, each a name or a number. Empty means root.
    fn find(text: &str, accounts: &Accounts) -> Result<Self, PullError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number = parse_id(user);
        let known = match number {
            Some(uid) => accounts.users.iter().find(|known| known.uid == uid),
            None => accounts.users.iter().find(|known| known.name == user),
        };
        let uid = match (number, known) {
            (Some(uid), _) => uid,
            (None, Some(known)) => known.uid,
            (None, None) => {
                return Err(bad(
                    "user",
                    format!("the image's User {user:?} is not in its /etc/passwd"),
                ));
            }
        };
        let named = |name: &str| accounts.groups.iter().find(|known| known.name == name);
        let group = match group {
            None => NamedGroup::None,
            Some(group) => match parse_id(group).or_else(|| named(group).map(|known| known.gid)) {
                Some(gid) => NamedGroup::Known(gid),
                None => NamedGroup::Unknown(group.into()),
            },
        };
        let mut listed = Vec::new();
        for group in &accounts.groups {
            let member = known
                .is_some_and(|user| group.name != user.name && group.members.contains(&user.name));
            if member && !listed.contains(&group.gid) {
                listed.push(group.gid);
            }
        }
        let primary = known.map_or(0, |known| known.gid);
        Ok(Self { uid, primary, group, listed })
    }
}

/// Numbers up to 2^31 - 1, as containerd bounds them; anything else is taken for a name.
fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= i32::MAX as u32)
}

/// The image's users and groups, as far as its files can be read.
#[derive(Debug, Default)]
struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    fn read(rootfs: &Path) -> Result<Self, PullError> {
        let passwd = read_beneath(rootfs, "etc/passwd")?;
        let group = read_beneath(rootfs, "etc/group")?;
        // Lines that make no sense are skipped, as every C library does.
        let users = passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, _, uid, gid) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(User { name: name.into(), uid: parse_id(uid)?, gid: parse_id(gid)? })
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            let members = fields.next().unwrap_or_default().split(',');
            Some(Group {
                name: name.into(),
                gid: parse_id(gid)?,
                members: members.filter(|name| !name.is_empty()).map(Into::into).collect(),
            })
        });
        Ok(Self { users: users.collect(), groups: groups.collect() })
    }
}

/// A file of the image, found without leaving its root; empty if it is not there. The image's author
/// chose what is at that name: a link out, a pipe without writers, an endless file.
fn read_beneath(rootfs: &Path, name: &str) -> Result<String, PullError> {
    let failed =
        |e: std::io::Error| PullError::io(format!("failed to read the image's /{name}"), e);
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let root = open(rootfs, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, name, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(failed(e.into())),
    };
    let stat = fstat(&file).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(bad("user", format!("the image's /{name} is not a regular file")));
    }
    let mut content = Vec::new();
    std::fs::File::from(file).take(MAX_ACCOUNTS + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_ACCOUNTS {
        return Err(bad("user", format!("the image's /{name} is above {MAX_ACCOUNTS} bytes")));
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn bad(field: &'static str, problem: impl Into<String>) -> PullError {
    PullError::Process { field, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ImageConfiguration {
        let whole = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},"config":{json}}}"#
        );
        serde_json::from_str(&whole).unwrap()
    }

    fn process(json: &str) -> Process {
        serde_json::from_str(json).unwrap()
    }

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(
            root.path().join("etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nbroken line\napp:x:100:101::/:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(
            root.path().join("etc/group"),
            "root:x:0:root\nwheel:x:10:root,app\napp:x:105:app\nlogs:x:102:other,app\n",
        )
        .unwrap();
        root
    }

    #[test]
    fn the_image_fills_what_the_spec_leaves_open() {
        let image = config(
            r#"{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1","B=2","D=5"],"WorkingDir":"/w","User":"app"}"#,
        );
        let mut process = process(r#"{"cwd":"/","user":{},"env":["B=3","C=4","D"]}"#);
        let root = rootfs();
        merge_process(&image, &mut process, UserSource::Image, root.path()).unwrap();
        assert_eq!(process.args().as_deref().unwrap(), ["/e", "c"]);
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=3", "C=4", DEFAULT_PATH]);
        assert_eq!(process.cwd(), Path::new("/w"));
        assert_eq!((process.user().uid(), process.user().gid()), (100, 101));
        assert_eq!(process.user().additional_gids().as_deref().unwrap(), [101, 10, 102]);
    }

    #[test]
    fn the_spec_wins() {
        let image = config(
            r#"{"Entrypoint":["/e"],"Env":["PATH=/x"],"WorkingDir":"/w","User":"nobody-here"}"#,
        );
        let mut process =
            process(r#"{"cwd":"/mine","user":{"uid":7,"gid":8},"args":["/bin/x","y"]}"#);
        merge_process(&image, &mut process, UserSource::Spec, Path::new("/nowhere")).unwrap();
        assert_eq!(process.args().as_deref().unwrap(), ["/bin/x", "y"]);
        assert_eq!(process.env().as_deref().unwrap(), ["PATH=/x"]);
        assert_eq!(process.cwd(), Path::new("/mine"));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
    }

    #[test]
    fn users_are_looked_up_as_containerd_does() {
        let root = rootfs();
        for (text, uid, primary, group, listed) in [
            ("", 0, 0, None, vec![10]),
            ("0", 0, 0, None, vec![10]),
            ("app", 100, 101, None, vec![10, 102]),
            ("100", 100, 101, None, vec![10, 102]),
            ("app:wheel", 100, 101, Some(10), vec![10, 102]),
            ("app:55", 100, 101, Some(55), vec![10, 102]),
            ("4000", 4000, 0, None, vec![]),
            ("4000:app", 4000, 0, Some(105), vec![]),
            ("4000:4001", 4000, 0, Some(4001), vec![]),
        ] {
            let image = config(&format!(r#"{{"User":{text:?}}}"#));
            let user = ImageUser::read(&image, root.path()).unwrap();
            assert_eq!((user.uid(), user.primary_group()), (uid, primary), "{text}");
            assert_eq!((user.group().unwrap(), user.listed_groups()), (group, &*listed), "{text}");
        }
        assert_eq!(ImageUser::read(&config("{}"), root.path()).unwrap().uid(), 0);
        for text in ["nobody", "4294967295", "-1", "0x10"] {
            let image = config(&format!(r#"{{"User":{text:?}}}"#));
            assert!(ImageUser::read(&image, root.path()).is_err(), "{text}");
        }
        for text in ["app:nogroup", "app:"] {
            let image = config(&format!(r#"{{"User":{text:?}}}"#));
            assert!(ImageUser::read(&image, root.path()).unwrap().group().is_err(), "{text}");
        }
    }

    #[test]
    fn what_makes_no_process_is_refused_and_changes_nothing() {
        let root = rootfs();
        for (image, spec, field) in [
            ("{}", r#"{"cwd":"/","user":{}}"#, "args"),
            (r#"{"Cmd":["x"],"WorkingDir":"w"}"#, r#"{"cwd":"/","user":{}}"#, "cwd"),
            (r#"{"Cmd":["x"],"Env":["=x"]}"#, r#"{"cwd":"/","user":{}}"#, "env"),
            (r#"{"Cmd":["x"],"User":"ghost"}"#, r#"{"cwd":"/","user":{}}"#, "user"),
            (r#"{"Cmd":["x"],"User":"app:ghosts"}"#, r#"{"cwd":"/","user":{}}"#, "user"),
        ] {
            let mut process = process(spec);
            let before = process.clone();
            let result =
                merge_process(&config(image), &mut process, UserSource::Image, root.path());
            match result.expect_err(image) {
                PullError::Process { field: named, .. } => assert_eq!(named, field),
                other => panic!("{other:?}"),
            }
            assert_eq!(process, before);
        }
    }

    #[test]
    fn hostile_account_files_are_contained() {
        let root = rootfs();
        let passwd = root.path().join("etc/passwd");
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "app:x:1:1::/:/\n").unwrap();
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink(outside.path(), &passwd).unwrap();
        assert!(Accounts::read(root.path()).unwrap().users.is_empty(), "a link out finds nothing");
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(Accounts::read(root.path()).is_err(), "a pipe does not block");
        std::fs::remove_file(&passwd).unwrap();
        std::fs::write(&passwd, vec![b'a'; 2 << 20]).unwrap();
        assert!(Accounts::read(root.path()).is_err(), "too large");
    }
}
