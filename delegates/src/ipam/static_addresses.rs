//! `static`: addresses as they are written, by the configuration or by the request. Nothing is reserved, so nothing has to be
//! released, and whether another pod has the same address is not known here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::parts;
use crate::cni::{CniArgs, CniError, CniResult, ConfigError, Dns, IpConfig, NetConf, Route, View, code};
use crate::delegate::Attachment;

/// The keys of `CNI_ARGS` that static reads. A `static` called on its own refuses others ([`CniArgs::reject_unknown`]); inside
/// a delegate they are that delegate's.
pub const CNI_ARGS_KEYS: &[&str] = &["IP", "GATEWAY"];

const KEYS: &[&str] = &["type", "addresses", "routes", "dns"];
const ADDRESS_KEYS: &[&str] = &["address", "gateway"];
const DNS_KEYS: &[&str] = &["nameservers", "domain", "search", "options"];

/// A parsed `static` configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Static {
    addresses: Vec<IpConfig>,
    /// Whether `args.cni.ips` or `runtimeConfig.ips` replaced the addresses: `CNI_ARGS` then add none.
    replaced: bool,
    routes: Vec<Route>,
    dns: Dns,
    warnings: Vec<String>,
}

impl Static {
    /// Reads a network configuration whose `ipam` is a static. `runtimeConfig.ips` replaces `args.cni.ips`, and each of them
    /// replaces `addresses`.
    ///
    /// # Errors
    /// The key and what is accepted.
    pub fn parse(conf: &NetConf) -> Result<Static, ConfigError> {
        let view = conf.view();
        let ipam = parts::ipam(&view)?;
        let mut warnings: Vec<String> = ipam.unknown(KEYS).into_iter().map(parts::unknown_key).collect();
        let configured = configured(&ipam, &mut warnings)?;
        let by_args = requested(parts::args_ips(&view)?)?;
        let by_runtime = requested(parts::runtime_ips(&view)?)?;
        let replacement = [by_runtime, by_args].into_iter().find(|addresses| !addresses.is_empty());
        let replaced = replacement.is_some();
        let addresses = replacement.unwrap_or(configured);
        check_families(conf, &addresses).map_err(|problem| ipam.error("addresses", problem))?;
        Ok(Static {
            addresses,
            replaced,
            routes: parts::routes(&ipam, &mut warnings)?,
            dns: dns(&ipam, &mut warnings)?,
            warnings,
        })
    }

    /// What was ignored, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The addresses of the configuration, and where nothing replaces them those of `CNI_ARGS`.
    ///
    /// # Errors
    /// `CNI_ARGS` hold what is no address (code 4), or more addresses than the CNI version can say (7).
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        self.result(at.conf, at.args)
    }

    /// Whether `prevResult`, where there is one, names every address.
    ///
    /// # Errors
    /// The first that it does not (code 100).
    pub fn check(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        let Some(result) = at.prev_result else {
            return Ok(());
        };
        let is_missing = |ip: &IpConfig| !result.ips.iter().any(|named| named.address == ip.address);
        match self.add(at)?.ips.into_iter().find(is_missing) {
            Some(ip) => Err(CniError::new(code::DELEGATE, format!("static: the result does not name {}", ip.address))),
            None => Ok(()),
        }
    }

    fn result(&self, conf: &NetConf, args: &CniArgs) -> Result<CniResult, CniError> {
        let mut ips = self.addresses.clone();
        if !self.replaced {
            ips.extend(addresses_of(args)?);
            set_gateways(&mut ips, args)?;
            check_families(conf, &ips)
                .map_err(|problem| CniError::new(code::CONFIG, format!("static: CNI_ARGS: IP: {problem}")))?;
        }
        Ok(CniResult { ips, routes: self.routes.clone(), dns: self.dns.clone(), ..CniResult::default() })
    }
}

fn configured(ipam: &View<'_>, warnings: &mut Vec<String>) -> Result<Vec<IpConfig>, ConfigError> {
    let mut addresses = Vec::new();
    for view in ipam.objects("addresses")? {
        warnings.extend(view.unknown(ADDRESS_KEYS).into_iter().map(parts::unknown_key));
        let missing = || view.error("address", "is missing: write ADDRESS/PREFIX");
        let address = view.net("address")?.ok_or_else(missing)?;
        let gateway = view.ip("gateway")?.map(|gateway| gateway.to_canonical());
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != address.addr().is_ipv4()) {
            return Err(view.error("gateway", format!("is not of the family of {address}")));
        }
        addresses.push(IpConfig { interface: None, address, gateway });
    }
    Ok(addresses)
}

fn requested(texts: Vec<(String, &str)>) -> Result<Vec<IpConfig>, ConfigError> {
    let parse = |(path, text): (String, &str)| match text.trim().parse() {
        Ok(address) => Ok(IpConfig { interface: None, address, gateway: None }),
        Err(_) => Err(ConfigError::new(path, format!("must be ADDRESS/PREFIX, not {text:?}"))),
    };
    texts.into_iter().map(parse).collect()
}

fn dns(ipam: &View<'_>, warnings: &mut Vec<String>) -> Result<Dns, ConfigError> {
    let Some(view) = ipam.object("dns")? else {
        return Ok(Dns::default());
    };
    warnings.extend(view.unknown(DNS_KEYS).into_iter().map(parts::unknown_key));
    ipam.raw("dns").map_or(Ok(Dns::default()), Dns::parse).map_err(|error| error.under(&ipam.path("dns")))
}

fn check_families(conf: &NetConf, addresses: &[IpConfig]) -> Result<(), String> {
    parts::check_version(conf, addresses.iter().map(|ip| matches!(ip.address, IpNet::V4(_))))
}

fn addresses_of(args: &CniArgs) -> Result<Vec<IpConfig>, CniError> {
    let parse = |text: &str| match text.parse() {
        Ok(address) => Ok(IpConfig { interface: None, address, gateway: None }),
        Err(_) => Err(wrong_argument("IP", "ADDRESS/PREFIX", text)),
    };
    values(args, "IP").map(parse).collect()
}

/// A gateway belongs to every address in whose subnet it lies, as in the reference: `CNI_ARGS` cannot say more.
fn set_gateways(ips: &mut [IpConfig], args: &CniArgs) -> Result<(), CniError> {
    for text in values(args, "GATEWAY") {
        let gateway: IpAddr = text.parse().map_err(|_| wrong_argument("GATEWAY", "an IP address", text))?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(())
}

fn values<'a>(args: &'a CniArgs, key: &str) -> impl Iterator<Item = &'a str> {
    args.get(key).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty())
}

fn wrong_argument(key: &str, accepted: &str, text: &str) -> CniError {
    CniError::new(code::ENVIRONMENT, format!("static: CNI_ARGS: {key} must be {accepted}, not {text:?}"))
}
