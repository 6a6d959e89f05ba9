//! Whether QEMU's user (`vm.user`) may open what QEMU opens by its name.

use std::path::PathBuf;

use super::Question;
use super::finding::{Finding, Status, Tee};
use super::host::{Device, Host};
use super::image::Image;
use crate::{Accelerator, HostUser, How, Opened, QuoteService, UnknownUser, UserError};

/// What a host says of a user and something that QEMU opens.
pub type UserAccess = Result<(), UserProblem>;

/// Why a user is none for QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserProblem {
    /// It does not exist, may not open something, or the host does not say: with what to do.
    Unfit(String),
    /// This process may not find out.
    Unseen,
}

impl From<UnknownUser> for UserProblem {
    fn from(unknown: UnknownUser) -> UserProblem {
        UserProblem::Unfit(unknown.to_string())
    }
}

impl From<UserError> for UserProblem {
    fn from(error: UserError) -> UserProblem {
        match error {
            UserError::NotRoot { .. } => UserProblem::Unseen,
            UserError::Closed { .. } | UserError::Host { .. } => {
                UserProblem::Unfit(error.to_string())
            }
        }
    }
}

/// Which guests something is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    Plain,
    Snp,
    Tdx,
}

impl For {
    fn is_for(self, tee: Tee) -> bool {
        match self {
            For::All => true,
            For::Plain => matches!(tee, Tee::None | Tee::EmulatedSnp),
            For::Snp => tee == Tee::Snp,
            For::Tdx => tee == Tee::Tdx,
        }
    }
}

/// What was found: nothing where QEMU runs as root.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct User {
    asked: Vec<(For, UserAccess)>,
}

impl User {
    /// Asks for all that is there: what is absent is another finding's.
    pub(crate) fn gather(host: &dyn Host, question: &Question, image: &Image) -> User {
        if question.user.is_empty() {
            return User { asked: Vec::new() };
        }
        let Question { firmware, .. } = question;
        let there = |path: &&PathBuf| host.look(path).is_ok();
        let mut parts = vec![(For::All, question.qemu.clone(), How::Run)];
        let plain = firmware.plain.iter().find(there).cloned();
        parts.extend(plain.map(|path| (For::Plain, path, How::Read)));
        parts.push((For::Snp, firmware.snp.clone(), How::Read));
        parts.push((For::Tdx, firmware.tdx.clone(), How::Read));
        let files = image.as_ref().map(|image| image.files.as_slice()).unwrap_or_default();
        let files = files.iter().map(|(name, _)| question.image.directory.join(name));
        parts.extend(files.map(|path| (For::All, path, How::Read)));
        let device = |device: Device| PathBuf::from(device.path());
        for tee in [For::Snp, For::Tdx] {
            parts.push((tee, device(Device::Kvm), How::Use));
        }
        if question.accelerator != Accelerator::Tcg {
            parts.push((For::Plain, device(Device::Kvm), How::Use));
        }
        parts.push((For::Snp, device(Device::Sev), How::Use));
        if let Some(QuoteService::Unix(socket)) = &question.quote_generation {
            parts.push((For::Tdx, socket.clone(), How::Connect));
        }
        let parts = parts.into_iter().filter(|(_, path, _)| there(&path));
        let ask = |(tee, path, how)| (tee, host.may_open(&question.user, Opened { path, how }));
        User { asked: parts.map(ask).collect() }
    }
}

pub(crate) fn finding(user: &User, name: &str, tee: Tee) -> Finding {
    const ID: &str = "qemu.user";
    if name.is_empty() {
        return Finding::pass(ID, "root, without capabilities (vm.user is empty)");
    }
    let problems = || {
        let asked = user.asked.iter().filter(|(part, _)| part.is_for(tee));
        asked.filter_map(|(_, access)| access.as_ref().err())
    };
    let unfit = problems().find_map(|problem| match problem {
        UserProblem::Unfit(why) => Some(why),
        UserProblem::Unseen => None,
    });
    match (unfit, problems().next()) {
        (Some(why), _) => {
            Finding::new(ID, Status::Fail, why, "do what it says, or leave vm.user empty")
        }
        (None, Some(_)) => Finding::unseen(ID, format!("what {name} may open")),
        (None, None) => Finding::pass(ID, format!("{name} may open what QEMU needs")),
    }
}

/// Asks this host.
pub(crate) fn may_open(name: &str, opened: &Opened) -> UserAccess {
    let user = HostUser::find(name)?;
    let group = match opened.how {
        How::Use | How::Connect => user.group_of(&opened.path),
        How::Run | How::Read => None,
    };
    Ok(user.may_open(group.into_iter().collect(), std::slice::from_ref(opened))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::hosts;
    use crate::probe::{Facts, Kind, Report};

    fn report(user: &str, closed: &[&str], tee: Tee) -> Report {
        let mut host = hosts::tdx();
        host.others.insert("/dev/kvm".into(), Kind::Other);
        host.closed = closed.iter().map(PathBuf::from).collect();
        let question = Question { user: user.to_owned(), ..hosts::question() };
        Facts::gather(&host, &question).report(&question, tee)
    }

    fn status(user: &str, closed: &[&str], tee: Tee) -> Status {
        let report = report(user, closed, tee);
        report.findings.iter().find(|finding| finding.id == "qemu.user").unwrap().status
    }

    #[test]
    fn a_user_is_asked_for_what_guests_of_that_kind_need() {
        assert_eq!(status("", &[hosts::QEMU], Tee::None), Status::Pass);
        assert_eq!(status("nacre-vm", &[], Tee::Tdx), Status::Pass);
        for (closed, tee, expected) in [
            (hosts::QEMU, Tee::None, Status::Fail),
            ("/dev/kvm", Tee::None, Status::Fail),
            (hosts::QUOTES, Tee::Tdx, Status::Fail),
            // Guests without protection ask nobody for quotes.
            (hosts::QUOTES, Tee::None, Status::Pass),
        ] {
            assert_eq!(status("nacre-vm", &[closed], tee), expected, "{closed} {tee}");
        }
        let finding = |user: &str| {
            let report = report(user, &["/dev/kvm"], Tee::Tdx);
            report.findings.into_iter().find(|finding| finding.id == "qemu.user").unwrap()
        };
        assert!(finding("nacre-vm").found.contains("/dev/kvm"));
    }

    #[test]
    fn a_process_without_root_does_not_know() {
        let not_root = UserError::NotRoot { user: HostUser::find("9:9").unwrap() };
        let user = User { asked: vec![(For::All, Err(not_root.into()))] };
        assert_eq!(finding(&user, "nacre-vm", Tee::None).status, Status::Unknown);
        let unknown = may_open("no-such-user-here", &Opened { path: "/".into(), how: How::Read });
        assert!(
            matches!(unknown, Err(UserProblem::Unfit(why)) if why.contains("no-such-user-here"))
        );
    }
}
