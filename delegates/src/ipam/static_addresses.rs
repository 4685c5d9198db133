//! `static`: addresses as they are written, by the configuration or by the request. Nothing is reserved, so nothing has to be
//! released, and whether another pod has the same address is not known here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::parts;
use crate::cni::{CniArgs, CniError, CniResult, ConfigError, Dns, IpConfig, NetConf, Route, View, code};
use crate::delegate::Attachment;
use crate::uses::Uses;

/// The keys of `CNI_ARGS` that static reads. A `static` called on its own refuses others ([`CniArgs::reject_unknown`]); inside
/// a delegate they are that delegate's.
pub const CNI_ARGS_KEYS: &[&str] = &["IP", "GATEWAY"];

pub(crate) const KEYS: &[&str] = &["type", "addresses", "routes", "dns"];
pub(crate) const ADDRESS_KEYS: &[&str] = &["address", "gateway"];
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
        let mut warnings = ipam.warn_of_unknown(KEYS);
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

    pub(crate) fn used(&self, uses: &mut Uses) {
        uses.addresses
            .extend(self.addresses.iter().map(|ip| (ip.address.trunc(), ip.address.addr()..=ip.address.addr())));
        uses.gateways.extend(self.addresses.iter().filter_map(|ip| ip.gateway));
        uses.next_hops.extend(self.routes.iter().filter_map(|route| route.gw));
    }

    /// Whether a request can be granted.
    ///
    /// # Errors
    /// What [`Self::add`] would say.
    pub fn serves(&self, conf: &NetConf, args: &CniArgs) -> Result<(), CniError> {
        self.result(conf, args).map(drop)
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
        warnings.extend(view.warn_of_unknown(ADDRESS_KEYS));
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
    warnings.extend(view.warn_of_unknown(DNS_KEYS));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{Asking, with};
    use super::*;
    use crate::cni::Version;

    fn asking(keys: Value, args: &str) -> Asking {
        Asking { args: args.to_string(), ..Asking::new(&with(keys)) }
    }

    fn add(pod: &Asking) -> Result<CniResult, CniError> {
        let parsed = Static::parse(&pod.conf)?;
        pod.ask(|at| parsed.add(at))
    }

    fn addresses(keys: Value, args: &str) -> Result<Vec<(String, String)>, CniError> {
        let text = |gateway: Option<IpAddr>| gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        let ips = add(&asking(keys, args))?.ips;
        Ok(ips.into_iter().map(|ip| (ip.address.to_string(), text(ip.gateway))).collect())
    }

    #[test]
    fn addresses_routes_and_dns_come_back_as_they_were_written() {
        let routes = json!([
            {"dst": "0.0.0.0/0"},
            {"dst": "192.168.0.0/16", "gw": "10.10.5.1", "priority": 5},
            {"dst": "192.168.0.0/16", "gw": "10.10.5.2", "advmss": 1200},
            {"dst": "fd00:1::/64"},
        ]);
        let ipam = json!({
            "type": "static",
            "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff::1"}],
            "routes": routes,
            "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"], "options": ["edns0"]},
        });
        let result = add(&asking(json!({"ipam": ipam}), "")).unwrap();
        assert_eq!(
            result.to_json(Version::V1_1_0).unwrap(),
            json!({
                "cniVersion": "1.1.0",
                "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"], "options": ["edns0"]},
                "ips": [
                    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
                    {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff::1"},
                ],
                "routes": routes,
            })
        );
    }

    #[test]
    fn requests_add_to_the_addresses_or_replace_them() {
        let ipam = json!({"type": "static", "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}]});
        let configured = ("10.10.0.1/24", "10.10.0.254");
        for (keys, args, expected) in [
            (json!({}), "", vec![configured]),
            (json!({}), "IP=10.11.0.1/24;GATEWAY=10.11.0.254", vec![configured, ("10.11.0.1/24", "10.11.0.254")]),
            (
                json!({}),
                "IP=10.11.0.1/24, fd00::1/64;GATEWAY=10.11.0.254, fd00::fe",
                vec![configured, ("10.11.0.1/24", "10.11.0.254"), ("fd00::1/64", "fd00::fe")],
            ),
            (json!({}), "GATEWAY=10.10.0.7", vec![("10.10.0.1/24", "10.10.0.7")]),
            (json!({}), "GATEWAY=10.99.0.7;MAC=02:00:00:00:00:01", vec![configured]),
            (
                json!({"args": {"cni": {"ips": ["10.12.0.1/24", "fd00::2/64"]}}}),
                "",
                vec![("10.12.0.1/24", ""), ("fd00::2/64", "")],
            ),
            (
                json!({"runtimeConfig": {"ips": ["10.13.0.1/24", "fd00::3/64"]}}),
                "",
                vec![("10.13.0.1/24", ""), ("fd00::3/64", "")],
            ),
            (
                json!({"args": {"cni": {"ips": ["10.12.0.1/24"]}}, "runtimeConfig": {"IPs": ["10.13.0.1/24"]}}),
                "IP=10.11.0.1/24;GATEWAY=10.13.0.254",
                vec![("10.13.0.1/24", "")],
            ),
            (json!({"args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": []}}), "", vec![configured]),
        ] {
            let mut keys = keys;
            keys["ipam"] = ipam.clone();
            let given = addresses(keys.clone(), args).unwrap();
            let given: Vec<_> = given.iter().map(|(address, gateway)| (address.as_str(), gateway.as_str())).collect();
            assert_eq!(given, expected, "{keys} {args}");
        }
    }

    #[test]
    fn an_empty_list_gives_no_addresses() {
        assert_eq!(addresses(json!({"ipam": {"type": "static"}}), "").unwrap(), []);
    }

    #[test]
    fn wrong_addresses_are_named() {
        let ipam = |addresses: Value| json!({"ipam": {"type": "static", "addresses": addresses}});
        for (keys, args, expected_code, expected) in [
            (json!({}), "IP=10.10.0.1/24", 7, "ipam: is missing"),
            (json!({"runtimeConfig": {"ips": ["10.10.0.1/24"]}}), "", 7, "ipam: is missing"),
            (ipam(json!([{}])), "", 7, "ipam.addresses[0].address: is missing: write ADDRESS/PREFIX"),
            (ipam(json!([{"address": "10.10.0.1"}])), "", 7, "ipam.addresses[0].address: must be ADDRESS/PREFIX"),
            (
                ipam(json!([{"address": "10.10.0.1/24"}, {"address": "10.10.0.1/33"}])),
                "",
                7,
                "ipam.addresses[1].address: ",
            ),
            (ipam(json!([{"address": "10.10.0.1/24", "gateway": "x"}])), "", 7, "ipam.addresses[0].gateway: "),
            (
                ipam(json!([{"address": "10.10.0.1/24", "gateway": "fd00::1"}])),
                "",
                7,
                "ipam.addresses[0].gateway: is not of the family",
            ),
            (json!({"ipam": {"dns": 4}}), "", 7, "ipam.dns: must be an object"),
            (json!({"ipam": {"dns": {"search": "x"}}}), "", 7, "ipam.dns.search: must be a list"),
            (json!({"ipam": {"routes": [{"dst": "x"}]}}), "", 7, "ipam.routes[0].dst: "),
            (
                json!({"ipam": {}, "args": {"cni": {"ips": ["10.10.0.1"]}}}),
                "",
                7,
                "args.cni.ips[0]: must be ADDRESS/PREFIX",
            ),
            (
                json!({"ipam": {}, "runtimeConfig": {"ips": ["ten"]}}),
                "",
                7,
                "runtimeConfig.ips[0]: must be ADDRESS/PREFIX",
            ),
            (json!({"ipam": {}}), "IP=10.10.0.1", 4, "static: CNI_ARGS: IP must be ADDRESS/PREFIX"),
            (
                json!({"ipam": {}}),
                "IP=10.10.0.1/24;GATEWAY=10.10.0.1/24",
                4,
                "static: CNI_ARGS: GATEWAY must be an IP address",
            ),
        ] {
            let error = addresses(keys.clone(), args).unwrap_err();
            assert_eq!(error.code, expected_code, "{keys} {args}: {error}");
            assert!(error.msg.starts_with(expected), "{keys} {args}: {error}");
        }
    }

    #[test]
    fn old_versions_carry_one_address_of_a_family() {
        let one = json!([{"address": "10.10.0.1/24"}]);
        let dual = json!([{"address": "10.10.0.1/24"}, {"address": "fd00::1/64"}]);
        let two = json!([{"address": "10.10.0.1/24"}, {"address": "10.11.0.1/24"}]);
        for (version, list, args, accepted) in [
            ("0.2.0", &one, "", true),
            ("0.2.0", &dual, "", true),
            ("0.2.0", &two, "", false),
            ("0.2.0", &one, "IP=10.12.0.1/24", false),
            ("0.3.0", &two, "IP=10.12.0.1/24", true),
        ] {
            let keys = json!({"cniVersion": version, "ipam": {"addresses": list}});
            let outcome = addresses(keys, args);
            assert_eq!(outcome.is_ok(), accepted, "{version} {list} {args}: {outcome:?}");
        }
    }

    #[test]
    fn check_wants_every_address_in_the_result() {
        let mut pod = asking(json!({"ipam": {"addresses": [{"address": "10.10.0.1/24"}]}}), "IP=fd00::1/64");
        let parsed = Static::parse(&pod.conf).unwrap();
        let check = |pod: &Asking| pod.ask(|at| parsed.check(at));
        assert_eq!(check(&pod), Ok(()), "nothing to compare with");
        let result = add(&pod).unwrap();
        pod.prev_result = Some(result.clone());
        assert_eq!(check(&pod), Ok(()));
        pod.prev_result.as_mut().unwrap().ips.pop();
        assert_eq!(check(&pod).unwrap_err().msg, "static: the result does not name fd00::1/64");
    }

    #[test]
    fn keys_nobody_knows_are_warned_about() {
        let ipam = json!({"type": "static", "subnet": "10.0.0.0/8", "addresses": [{"address": "10.0.0.1/8", "mac": ""}], "dns": {"servers": []}});
        let parsed = Static::parse(&with(json!({"ipam": ipam}))).unwrap();
        let unknown = |path: &str| format!("key \"{path}\" is not known and is ignored");
        assert_eq!(parsed.warnings(), ["ipam.subnet", "ipam.addresses[0].mac", "ipam.dns.servers"].map(unknown));
    }
}
