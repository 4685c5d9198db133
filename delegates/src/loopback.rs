//! `loopback`: brings the pod's `lo` up. It makes no link and gives no address of its own: the kernel does both.

use std::net::IpAddr;

use crate::cni::{CniError, CniResult, ConfigError, Interface, IpConfig, NetConf, ValidAttachment, code};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::interface;
use crate::netlink::{Link, LinkChange};
use crate::netns::Namespace;
use crate::uses::Uses;

/// The only interface it works on, whatever the runtime asks for.
const LO: &str = "lo";

/// A parsed `loopback` configuration: there is nothing to say.
#[derive(Debug)]
pub struct Loopback {
    warnings: Vec<String>,
}

impl Delegate for Loopback {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        Ok(Self { warnings: interface::unknown_keys(conf, &[]) })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn uses(&self) -> Uses {
        Uses::default()
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let pod = at.pod()?;
        let lo = lo(pod)?;
        set_up(pod, &lo, true)?;
        match addresses(pod, &lo) {
            Ok(ips) => {
                let interface = Interface {
                    name: LO.to_owned(),
                    mac: "00:00:00:00:00:00".to_owned(),
                    sandbox: at.sandbox(),
                    ..Interface::default()
                };
                let own = CniResult { interfaces: vec![interface], ips, ..CniResult::default() };
                Ok(Added { result: at.prev_result.cloned().unwrap_or(own), links: Vec::new() })
            }
            Err(error) if lo.is_up() => Err(error),
            Err(error) => Err(interface::undone(error, set_up(pod, &lo, false))),
        }
    }

    fn check(&self, at: &Attachment<'_>, _result: &CniResult) -> Result<(), CniError> {
        if lo(at.pod()?)?.is_up() { Ok(()) } else { Err(CniError::new(code::DELEGATE, "interface \"lo\" is down")) }
    }

    /// Sets `lo` down, and names no link: it goes with its namespace. Whatever stands in the way is no reason to fail.
    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        let down = |pod| lo(pod).and_then(|lo| set_up(pod, &lo, false));
        if let Some(Err(error)) = at.pod.map(down) {
            tracing::warn!("loopback: {error}");
        }
        Ok(Vec::new())
    }

    fn release(&self, _at: &Attachment<'_>) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _cx: &Context<'_>) -> Result<(), CniError> {
        Ok(())
    }

    fn gc(&self, _cx: &Context<'_>, _valid: &[ValidAttachment]) -> Result<(), CniError> {
        Ok(())
    }
}

fn lo(pod: &Namespace) -> Result<Link, CniError> {
    let link = pod.netlink.link_by_name(LO)?;
    link.ok_or_else(|| CniError::new(code::DELEGATE, "the pod has no interface \"lo\""))
}

fn set_up(pod: &Namespace, lo: &Link, up: bool) -> Result<(), CniError> {
    let what = if up { "bring up interface \"lo\"" } else { "set interface \"lo\" down" };
    Ok(pod.netlink.request(LinkChange::of(lo.index, what).flag(libc::IFF_UP, up).request())?)
}

/// The first address of each family, as the kernel has them.
fn addresses(pod: &Namespace, lo: &Link) -> Result<Vec<IpConfig>, CniError> {
    let present = pod.netlink.addresses(lo.index)?;
    if let Some(other) = present.iter().find(|a| !a.net.addr().is_loopback()) {
        return Err(CniError::new(
            code::DELEGATE,
            format!("loopback interface found with non-loopback address {}", other.net.addr()),
        )
        .with_details("remove the address from \"lo\", or leave out the loopback plugin"));
    }
    let first = |of: fn(&IpAddr) -> bool| present.iter().find(|a| of(&a.net.addr()));
    let found = [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten();
    Ok(found.map(|a| IpConfig { interface: Some(0), address: a.net, gateway: None }).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_key_means_anything() {
        let conf = json!({"cniVersion": "0.4.0", "name": "lo", "type": "loopback", "mtu": "x"});
        let loopback = Loopback::parse(&NetConf(conf.as_object().unwrap().clone())).unwrap();
        assert_eq!(loopback.warnings(), ["key \"mtu\" is not known and is ignored"]);
    }
}
