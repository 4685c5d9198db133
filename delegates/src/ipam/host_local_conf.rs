//! The configuration of `host-local`, read and checked completely before anything is touched. Every error names its key by
//! the whole path, `ipam.ranges[0][1].rangeStart`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::host_local::{HostLocal, address_of};
use super::parts;
use super::ranges::{Range, RangeSet};
use crate::cni::{ConfigError, NetConf, View};

/// Where reservations are unless `dataDir` says otherwise: the reference's place, so that both find what the other reserved.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

pub(crate) const RANGE_KEYS: &[&str] = &["subnet", "rangeStart", "rangeEnd", "gateway"];
pub(crate) const KEYS: &[&str] =
    &["type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "dataDir", "resolvConf"];

/// A pool and where it was written.
struct Pool {
    path: String,
    ranges: RangeSet,
}

impl HostLocal {
    /// Reads a network configuration whose `ipam` is a host-local.
    ///
    /// # Errors
    /// The key and what is accepted.
    pub fn parse(conf: &NetConf) -> Result<HostLocal, ConfigError> {
        let view = conf.view();
        let ipam = parts::ipam(&view)?;
        let folder = folder(conf, &ipam)?;
        let mut warnings = ipam.warn_of_unknown(KEYS);
        let pools = pools(&view, &ipam, &mut warnings)?;
        check_overlaps(&pools)?;
        let is_ipv4 = pools.iter().map(|pool| pool.ranges.is_ipv4());
        parts::check_version(conf, is_ipv4).map_err(|problem| ipam.error("ranges", problem))?;
        Ok(HostLocal {
            pools: pools.into_iter().map(|pool| pool.ranges).collect(),
            routes: parts::routes(&ipam, &mut warnings)?,
            folder,
            resolv_conf: ipam.text("resolvConf")?.map(PathBuf::from),
            requested: requested(&view)?,
            warnings,
        })
    }

    /// Reads what giving addresses back needs: the folder. DEL has to work with a configuration whose ranges have become
    /// wrong since ADD.
    ///
    /// # Errors
    /// There is no valid name, or no valid `dataDir`.
    pub fn parse_for_release(conf: &NetConf) -> Result<HostLocal, ConfigError> {
        let view = conf.view();
        let ipam = parts::ipam(&view)?;
        Ok(HostLocal {
            pools: Vec::new(),
            routes: Vec::new(),
            folder: folder(conf, &ipam)?,
            resolv_conf: None,
            requested: Vec::new(),
            warnings: Vec::new(),
        })
    }
}

/// The pools in the reference's order, which gives `last_reserved_ip.<n>` its number: `runtimeConfig.ipRanges`, the single
/// range beside `type`, `ranges`.
fn pools(view: &View<'_>, ipam: &View<'_>, warnings: &mut Vec<String>) -> Result<Vec<Pool>, ConfigError> {
    let mut pools = match view.object("runtimeConfig")? {
        Some(runtime) => pools_in(&runtime, "ipRanges", warnings)?,
        None => Vec::new(),
    };
    if ipam.raw("subnet").is_some() {
        let ranges = RangeSet::new(vec![range(ipam)?]).map_err(|(_, problem)| ipam.error("subnet", problem))?;
        pools.push(Pool { path: ipam.path("subnet"), ranges });
    } else {
        let alone = RANGE_KEYS.iter().filter(|key| ipam.raw(key).is_some());
        warnings.extend(alone.map(|key| format!("{}: ignored without subnet beside it", ipam.path(key))));
    }
    pools.extend(pools_in(ipam, "ranges", warnings)?);
    if pools.is_empty() {
        return Err(ipam.error("ranges", r#"must name at least one range, as [[{"subnet": "10.1.0.0/16"}]]"#));
    }
    Ok(pools)
}

fn pools_in(view: &View<'_>, key: &str, warnings: &mut Vec<String>) -> Result<Vec<Pool>, ConfigError> {
    let list = view.list(key)?.map(Vec::as_slice).unwrap_or_default();
    let path = |position| format!("{}[{position}]", view.path(key));
    list.iter().enumerate().map(|(position, value)| pool(value, path(position), warnings)).collect()
}

fn pool(value: &Value, path: String, warnings: &mut Vec<String>) -> Result<Pool, ConfigError> {
    let Some(list) = value.as_array() else {
        return Err(ConfigError::new(path, r#"must be a list of ranges, as [{"subnet": "10.1.0.0/16"}]"#));
    };
    let mut ranges = Vec::new();
    for (position, value) in list.iter().enumerate() {
        let path = format!("{path}[{position}]");
        let Some(map) = value.as_object() else {
            return Err(ConfigError::new(path, r#"must be an object, as {"subnet": "10.1.0.0/16"}"#));
        };
        let view = View::of(map, path);
        warnings.extend(view.warn_of_unknown(RANGE_KEYS));
        ranges.push(range(&view)?);
    }
    let ranges = RangeSet::new(ranges).map_err(|(position, problem)| match list.is_empty() {
        true => ConfigError::new(&path, problem),
        false => ConfigError::new(format!("{path}[{position}]"), problem),
    })?;
    Ok(Pool { path, ranges })
}

fn range(view: &View<'_>) -> Result<Range, ConfigError> {
    let subnet = view.net("subnet")?.ok_or_else(|| view.error("subnet", "is missing: write NETWORK/PREFIX"))?;
    let range = Range::new(subnet, view.ip("rangeStart")?, view.ip("rangeEnd")?, view.ip("gateway")?);
    range.map_err(|wrong| view.error(wrong.key, wrong.problem))
}

fn check_overlaps(pools: &[Pool]) -> Result<(), ConfigError> {
    for (position, pool) in pools.iter().enumerate() {
        for earlier in pools.iter().take(position) {
            if let Some((mine, theirs)) = pool.ranges.overlap(&earlier.ranges) {
                let problem = format!("{mine} overlaps {theirs} of {}", earlier.path);
                return Err(ConfigError::new(&pool.path, problem));
            }
        }
    }
    Ok(())
}

fn folder(conf: &NetConf, ipam: &View<'_>) -> Result<PathBuf, ConfigError> {
    let name = conf.name().map_err(|error| ConfigError::new("name", error.msg))?;
    let data_dir = PathBuf::from(ipam.text("dataDir")?.unwrap_or(DEFAULT_DATA_DIR));
    if !data_dir.is_absolute() {
        return Err(ipam.error("dataDir", "must be an absolute path"));
    }
    Ok(data_dir.join(name.as_str()))
}

fn requested(view: &View<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let mut requested = Vec::new();
    for (path, text) in parts::args_ips(view)?.into_iter().chain(parts::runtime_ips(view)?) {
        let address = address_of(text.trim())
            .ok_or_else(|| ConfigError::new(path, format!("must be ADDRESS or ADDRESS/PREFIX, not {text:?}")))?;
        if !requested.contains(&address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::testing::{conf, with};
    use super::*;

    fn pools(conf: &NetConf) -> Vec<String> {
        HostLocal::parse(conf).unwrap().pools.iter().map(RangeSet::to_string).collect()
    }

    fn error(conf: &NetConf) -> String {
        HostLocal::parse(conf).unwrap_err().to_string()
    }

    #[test]
    fn pools_come_from_runtime_config_then_the_single_range_then_ranges() {
        let ipam = json!({
            "type": "host-local",
            "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30",
            "ranges": [[{"subnet": "11.1.2.0/24"}, {"subnet": "11.1.3.0/24"}], [{"subnet": "fd00::/64"}]],
        });
        let runtime = json!([[{"subnet": "12.1.3.0/24", "rangeStart": "12.1.3.4"}]]);
        let expected = [
            "12.1.3.4-12.1.3.254",
            "10.1.2.9-10.1.2.20",
            "11.1.2.1-11.1.2.254,11.1.3.1-11.1.3.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
        ];
        // containerd writes Go's field names; upstream's own test says RuntimeConfig.
        for (outer, key) in [("runtimeConfig", "ipRanges"), ("RuntimeConfig", "IPRanges")] {
            assert_eq!(pools(&with(json!({"ipam": ipam, outer: {key: runtime}}))), expected, "{outer}.{key}");
        }
        assert_eq!(pools(&conf(ipam)), expected[1..]);
        assert_eq!(pools(&conf(json!({"type": "host-local", "subnet": "10.1.2.0/24"}))), ["10.1.2.1-10.1.2.254"]);
    }

    #[test]
    fn the_folder_is_the_references() {
        let folder = |ipam| HostLocal::parse(&conf(ipam)).unwrap().folder;
        assert_eq!(folder(json!({"subnet": "10.1.2.0/24"})), Path::new("/var/lib/cni/networks/net1"));
        assert_eq!(folder(json!({"subnet": "10.1.2.0/24", "dataDir": ""})), Path::new("/var/lib/cni/networks/net1"));
        assert_eq!(folder(json!({"subnet": "10.1.2.0/24", "dataDir": "/run/x"})), Path::new("/run/x/net1"));
    }

    #[test]
    fn a_wrong_configuration_names_the_key_and_what_is_accepted() {
        let set = |ranges| json!({"type": "host-local", "ranges": ranges});
        for (ipam, expected) in [
            (json!({}), r#"ipam.ranges: must name at least one range, as [[{"subnet": "10.1.0.0/16"}]]"#),
            (set(json!([])), "ipam.ranges: must name at least one range"),
            (set(json!([[]])), "ipam.ranges[0]: needs at least one range"),
            (set(json!([{"subnet": "10.1.0.0/16"}])), "ipam.ranges[0]: must be a list of ranges"),
            (set(json!([["10.1.0.0/16"]])), "ipam.ranges[0][0]: must be an object"),
            (set(json!([[null]])), "ipam.ranges[0][0]: must be an object"),
            (set(json!("10.1.0.0/16")), "ipam.ranges: must be a list"),
            (set(json!([[{}]])), "ipam.ranges[0][0].subnet: is missing: write NETWORK/PREFIX"),
            (set(json!([[{"subnet": "10.1.0.0"}]])), "ipam.ranges[0][0].subnet: must be ADDRESS/PREFIX"),
            (set(json!([[{"subnet": "10.1.0.1/16"}]])), "ipam.ranges[0][0].subnet: 10.1.0.1/16 has host bits set"),
            (set(json!([[{"subnet": "10.1.0.0/31"}]])), "ipam.ranges[0][0].subnet: 10.1.0.0/31 is too small"),
            (
                set(json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.1.0/24", "rangeStart": "10.1.2.1"}]])),
                "ipam.ranges[0][1].rangeStart: 10.1.2.1 is not in 10.1.1.0/24",
            ),
            (
                set(json!([[{"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"}]])),
                "ipam.ranges[0][0].rangeEnd: 10.2.0.1 is not in 10.1.0.0/24",
            ),
            (
                set(json!([[{"subnet": "10.1.0.0/24", "gateway": "gw"}]])),
                "ipam.ranges[0][0].gateway: must be an IP address",
            ),
            (
                set(json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]])),
                "ipam.ranges[0][1]: fd00::/64 is not of the family of 10.1.2.0/24",
            ),
            (
                set(json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.0.0/16"}]])),
                "ipam.ranges[0][1]: 10.1.0.1-10.1.255.254 overlaps 10.1.2.1-10.1.2.254 of the same pool",
            ),
            (
                set(json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.0.0/16"}]])),
                "ipam.ranges[1]: 10.1.0.1-10.1.255.254 overlaps 10.1.2.1-10.1.2.254 of ipam.ranges[0]",
            ),
            (json!({"subnet": "10.1.0.0/16", "rangeStart": 4}), "ipam.rangeStart: must be a string, not 4"),
            (json!({"subnet": "10.1.0.0/16", "dataDir": "here"}), "ipam.dataDir: must be an absolute path"),
            (json!({"subnet": "10.1.0.0/16", "routes": [{}]}), "ipam.routes[0].dst: "),
            (json!({"subnet": "10.1.0.0/16", "routes": [{"dst": "10.2.0.0"}]}), "ipam.routes[0].dst: "),
            (json!({"subnet": "10.1.0.0/16", "routes": [{"dst": "10.2.0.0/16", "gw": "x"}]}), "ipam.routes[0].gw: "),
            (
                json!({"subnet": "10.1.0.0/16", "routes": [{"dst": "::/0", "gw": "10.1.0.1"}]}),
                "ipam.routes[0].gw: is not of the family of ::/0",
            ),
        ] {
            let error = error(&conf(ipam.clone()));
            assert!(error.starts_with(expected), "{ipam}: {error}");
        }
    }

    #[test]
    fn requests_in_the_wrong_shape_are_refused() {
        let ipam = json!({"subnet": "10.1.0.0/16"});
        for (keys, expected) in [
            (json!({"args": {"cni": {"ips": ["10.1.0.5/33"]}}}), "args.cni.ips[0]: must be ADDRESS or ADDRESS/PREFIX"),
            (json!({"args": {"cni": {"ips": "10.1.0.5"}}}), "args.cni.ips: must be a list"),
            (json!({"args": {"cni": []}}), "args.cni: must be an object"),
            (json!({"args": 5}), "args: must be an object"),
            (json!({"runtimeConfig": {"ips": ["10.1.0.5", 4]}}), "runtimeConfig.ips[1]: must be a string"),
            (json!({"runtimeConfig": {"ips": ["ten"]}}), "runtimeConfig.ips[0]: must be ADDRESS or ADDRESS/PREFIX"),
            (
                json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}}),
                "ipam.subnet: 10.1.0.1-10.1.255.254 overlaps 10.1.0.1-10.1.0.254 of runtimeConfig.ipRanges[0]",
            ),
            (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "x"}]]}}), "runtimeConfig.ipRanges[0][0].subnet: "),
        ] {
            let mut conf = with(keys.clone());
            conf.insert("ipam", ipam.clone());
            let error = error(&conf);
            assert!(error.starts_with(expected), "{keys}: {error}");
        }
    }

    #[test]
    fn requested_addresses_come_once_and_without_prefix() {
        let conf = with(json!({
            "ipam": {"subnet": "10.1.0.0/16"},
            "args": {"cni": {"ips": ["10.1.0.5", "10.1.0.6/24", "fd00::5/64"]}},
            "runtimeConfig": {"ips": ["10.1.0.5/16", "::ffff:10.1.0.7"]},
        }));
        let requested: Vec<_> = HostLocal::parse(&conf).unwrap().requested.iter().map(IpAddr::to_string).collect();
        assert_eq!(requested, ["10.1.0.5", "10.1.0.6", "fd00::5", "10.1.0.7"]);
    }

    #[test]
    fn old_versions_carry_one_address_of_a_family() {
        let two_v4 = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]);
        let mixed = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]);
        let pool_of_two = json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}]]);
        for (version, ranges, accepted) in [
            ("0.2.0", &two_v4, false),
            ("0.1.0", &two_v4, false),
            ("0.3.0", &two_v4, true),
            ("0.2.0", &mixed, true),
            ("0.2.0", &pool_of_two, true),
        ] {
            let conf = with(json!({"cniVersion": version, "ipam": {"ranges": ranges}}));
            let parsed = HostLocal::parse(&conf);
            assert_eq!(parsed.is_ok(), accepted, "{version} {ranges}: {parsed:?}");
        }
    }

    #[test]
    fn keys_nobody_knows_are_warned_about() {
        let conf = conf(json!({
            "type": "host-local", "gateway": "10.1.0.1", "Subnets": [],
            "ranges": [[{"subnet": "10.1.0.0/24", "RangeStart": "10.1.0.9", "range": 1}]],
            "routes": [{"dst": "0.0.0.0/0", "metric": 5}],
        }));
        let parsed = HostLocal::parse(&conf).unwrap();
        assert_eq!(
            parsed.warnings(),
            [
                "key \"ipam.Subnets\" is not known and is ignored",
                "ipam.gateway: ignored without subnet beside it",
                "key \"ipam.ranges[0][0].range\" is not known and is ignored",
                "key \"ipam.routes[0].metric\" is not known and is ignored",
            ]
        );
        assert_eq!(parsed.pools[0].to_string(), "10.1.0.9-10.1.0.254");
    }
}
