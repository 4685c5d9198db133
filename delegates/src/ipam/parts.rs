//! What the configurations of `host-local` and `static` have in common: routes, requested addresses, and the limit of old
//! CNI versions.

use crate::cni::{ConfigError, NetConf, Route, Version, View};

const ROUTE_KEYS: &[&str] = &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// The `ipam` of a network configuration.
///
/// # Errors
/// There is none.
pub fn ipam<'a>(view: &View<'a>) -> Result<View<'a>, ConfigError> {
    view.object("ipam")?.ok_or_else(|| view.error("ipam", "is missing: write an object with a type"))
}

/// The `routes` of an `ipam`.
///
/// # Errors
/// A destination or gateway that is none, or the two of different families.
pub fn routes(ipam: &View<'_>, warnings: &mut Vec<String>) -> Result<Vec<Route>, ConfigError> {
    let mut routes = Vec::new();
    for view in ipam.objects("routes")? {
        warnings.extend(view.warn_of_unknown(ROUTE_KEYS));
        let route = Route::parse(&view)?;
        if route.gw.is_some_and(|gw| gw.is_ipv4() != route.dst.addr().is_ipv4()) {
            return Err(view.error("gw", format!("is not of the family of {}", route.dst)));
        }
        routes.push(route);
    }
    Ok(routes)
}

/// The addresses that `args.cni.ips` asks for, each with its path.
///
/// # Errors
/// It is no list of strings.
pub fn args_ips<'a>(view: &View<'a>) -> Result<Vec<(String, &'a str)>, ConfigError> {
    let cni = view.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    cni.map_or(Ok(Vec::new()), |cni| ips(&cni))
}

/// The addresses that `runtimeConfig.ips` asks for, each with its path.
///
/// # Errors
/// It is no list of strings.
pub fn runtime_ips<'a>(view: &View<'a>) -> Result<Vec<(String, &'a str)>, ConfigError> {
    view.object("runtimeConfig")?.map_or(Ok(Vec::new()), |runtime| ips(&runtime))
}

fn ips<'a>(view: &View<'a>) -> Result<Vec<(String, &'a str)>, ConfigError> {
    let texts = view.strings("ips")?.unwrap_or_default().into_iter().enumerate();
    Ok(texts.map(|(position, text)| (format!("{}[{position}]", view.path("ips")), text)).collect())
}

/// Refuses what a result up to CNI 0.2.0 cannot say: two addresses of one family.
///
/// # Errors
/// The problem, in one line.
pub fn check_version(conf: &NetConf, is_ipv4: impl Iterator<Item = bool>) -> Result<(), String> {
    let version = conf.version().map_err(|error| error.msg)?;
    let (ipv4, ipv6): (Vec<bool>, Vec<bool>) = is_ipv4.partition(|is_ipv4| *is_ipv4);
    if version <= Version::V0_2_0 && (ipv4.len() > 1 || ipv6.len() > 1) {
        let version = version.as_str();
        return Err(format!("more than one address of a family needs cniVersion 0.3.0 or newer, not {version}"));
    }
    Ok(())
}
