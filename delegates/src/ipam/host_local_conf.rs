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

const RANGE_KEYS: &[&str] = &["subnet", "rangeStart", "rangeEnd", "gateway"];
const KEYS: &[&str] =
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
        let name = conf.name().map_err(|error| ConfigError::new("name", error.msg))?;
        let mut warnings = ipam.unknown(KEYS).into_iter().map(parts::unknown_key).collect();
        let pools = pools(&view, &ipam, &mut warnings)?;
        check_overlaps(&pools)?;
        let is_ipv4 = pools.iter().map(|pool| pool.ranges.is_ipv4());
        parts::check_version(conf, is_ipv4).map_err(|problem| ipam.error("ranges", problem))?;
        Ok(HostLocal {
            pools: pools.into_iter().map(|pool| pool.ranges).collect(),
            routes: parts::routes(&ipam, &mut warnings)?,
            folder: data_dir(&ipam)?.join(name.as_str()),
            resolv_conf: ipam.text("resolvConf")?.map(PathBuf::from),
            requested: requested(&view)?,
            warnings,
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
        warnings.extend(view.unknown(RANGE_KEYS).into_iter().map(parts::unknown_key));
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

fn data_dir(ipam: &View<'_>) -> Result<PathBuf, ConfigError> {
    let folder = PathBuf::from(ipam.text("dataDir")?.unwrap_or(DEFAULT_DATA_DIR));
    if !folder.is_absolute() {
        return Err(ipam.error("dataDir", "must be an absolute path"));
    }
    Ok(folder)
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
