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

    /// Reserves one address of each pool.
    ///
    /// # Errors
    /// An unusable request (code 4 or 7), an address that cannot be had (100), a file that cannot be used (5), or a lock not free
    /// in time (11). Nothing is reserved then.
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        let dns = self.resolv_conf.as_deref().map(resolv_conf::read).transpose()?.unwrap_or_default();
        let requested = self.requested(at.args)?;
        let ips = self.allocate(&self.store(at.state_dir), at.deadline, &owner(at), &requested)?;
        Ok(CniResult { ips, routes: self.routes.clone(), dns, ..CniResult::default() })
    }

    /// Whether the attachment holds an address of each pool, and the result names them.
    ///
    /// # Errors
    /// What is missing (code 100); files that cannot be used (5).
    pub fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        let held = match self.store(at.state_dir).lock_existing(at.deadline)? {
            Some(mut reservations) => reservations.held_by(&owner(at))?,
            None => Vec::new(),
        };
        self.compare(&held, result).map_err(|problem| CniError::new(code::DELEGATE, format!("host-local: {problem}")))
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

    fn compare(&self, held: &[IpAddr], result: &CniResult) -> Result<(), String> {
        for pool in &self.pools {
            let Some(address) = held.iter().find(|address| pool.range_of(**address).is_some()) else {
                return Err(format!("the attachment holds no address of range set {pool}"));
            };
            let named = result.ips.iter().map(|ip| ip.address.addr());
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
