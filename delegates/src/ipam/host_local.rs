//! `host-local`: addresses from pools of this host, remembered in a folder that the reference plugin can use at the same
//! time. Here are the decisions: which address, whose, and what an error says. Reading the configuration is `host_local_conf`'s
//! business, the files are `reservations`'.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::unistd::{AccessFlags, access};

use super::index::Entry;
use super::ranges::{Range, RangeSet};
use super::reservations::{Claim, Reservations, Store};
use super::resolv_conf;
use super::store::{Owner, StoreError, addresses_in, is_taken, last_reserved_in};
use crate::cni::{CniArgs, CniError, CniResult, IpConfig, Route, ValidAttachment, code};
use crate::delegate::{Attachment, Context};
use crate::uses::Uses;

/// The keys of `CNI_ARGS` that host-local reads. A `host-local` called on its own refuses others
/// ([`CniArgs::reject_unknown`]); inside a delegate they are that delegate's.
pub const CNI_ARGS_KEYS: &[&str] = &["IP"];

/// How many addresses are tried one by one before the folder is listed to skip what is taken.
const PROBES: usize = 64;

/// A parsed `host-local` configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct HostLocal {
    pub(super) pools: Vec<RangeSet>,
    pub(super) routes: Vec<Route>,
    /// `<dataDir>/<network name>`.
    pub(super) folder: PathBuf,
    pub(super) resolv_conf: Option<PathBuf>,
    /// Addresses that `args.cni.ips` and `runtimeConfig.ips` ask for.
    pub(super) requested: Vec<IpAddr>,
    pub(super) warnings: Vec<String>,
}

/// Why no addresses were given. Nothing is reserved then.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// No pool may give the requested addresses out, or one pool is asked for several.
    #[error("failed to allocate all requested IPs: {}", joined(.0))]
    Unmatched(Vec<IpAddr>),
    /// The requested address belongs to the gateway.
    #[error("requested IP {0} is its subnet's gateway")]
    Gateway(IpAddr),
    /// The requested address is somebody else's.
    #[error("requested IP address {address} is not available in range set {pool}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The pool it belongs to.
        pool: String,
    },
    /// The attachment has an address already.
    #[error("{address} has been allocated to {container_id}, duplicate allocation is not allowed")]
    Duplicate {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        container_id: String,
    },
    /// A pool is used up.
    #[error("failed to allocate for range {position}: no IP addresses available in range set: {pool}")]
    Exhausted {
        /// The pool's position.
        position: usize,
        /// The pool.
        pool: String,
    },
    /// The folder could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> CniError {
        let code = match error {
            StoreError::Io { .. } => code::IO,
            StoreError::Locked { .. } => code::TRY_AGAIN,
        };
        CniError::new(code, format!("host-local: {error}"))
    }
}

impl From<AllocationError> for CniError {
    fn from(error: AllocationError) -> CniError {
        use AllocationError as E;
        let (code, details) = match error {
            E::Store(error) => return error.into(),
            E::Unmatched(_) => (code::CONFIG, "ask for at most one address of each pool, inside its ranges"),
            E::Gateway(_) => (code::CONFIG, "ask for another address"),
            E::Taken { .. } => (code::DELEGATE, "ask for another address, or remove the pod that has it"),
            E::Duplicate { .. } => (code::DELEGATE, "DEL has to come before the same ADD again"),
            E::Exhausted { .. } => (code::DELEGATE, "remove pods, or give the network more ranges"),
        };
        CniError::new(code, format!("host-local: {error}")).with_details(details)
    }
}

impl HostLocal {
    /// What was ignored, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(crate) fn used(&self, uses: &mut Uses) {
        for range in self.pools.iter().flat_map(RangeSet::ranges) {
            uses.addresses.push((range.subnet(), range.addresses()));
            uses.gateways.push(range.gateway());
        }
        uses.next_hops.extend(self.routes.iter().filter_map(|route| route.gw));
        uses.folder = Some(self.folder.clone());
    }

    /// Whether the pools hold what is asked of them; whether it is free, only the folder knows.
    ///
    /// # Errors
    /// What [`Self::add`] would say.
    pub fn serves(&self, args: &CniArgs) -> Result<(), CniError> {
        Ok(self.match_requests(&self.requested(args)?).map(drop)?)
    }

    /// Reserves one address of each pool.
    ///
    /// # Errors
    /// An unusable request (code 4 or 7), an address that cannot be had (100), a file that cannot be used (5), or a lock not free
    /// in time (11). Nothing is reserved then.
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        let dns = self.resolv_conf.as_deref().map(resolv_conf::read).transpose()?.unwrap_or_default();
        let requested = self.requested(at.args)?;
        let ips =
            self.allocate(&self.store(at.state_dir).recorded(at.mark.is_some()), at.deadline, &owner(at), &requested)?;
        Ok(CniResult { ips, routes: self.routes.clone(), dns, ..CniResult::default() })
    }

    /// Whether the attachment holds an address of each pool, and `prevResult`, where there is one, names them.
    ///
    /// # Errors
    /// What is missing (code 100); files that cannot be used (5).
    pub fn check(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        let held = match self.store(at.state_dir).lock_existing(at.deadline)? {
            Some(mut reservations) => reservations.held_by(&owner(at))?,
            None => Vec::new(),
        };
        self.compare(&held, at.prev_result)
            .map_err(|problem| CniError::new(code::DELEGATE, format!("host-local: {problem}")))
    }

    /// Gives the attachment's addresses back. What is gone already is fine.
    ///
    /// # Errors
    /// The files cannot be used (code 5), or not in time (11).
    pub fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        if let Some(mut reservations) = self.store(at.state_dir).lock_existing(at.deadline)? {
            reservations.release(&owner(at))?;
        }
        Ok(())
    }

    /// Whether the folder can be used and every pool has a free address. A look without the lock: nobody waits for it.
    ///
    /// # Errors
    /// Code 50, naming the folder or the pool.
    pub fn status(&self, _cx: &Context<'_>) -> Result<(), CniError> {
        let unavailable = |problem: String| CniError::new(code::NOT_AVAILABLE, format!("host-local: {problem}"));
        check_usable(&self.folder).map_err(unavailable)?;
        for (position, pool) in self.pools.iter().enumerate() {
            let last = last_reserved_in(&self.folder, position);
            let probe = |address, _: &Range| Ok((!is_taken(&self.folder, address)).then_some(()));
            if first_free(pool, last, probe, || addresses_in(&self.folder))?.is_none() {
                return Err(unavailable(format!("no IP addresses available in range set: {pool}")));
            }
        }
        Ok(())
    }

    /// Frees what our own ADD reserved for attachments that are not valid any more. Reservations that another program made are
    /// reported and left alone.
    ///
    /// # Errors
    /// The files cannot be used (code 5), or not in time (11).
    pub fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        for stranger in self.collect(&self.store(cx.state_dir), cx.deadline, valid, &|_, entry| entry.ours)? {
            tracing::warn!(
                "host-local: {} holds an address in {} that no valid attachment has and we did not give: left alone",
                stranger.container_id,
                self.folder.display()
            );
        }
        Ok(())
    }

    /// Frees the reservations of owners that are neither valid nor strangers; returns the strangers, of whom nothing is freed.
    ///
    /// # Errors
    /// The files cannot be used, or not in time.
    pub fn collect(
        &self,
        store: &Store,
        deadline: Instant,
        valid: &[ValidAttachment],
        known: &dyn Fn(&Owner, &Entry) -> bool,
    ) -> Result<Vec<Owner>, StoreError> {
        let Some(mut reservations) = store.lock_existing(deadline)? else {
            return Ok(Vec::new());
        };
        let attachments: HashSet<Owner> = valid.iter().map(|v| Owner::new(&v.container_id, &v.interface)).collect();
        let containers: HashSet<&str> = valid.iter().map(|v| v.container_id.as_str()).collect();
        let is_valid = |owner: &Owner| match owner.interface.is_empty() {
            true => containers.contains(owner.container_id.as_str()),
            false => attachments.contains(owner),
        };
        reservations.release_matching(&|owner, entry| !is_valid(owner) && known(owner, entry))?;
        let left = reservations.list()?.into_iter().map(|(owner, _)| owner);
        Ok(left.filter(|owner| !is_valid(owner)).collect())
    }

    /// Reserves one address of each pool under one hold of the lock: a requested one where the pool has it, else the next
    /// free one.
    ///
    /// The reference lets a container that asks for an address have a second one; a second ADD without DEL is a mistake
    /// whatever it asks for, so here it is refused always.
    ///
    /// # Errors
    /// See [`AllocationError`]. Nothing is reserved then.
    pub fn allocate(
        &self,
        store: &Store,
        deadline: Instant,
        owner: &Owner,
        requested: &[IpAddr],
    ) -> Result<Vec<IpConfig>, AllocationError> {
        let wishes = self.match_requests(requested)?;
        let mut reservations = store.lock(deadline)?;
        self.refuse_duplicate(&mut reservations, owner)?;
        let mut claims = Vec::new();
        let ips = self.claim_all(&mut reservations, &wishes, &mut claims);
        if ips.is_err() {
            reservations.abandon(&claims);
        }
        let ips = ips?;
        reservations.commit(owner, &claims)?;
        Ok(ips)
    }

    /// Where the reservations are.
    pub fn store(&self, state_dir: &Path) -> Store {
        Store::open(&self.folder).with_index(state_dir)
    }

    /// All addresses asked for: by the configuration and by `CNI_ARGS`, each once. (Multus users send the same address both
    /// ways.)
    fn requested(&self, args: &CniArgs) -> Result<Vec<IpAddr>, CniError> {
        let mut requested = self.requested.clone();
        for text in args.get("IP").unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let address = address_of(text).ok_or_else(|| {
                let problem = format!("CNI_ARGS: IP must be ADDRESS or ADDRESS/PREFIX, not {text:?}");
                CniError::new(code::ENVIRONMENT, problem)
            })?;
            if !requested.contains(&address) {
                requested.push(address);
            }
        }
        Ok(requested)
    }

    /// For each pool the address that is asked of it.
    fn match_requests(&self, requested: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, AllocationError> {
        let mut left = requested.to_vec();
        let mut wish = |pool: &RangeSet| {
            let position = left.iter().position(|address| pool.range_of(*address).is_some());
            position.map(|position| left.remove(position))
        };
        let wishes: Vec<_> = self.pools.iter().map(&mut wish).collect();
        if !left.is_empty() {
            return Err(AllocationError::Unmatched(left));
        }
        let is_gateway = |(pool, wish): (&RangeSet, &Option<IpAddr>)| wish.filter(|wish| pool.is_gateway(*wish));
        match self.pools.iter().zip(&wishes).find_map(is_gateway) {
            Some(gateway) => Err(AllocationError::Gateway(gateway)),
            None => Ok(wishes),
        }
    }

    fn refuse_duplicate(&self, reservations: &mut Reservations, owner: &Owner) -> Result<(), AllocationError> {
        let held = reservations.held_by(owner)?;
        let of_ours = |address: &&IpAddr| self.pools.iter().any(|pool| pool.range_of(**address).is_some());
        match held.iter().find(of_ours) {
            Some(address) => {
                Err(AllocationError::Duplicate { address: *address, container_id: owner.container_id.clone() })
            }
            None => Ok(()),
        }
    }

    fn claim_all(
        &self,
        reservations: &mut Reservations,
        wishes: &[Option<IpAddr>],
        claims: &mut Vec<Claim>,
    ) -> Result<Vec<IpConfig>, AllocationError> {
        let mut ips = Vec::new();
        for (position, (pool, wish)) in self.pools.iter().zip(wishes).enumerate() {
            let (claim, ip) = match wish {
                Some(address) => claim_requested(reservations, pool, position, *address)?,
                None => claim_next(reservations, pool, position)?,
            };
            claims.push(claim);
            ips.push(ip);
        }
        Ok(ips)
    }

    fn compare(&self, held: &[IpAddr], result: Option<&CniResult>) -> Result<(), String> {
        let ips = result.map(|result| result.ips.as_slice()).unwrap_or_default();
        for pool in &self.pools {
            let Some(address) = held.iter().find(|address| pool.range_of(**address).is_some()) else {
                return Err(format!("the attachment holds no address of range set {pool}"));
            };
            let named = ips.iter().map(|ip| ip.address.addr());
            let of_pool: Vec<IpAddr> = named.filter(|named| pool.range_of(*named).is_some()).collect();
            if !of_pool.is_empty() && !of_pool.contains(address) {
                return Err(format!("the attachment holds {address}, the result names {}", joined(&of_pool)));
            }
        }
        Ok(())
    }
}

fn owner(at: &Attachment<'_>) -> Owner {
    Owner::new(at.container_id.as_str(), at.interface.as_str())
}

fn claim_requested(
    reservations: &mut Reservations,
    pool: &RangeSet,
    position: usize,
    address: IpAddr,
) -> Result<(Claim, IpConfig), AllocationError> {
    let taken = || AllocationError::Taken { address, pool: pool.to_string() };
    let range = pool.range_of(address).ok_or_else(taken)?;
    let claim = reservations.claim(position, address)?.ok_or_else(taken)?;
    Ok((claim, ip_config(range, address)))
}

fn claim_next(
    reservations: &mut Reservations,
    pool: &RangeSet,
    position: usize,
) -> Result<(Claim, IpConfig), AllocationError> {
    let last = reservations.last_reserved(position);
    // Two closures want the folder: the second only lists it, so it does so by the path.
    let folder = reservations.folder().to_path_buf();
    let probe = |address, range: &Range| {
        let claim = reservations.claim(position, address)?;
        Ok(claim.map(|claim| (claim, ip_config(range, address))))
    };
    let found = first_free(pool, last, probe, || addresses_in(&folder))?;
    found.ok_or_else(|| AllocationError::Exhausted { position, pool: pool.to_string() })
}

fn ip_config(range: &Range, address: IpAddr) -> IpConfig {
    IpConfig { interface: None, address: range.with_prefix(address), gateway: Some(range.gateway()) }
}

/// Tries the addresses of a pool in their order until one is free. The first few are probed; if they are all taken, the
/// folder is listed once to skip the rest of what has a file; what is left then are files whose makers died.
fn first_free<T>(
    pool: &RangeSet,
    last: Option<IpAddr>,
    mut probe: impl FnMut(IpAddr, &Range) -> Result<Option<T>, StoreError>,
    list: impl FnOnce() -> Result<HashSet<IpAddr>, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut candidates = pool.candidates(last);
    for (address, range) in candidates.by_ref().take(PROBES) {
        if let Some(found) = probe(address, range)? {
            return Ok(Some(found));
        }
    }
    let taken = list()?;
    let without_file = candidates.filter(|(address, _)| !taken.contains(address));
    let with_file = pool.candidates(last).filter(|(address, _)| taken.contains(address));
    for (address, range) in without_file.chain(with_file) {
        if let Some(found) = probe(address, range)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether reservations can be written into a folder, which ADD makes where it is missing.
fn check_usable(folder: &Path) -> Result<(), String> {
    let exists = |path: &&Path| path.symlink_metadata().is_ok();
    let place = folder.ancestors().find(exists).unwrap_or(Path::new("/"));
    if !place.is_dir() {
        return Err(format!("cannot create {}: {} is not a folder", folder.display(), place.display()));
    }
    let writable = access(place, AccessFlags::W_OK | AccessFlags::X_OK);
    writable.map_err(|errno| format!("cannot write to {}: {}", place.display(), std::io::Error::from(errno)))
}

/// An address with or without a prefix, which does not matter here.
pub(super) fn address_of(text: &str) -> Option<IpAddr> {
    let address: IpAddr = match text.parse() {
        Ok(address) => address,
        Err(_) => text.parse::<ipnet::IpNet>().ok()?.addr(),
    };
    Some(address.to_canonical())
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::testing::{Asking, conf, with};
    use super::*;

    fn ipam(ranges: Value) -> Value {
        json!({"type": "host-local", "dataDir": "DIR", "ranges": ranges})
    }

    fn one_pool() -> Asking {
        Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/29"}]]))))
    }

    impl Asking {
        fn host_local(&self) -> HostLocal {
            HostLocal::parse(&self.conf).unwrap()
        }

        fn of(&mut self, container_id: &str, interface: &str) -> &mut Asking {
            self.container_id = container_id.to_string();
            self.interface = interface.to_string();
            self
        }

        fn add(&self) -> Result<Vec<String>, CniError> {
            let result = self.ask(|at| self.host_local().add(at))?;
            Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
        }

        fn release(&self) {
            self.ask(|at| self.host_local().release(at)).unwrap();
        }

        fn check(&self) -> Result<(), CniError> {
            self.ask(|at| self.host_local().check(at))
        }

        fn status(&self) -> Result<(), CniError> {
            self.ask(|at| self.host_local().status(&at.context))
        }

        fn write(&self, name: &str, content: &str) {
            fs::create_dir_all(self.folder()).unwrap();
            fs::write(self.folder().join(name), content).unwrap();
        }

        fn content(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.folder().join(name)).ok()
        }

        /// The reservations, sorted by name.
        fn reserved(&self) -> Vec<String> {
            let mut addresses: Vec<_> = addresses_in(&self.folder()).unwrap().into_iter().collect();
            addresses.sort();
            addresses.iter().map(IpAddr::to_string).collect()
        }
    }

    fn message(outcome: Result<impl Sized, CniError>) -> (u32, String) {
        let error = outcome.map(drop).unwrap_err();
        (error.code, error.msg)
    }

    #[test]
    fn two_pools_give_an_address_each_and_del_takes_them_back() {
        let mut ipam =
            ipam(json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]]));
        ipam["routes"] =
            json!([{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1", "mtu": 1400, "table": 100}]);
        let pod = Asking::new(&conf(ipam));
        let result = pod.ask(|at| pod.host_local().add(at)).unwrap();
        assert_eq!(
            result.to_json(crate::cni::Version::V1_1_0).unwrap(),
            json!({
                "cniVersion": "1.1.0",
                "ips": [
                    {"address": "10.1.2.2/24", "gateway": "10.1.2.1"},
                    {"address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1", "mtu": 1400, "table": 100}],
            })
        );
        assert_eq!(pod.content("10.1.2.2").unwrap(), "c1\r\neth0");
        assert_eq!(pod.content("2001:db8:1::2").unwrap(), "c1\r\neth0");
        assert_eq!(pod.content("last_reserved_ip.0").unwrap(), "10.1.2.2");
        assert_eq!(pod.content("last_reserved_ip.1").unwrap(), "2001:db8:1::2");
        pod.release();
        assert_eq!(pod.reserved(), Vec::<String>::new());
        pod.release();
    }

    #[test]
    fn del_of_what_never_was_makes_nothing() {
        let pod = one_pool();
        pod.release();
        assert!(!pod.folder().exists());
    }

    #[test]
    fn del_works_with_ranges_that_have_become_wrong() {
        let mut pod = one_pool();
        pod.add().unwrap();
        pod.conf.insert("ipam", json!({"type": "host-local", "dataDir": pod.place.path(), "subnet": "none"}));
        assert!(HostLocal::parse(&pod.conf).is_err());
        let lenient = super::super::Ipam::parse_for_release(&pod.conf).unwrap().unwrap();
        pod.ask(|at| lenient.release(at)).unwrap();
        assert_eq!(pod.reserved(), Vec::<String>::new());
    }

    #[test]
    fn two_interfaces_of_a_container_are_two_attachments() {
        let mut pod = one_pool();
        assert_eq!(pod.of("c1", "eth0").add().unwrap(), ["10.9.0.2/29"]);
        assert_eq!(pod.of("c1", "eth1").add().unwrap(), ["10.9.0.3/29"]);
        pod.of("c1", "eth0").release();
        assert_eq!(pod.reserved(), ["10.9.0.3"]);
    }

    #[test]
    fn the_same_add_twice_is_refused() {
        let mut pod = one_pool();
        pod.add().unwrap();
        let duplicate = "host-local: 10.9.0.2 has been allocated to c1, duplicate allocation is not allowed";
        assert_eq!(message(pod.add()), (code::DELEGATE, duplicate.to_string()));
        pod.args = "IP=10.9.0.5".to_string();
        assert_eq!(message(pod.add()), (code::DELEGATE, duplicate.to_string()), "asking does not help");
        assert_eq!(pod.reserved(), ["10.9.0.2"]);
        pod.args.clear();
        assert!(pod.of("c1", "eth1").add().is_ok());
        pod.release();
        assert!(pod.add().is_ok(), "after DEL it is allowed");
    }

    #[test]
    fn a_reservation_of_the_old_format_is_a_duplicate_too() {
        let pod = one_pool();
        pod.write("10.9.0.4", "c1");
        assert!(message(pod.add()).1.contains("10.9.0.4 has been allocated to c1"));
        pod.release();
        assert_eq!(pod.reserved(), Vec::<String>::new());
    }

    #[test]
    fn a_pool_is_used_round_robin_until_it_is_exhausted() {
        let mut pod = one_pool();
        for (container, address) in [("a", "2"), ("b", "3"), ("c", "4"), ("d", "5"), ("e", "6")] {
            assert_eq!(pod.of(container, "eth0").add().unwrap(), [format!("10.9.0.{address}/29")]);
        }
        let exhausted =
            "host-local: failed to allocate for range 0: no IP addresses available in range set: 10.9.0.1-10.9.0.6";
        assert_eq!(message(pod.of("f", "eth0").add()), (code::DELEGATE, exhausted.to_string()));
        pod.of("c", "eth0").release();
        assert_eq!(pod.of("f", "eth0").add().unwrap(), ["10.9.0.4/29"], "a freed address is reused");
        pod.of("a", "eth0").release();
        pod.of("f", "eth0").release();
        assert_eq!(
            pod.of("g", "eth0").add().unwrap(),
            ["10.9.0.2/29"],
            "with .2 and .4 free the one after the last comes first"
        );
        assert_eq!(pod.of("h", "eth0").add().unwrap(), ["10.9.0.4/29"]);
    }

    #[test]
    fn the_broadcast_address_and_the_gateway_are_never_given() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/29", "gateway": "10.9.0.4"}]]))));
        let given: Vec<_> = (0..5).map(|n| pod.of(&format!("c{n}"), "eth0").add().unwrap().remove(0)).collect();
        assert_eq!(given, ["10.9.0.1/29", "10.9.0.2/29", "10.9.0.3/29", "10.9.0.5/29", "10.9.0.6/29"]);
        assert!(pod.of("c9", "eth0").add().is_err());
    }

    #[test]
    fn a_pool_of_several_ranges_goes_from_one_to_the_next() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/30"}, {"subnet": "10.9.1.0/30"}]]))));
        let result = pod.ask(|at| pod.host_local().add(at)).unwrap();
        assert_eq!(result.ips[0].gateway.unwrap().to_string(), "10.9.0.1");
        pod.of("c2", "eth0");
        let result = pod.ask(|at| pod.host_local().add(at)).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.9.1.2/30");
        assert_eq!(result.ips[0].gateway.unwrap().to_string(), "10.9.1.1", "each range has its own gateway");
        assert!(pod.of("c3", "eth0").add().is_err());
    }

    #[test]
    fn requested_addresses_are_given_whichever_way_they_come() {
        let both = json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]);
        for (keys, args, expected) in [
            (json!({}), "IP=10.1.2.88", ["10.1.2.88/24", "fd00::2/64"]),
            (json!({}), "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.1.2.88/30", ["10.1.2.88/24", "fd00::2/64"]),
            (json!({}), "IP=10.1.2.88,fd00::77", ["10.1.2.88/24", "fd00::77/64"]),
            (json!({}), "IP=", ["10.1.2.2/24", "fd00::2/64"]),
            (json!({"args": {"cni": {"ips": ["10.1.2.88"]}}}), "", ["10.1.2.88/24", "fd00::2/64"]),
            (json!({"args": {"cni": {"ips": ["fd00::77", "10.1.2.88/24"]}}}), "", ["10.1.2.88/24", "fd00::77/64"]),
            (json!({"runtimeConfig": {"ips": ["10.1.2.88/16"]}}), "", ["10.1.2.88/24", "fd00::2/64"]),
            (json!({"runtimeConfig": {"IPs": ["10.1.2.88"]}}), "IP=10.1.2.88", ["10.1.2.88/24", "fd00::2/64"]),
            (
                json!({"runtimeConfig": {"ips": ["fd00::77"]}, "args": {"cni": {"ips": ["fd00::77"]}}}),
                "IP=10.1.2.88",
                ["10.1.2.88/24", "fd00::77/64"],
            ),
        ] {
            let mut conf = with(keys.clone());
            conf.insert("ipam", ipam(both.clone()));
            let mut pod = Asking::new(&conf);
            pod.args = args.to_string();
            assert_eq!(pod.add().unwrap(), expected, "{keys} {args}");
            assert_eq!(
                pod.content("last_reserved_ip.0").unwrap() + "/24",
                expected[0],
                "a requested address counts for the order"
            );
        }
    }

    #[test]
    fn requested_addresses_that_cannot_be_had_are_refused_and_nothing_is_kept() {
        for (args, expected_code, expected) in [
            ("IP=10.1.2.1", code::CONFIG, "requested IP 10.1.2.1 is its subnet's gateway"),
            (
                "IP=10.1.2.8",
                code::DELEGATE,
                "requested IP address 10.1.2.8 is not available in range set 10.1.2.1-10.1.2.254",
            ),
            ("IP=10.1.3.8", code::CONFIG, "failed to allocate all requested IPs: 10.1.3.8"),
            ("IP=10.1.2.5,10.1.2.6", code::CONFIG, "failed to allocate all requested IPs: 10.1.2.6"),
            ("IP=fd00::5,fd00:1::5", code::CONFIG, "failed to allocate all requested IPs: fd00:1::5"),
            ("IP=10.1.2", code::ENVIRONMENT, "CNI_ARGS: IP must be ADDRESS or ADDRESS/PREFIX"),
        ] {
            let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "fd00::/64"}], [{"subnet": "10.1.2.0/24"}]]))));
            pod.write("10.1.2.8", "other\r\neth0");
            pod.args = args.to_string();
            let (code, problem) = message(pod.add());
            assert_eq!(code, expected_code, "{args}");
            assert!(problem.contains(expected), "{args}: {problem}");
            assert_eq!(pod.reserved(), ["10.1.2.8"], "{args}");
        }
    }

    #[test]
    fn bounds_of_a_range_hold_for_requests() {
        for (address, given) in [("9", false), ("10", true), ("20", true), ("21", false)] {
            let ranges = json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.20"}]]);
            let mut pod = Asking::new(&conf(ipam(ranges)));
            pod.args = format!("IP=10.1.2.{address}");
            assert_eq!(pod.add().is_ok(), given, "10.1.2.{address}");
        }
    }

    #[test]
    fn when_a_later_pool_is_exhausted_the_earlier_keeps_nothing() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/29"}], [{"subnet": "10.8.0.0/30"}]]))));
        pod.of("c1", "eth0").add().unwrap();
        let (_, problem) = message(pod.of("c2", "eth0").add());
        assert!(
            problem
                .contains("failed to allocate for range 1: no IP addresses available in range set: 10.8.0.1-10.8.0.2"),
            "{problem}"
        );
        assert_eq!(pod.reserved(), ["10.8.0.2", "10.9.0.2"]);
        assert_eq!(pod.content("last_reserved_ip.0").unwrap(), "10.9.0.2", "the order goes on as if nothing had been");
    }

    #[test]
    fn an_empty_file_does_not_block_its_address_but_comes_in_its_turn() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/30"}]]))));
        pod.write("10.9.0.2", "");
        assert!(pod.status().is_ok());
        assert_eq!(pod.add().unwrap(), ["10.9.0.2/30"]);
        assert_eq!(pod.content("10.9.0.2").unwrap(), "c1\r\neth0");
        assert!(pod.of("c2", "eth0").add().is_err());
    }

    #[test]
    fn many_taken_addresses_are_skipped_by_one_listing_and_empty_ones_found_last() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/24"}]]))));
        for host in (2..=254).filter(|host| *host != 200) {
            pod.write(&format!("10.9.0.{host}"), if host == 150 { "" } else { "other\r\neth0" });
        }
        assert_eq!(pod.add().unwrap(), ["10.9.0.200/24"]);
        pod.write("last_reserved_ip.0", "10.9.0.1");
        assert_eq!(pod.of("c2", "eth0").add().unwrap(), ["10.9.0.150/24"]);
        assert_eq!(message(pod.status()).0, code::NOT_AVAILABLE);
        assert!(pod.of("c3", "eth0").add().is_err());
    }

    #[test]
    fn a_last_address_that_makes_no_sense_is_no_obstacle() {
        for last in ["", "nonsense", "10.9.9.9", "fd00::1", "10.9.0.999"] {
            let pod = one_pool();
            pod.write("last_reserved_ip.0", last);
            assert_eq!(pod.add().unwrap(), ["10.9.0.2/29"], "{last:?}");
            assert_eq!(pod.content("last_reserved_ip.0").unwrap(), "10.9.0.2");
        }
    }

    #[test]
    fn many_at_once_get_distinct_addresses() {
        let pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/16"}]]))));
        let host_local = pod.host_local();
        let allocate = |owner: Owner| {
            let deadline = Instant::now() + Duration::from_secs(60);
            host_local.allocate(&host_local.store(&pod.state_dir()), deadline, &owner, &[]).unwrap()
        };
        let of_thread = |thread: usize| {
            (0..50).map(|n| allocate(Owner::new(&format!("c{thread}-{n}"), "eth0"))[0].address).collect::<Vec<_>>()
        };
        let of_thread = &of_thread;
        let given: HashSet<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || of_thread(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 400);
        assert_eq!(pod.reserved().len(), 400);
    }

    #[test]
    fn check_wants_an_address_of_each_pool_and_the_result_to_name_it() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd00::/64"}]]))));
        let missing = "host-local: the attachment holds no address of range set 10.9.0.1-10.9.0.6";
        assert_eq!(message(pod.check()), (code::DELEGATE, missing.to_string()));
        let result = pod.ask(|at| pod.host_local().add(at)).unwrap();
        assert_eq!(pod.check(), Ok(()));
        pod.prev_result = Some(result.clone());
        assert_eq!(pod.check(), Ok(()));
        pod.prev_result.as_mut().unwrap().ips[0].address = "10.9.0.3/29".parse().unwrap();
        let differs = "host-local: the attachment holds 10.9.0.2, the result names 10.9.0.3";
        assert_eq!(message(pod.check()).1, differs);
        pod.prev_result = Some(result);
        fs::remove_file(pod.folder().join("fd00::2")).unwrap();
        assert!(message(pod.check()).1.contains("no address of range set fd00::1-"));
    }

    #[test]
    fn status_tells_whether_add_could_work() {
        let mut pod = Asking::new(&conf(ipam(json!([[{"subnet": "10.9.0.0/30"}]]))));
        assert_eq!(pod.status(), Ok(()));
        assert!(!pod.folder().exists(), "a question changes nothing");
        pod.add().unwrap();
        let full = "host-local: no IP addresses available in range set: 10.9.0.1-10.9.0.2";
        assert_eq!(message(pod.status()), (code::NOT_AVAILABLE, full.to_string()));
        pod.release();
        assert_eq!(pod.status(), Ok(()));
        pod.conf.insert("ipam", json!({"dataDir": pod.place.path().join("file/below"), "subnet": "10.9.0.0/30"}));
        fs::write(pod.place.path().join("file"), "").unwrap();
        let (code, problem) = message(pod.status());
        assert_eq!(code, code::NOT_AVAILABLE);
        assert!(problem.contains("cannot create ") && problem.ends_with("/file is not a folder"), "{problem}");
        assert_eq!(message(pod.add()).0, code::IO);
    }

    #[test]
    fn gc_frees_what_we_gave_and_leaves_what_others_gave() {
        let mut pod = one_pool();
        for container in ["valid", "stale"] {
            pod.of(container, "eth0").add().unwrap();
        }
        pod.of("valid", "eth1").add().unwrap();
        pod.write("10.9.0.5", "podman\r\neth0");
        pod.write("10.9.0.6", "valid");
        let valid = [ValidAttachment { container_id: "valid".to_string(), interface: "eth0".to_string() }];
        pod.ask(|at| pod.host_local().gc(&at.context, &valid)).unwrap();
        assert_eq!(pod.reserved(), ["10.9.0.2", "10.9.0.5", "10.9.0.6"], "stale/eth0 and valid/eth1 are gone");
        pod.ask(|at| pod.host_local().gc(&at.context, &[])).unwrap();
        assert_eq!(pod.reserved(), ["10.9.0.5", "10.9.0.6"]);
    }

    #[test]
    fn a_collection_names_the_strangers() {
        let pod = one_pool();
        pod.write("10.9.0.2", "known\r\neth0");
        pod.write("10.9.0.3", "stranger\r\neth0");
        let store = pod.host_local().store(&pod.state_dir());
        let known = |owner: &Owner, _: &Entry| owner.container_id == "known";
        let deadline = Instant::now() + Duration::from_secs(20);
        let strangers = pod.host_local().collect(&store, deadline, &[], &known).unwrap();
        assert_eq!(strangers, [Owner::new("stranger", "eth0")]);
        assert_eq!(pod.reserved(), ["10.9.0.3"]);
    }

    #[test]
    fn resolv_conf_becomes_dns_and_a_missing_one_reserves_nothing() {
        let mut ipam = ipam(json!([[{"subnet": "10.9.0.0/29"}]]));
        ipam["resolvConf"] = json!("DIR/resolv.conf");
        let pod = Asking::new(&conf(ipam));
        assert_eq!(message(pod.add()).0, code::IO);
        assert_eq!(pod.reserved(), Vec::<String>::new());
        fs::write(pod.place.path().join("resolv.conf"), "nameserver 192.0.2.3\n").unwrap();
        assert_eq!(pod.ask(|at| pod.host_local().add(at)).unwrap().dns.nameservers, ["192.0.2.3"]);
    }
}
