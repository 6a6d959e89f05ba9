//! Taps and the redirects between them and the pod's interfaces. Runs inside the namespace.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};
use rtnetlink::{Handle, LinkUnspec};

use crate::{Interface, Layout, NetworkError, collect, sys};

/// The kernel numbers the taps.
const TAP_PATTERN: &str = "nacre%d";

/// Handle of the ingress queueing discipline, `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// `ETH_P_ALL` as `tc` wants it: in network byte order.
const EVERY_PROTOCOL: u16 = 3u16.to_be();

const INGRESS_TAKEN: &str = "; another virtual machine or a CNI plugin (bandwidth) already owns the ingress \
                             of this interface: give each pod a namespace of its own";

/// Connects all interfaces; on an error nothing stays behind.
pub(crate) async fn connect_all() -> Result<(Layout, Vec<OwnedFd>), NetworkError> {
    let handle = netlink()?;
    let layout = collect::layout(&handle).await?;
    let mut taps = Vec::new();
    for (position, interface) in layout.interfaces.iter().enumerate() {
        match connect(&handle, interface).await {
            Ok(tap) => taps.push(tap),
            Err(refused) => {
                for done in &layout.interfaces[..position] {
                    let _ = remove_ingress(&handle, done.index).await;
                }
                return Err(refused);
            }
        }
    }
    Ok((layout, taps))
}

/// Removes the redirects of the named interfaces; those that are gone already are fine.
pub(crate) async fn disconnect(interfaces: Vec<String>) -> Result<(), NetworkError> {
    let handle = netlink()?;
    let mut failure = None;
    for name in interfaces {
        let Some(link) = collect::find_link(&handle, &name).await? else { continue };
        if let Err(cause) = remove_ingress(&handle, link).await
            && !is_absent(&cause)
        {
            failure = Some(refused(format!("remove the redirect of {name}"), &cause, ""));
        }
    }
    failure.map_or(Ok(()), Err)
}

async fn connect(handle: &Handle, interface: &Interface) -> Result<OwnedFd, NetworkError> {
    let tun = open_tun().map_err(|cause| NetworkError::Tap { cause })?;
    let tap = sys::make_tap(&tun, TAP_PATTERN).map_err(|cause| NetworkError::Tap { cause })?;
    // The host's stack has no business on the tap: without this it would announce itself to the
    // guest with router solicitations.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1");
    let tap_index = collect::find_link(handle, &tap)
        .await?
        .ok_or_else(|| NetworkError::Unsupported(format!("the tap {tap} vanished")))?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(tap_index).mtu(interface.mtu).up().build())
        .execute()
        .await
        .map_err(|cause| refused(format!("set {tap} up with MTU {}", interface.mtu), &cause, ""))?;
    redirect(handle, &interface.name, interface.index, &tap, tap_index).await?;
    if let Err(failed) = redirect(handle, &tap, tap_index, &interface.name, interface.index).await {
        let _ = remove_ingress(handle, interface.index).await;
        return Err(failed);
    }
    Ok(tun.into())
}

/// Everything that arrives at `from` leaves by `to`; the host's stack does not see it.
async fn redirect(
    handle: &Handle,
    from: &str,
    from_index: u32,
    to: &str,
    to_index: u32,
) -> Result<(), NetworkError> {
    let what = || format!("redirect {from} to {to}");
    handle.qdisc().add(index(from_index)?).ingress().execute().await.map_err(|cause| {
        let hint = if errno(&cause) == libc::EEXIST { INGRESS_TAKEN } else { "" };
        refused(what(), &cause, hint)
    })?;
    let filter = handle
        .traffic_filter(index(from_index)?)
        .add()
        .parent(INGRESS)
        .protocol(EVERY_PROTOCOL)
        .redirect(to_index);
    let added = match filter {
        Ok(filter) => filter.execute().await,
        Err(cause) => Err(cause),
    };
    if let Err(cause) = added {
        let _ = remove_ingress(handle, from_index).await;
        return Err(refused(
            what(),
            &cause,
            "; the host's kernel needs sch_ingress, cls_u32 and act_mirred",
        ));
    }
    Ok(())
}

/// Removes the ingress queueing discipline, and with it its filters.
async fn remove_ingress(handle: &Handle, link: u32) -> Result<(), rtnetlink::Error> {
    let mut request = handle.qdisc().del(link.cast_signed());
    let message = request.message_mut();
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle::from(INGRESS);
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    request.execute().await
}

fn open_tun() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

/// A netlink socket of the namespace that the calling thread is in.
fn netlink() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|cause| refused_by("open a netlink socket".to_owned(), &cause, ""))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// `tc` counts interfaces with a sign, everybody else without.
fn index(link: u32) -> Result<i32, NetworkError> {
    i32::try_from(link)
        .map_err(|_| NetworkError::Unsupported(format!("interface index {link} is out of range")))
}

fn errno(cause: &rtnetlink::Error) -> i32 {
    match cause {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

fn is_absent(cause: &rtnetlink::Error) -> bool {
    matches!(errno(cause), libc::ENOENT | libc::ENODEV | libc::EINVAL)
}

pub(crate) fn refused(what: String, cause: &rtnetlink::Error, hint: &'static str) -> NetworkError {
    refused_by(what, cause, hint)
}

fn refused_by(what: String, cause: &dyn std::fmt::Display, hint: &'static str) -> NetworkError {
    NetworkError::Netlink { what, cause: cause.to_string(), hint }
}
