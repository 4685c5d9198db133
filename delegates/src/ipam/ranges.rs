//! The address pools of `host-local`: ranges, sets of ranges, and the order in which their addresses are tried.
//! Pure: which addresses are taken is the store's business.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// One range of a pool: the part of a subnet from its start to its end, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

/// What is wrong with a range, and which of its keys says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeProblem {
    /// `subnet`, `rangeStart`, `rangeEnd` or `gateway`.
    pub key: &'static str,
    /// One line for a person, with the accepted values.
    pub problem: String,
}

impl RangeProblem {
    fn new(key: &'static str, problem: String) -> RangeProblem {
        RangeProblem { key, problem }
    }
}

impl Range {
    /// Completes a range as the reference host-local does: the gateway is the subnet's first address; the range begins
    /// there too, and ends before the broadcast address (IPv4) or with the last address (IPv6).
    ///
    /// A gateway outside the subnet is accepted, as the reference does: an off-link gateway is a real set-up.
    ///
    /// # Errors
    /// The key at fault and why: host bits in the subnet, fewer than four addresses, an address of the other family or
    /// outside the subnet, a start after the end.
    pub fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range, RangeProblem> {
        check_subnet(subnet)?;
        let first = address(number(subnet.network()) + 1, subnet);
        let last = match subnet {
            IpNet::V4(_) => address(number(subnet.broadcast()) - 1, subnet),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let start = inside("rangeStart", start, subnet)?.unwrap_or(first);
        let end = inside("rangeEnd", end, subnet)?.unwrap_or(last);
        if start > end {
            let problem = format!("{start} is after the range's end, {end}");
            return Err(RangeProblem::new("rangeStart", problem));
        }
        let gateway = gateway.map_or(first, |gateway| gateway.to_canonical());
        if gateway.is_ipv4() != start.is_ipv4() {
            let problem = format!("{gateway} is not of the family of {subnet}");
            return Err(RangeProblem::new("gateway", problem));
        }
        Ok(Range { subnet, start, end, gateway })
    }

    /// The subnet it is a part of.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Its addresses, the gateway among them where it lies there.
    pub fn addresses(&self) -> RangeInclusive<IpAddr> {
        self.start..=self.end
    }

    /// The gateway its pods use; never given to one of them.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The address with the prefix length of the subnet, as a result carries it.
    pub fn with_prefix(&self, address: IpAddr) -> IpNet {
        // The prefix is the subnet's own, so it fits the address's family; were it not, a host route is the safe answer.
        IpNet::new(address, self.subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4() && self.start <= other.end && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

fn check_subnet(subnet: IpNet) -> Result<(), RangeProblem> {
    if subnet.addr() != subnet.network() {
        let problem = format!("{subnet} has host bits set: the network is {}", subnet.trunc());
        return Err(RangeProblem::new("subnet", problem));
    }
    let longest = subnet.max_prefix_len() - 2;
    if subnet.prefix_len() > longest {
        let problem = format!("{subnet} is too small to allocate from: /{longest} or a shorter prefix is needed");
        return Err(RangeProblem::new("subnet", problem));
    }
    Ok(())
}

fn inside(key: &'static str, address: Option<IpAddr>, subnet: IpNet) -> Result<Option<IpAddr>, RangeProblem> {
    match address.map(|address| address.to_canonical()) {
        Some(address) if !subnet.contains(&address) => {
            Err(RangeProblem::new(key, format!("{address} is not in {subnet}")))
        }
        address => Ok(address),
    }
}

/// A pool from which an attachment gets one address: ranges of one family that do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Joins ranges to a pool.
    ///
    /// # Errors
    /// The position of the range at fault and why: no range at all, another family than the first, an overlap.
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet, (usize, String)> {
        let Some(first) = ranges.first() else {
            return Err((0, "needs at least one range".to_string()));
        };
        for (position, range) in ranges.iter().enumerate() {
            if range.start.is_ipv4() != first.start.is_ipv4() {
                let problem = format!(
                    "{} is not of the family of {}: one pool is all IPv4 or all IPv6",
                    range.subnet, first.subnet
                );
                return Err((position, problem));
            }
            if let Some(other) = ranges.iter().take(position).find(|other| other.overlaps(range)) {
                return Err((position, format!("{range} overlaps {other} of the same pool")));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Whether the pool is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.start.is_ipv4())
    }

    /// The range that may give this address out, if any. The gateways lie in a range as well: see [`Self::is_gateway`].
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Whether the address is the gateway of one of the ranges.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == address)
    }

    /// Two ranges that both pools would give out, if there are any.
    pub fn overlap<'a>(&'a self, other: &'a RangeSet) -> Option<(&'a Range, &'a Range)> {
        self.0.iter().find_map(|mine| other.0.iter().find(|theirs| mine.overlaps(theirs)).map(|theirs| (mine, theirs)))
    }

    /// Every address of the pool once, gateways left out, in the reference's order: round robin from the one after `last`
    /// through the ranges and back to `last` itself; from the first range's start when `last` is none of the pool's.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        self.stretches(last)
            .flat_map(|(range, from, to)| (from..=to).map(move |n| (address(n, range.subnet), range)))
            .filter(|(candidate, _)| !self.is_gateway(*candidate))
    }

    /// The ranges in the order of [`Self::candidates`], the one that holds `last` cut in two after it.
    fn stretches(&self, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, u128, u128)> {
        let resume = last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, last)));
        let (before, rest) = self.0.split_at(resume.map_or(0, |(position, _)| position));
        let (cut, after) = match (resume, rest.split_first()) {
            (Some((_, last)), Some((range, after))) => (Some((range, last)), after),
            _ => (None, rest),
        };
        let tail = cut.filter(|(range, last)| *last < range.end);
        let tail = tail.map(|(range, last)| (range, number(last) + 1, number(range.end)));
        let head = cut.map(|(range, last)| (range, number(range.start), number(last)));
        tail.into_iter().chain(after.iter().chain(before).map(whole)).chain(head)
    }
}

fn whole(range: &Range) -> (&Range, u128, u128) {
    (range, number(range.start), number(range.end))
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The inverse of [`number`], in the family of `like`. IPv4 numbers stay below 2³² because they come from a range.
fn address(number: u128, like: IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn range(subnet: &str, start: &str, end: &str) -> Range {
        let bound = |text: &str| (!text.is_empty()).then(|| ip(text));
        Range::new(subnet.parse().unwrap(), bound(start), bound(end), None).unwrap()
    }

    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        RangeSet::new(ranges.iter().map(|(subnet, start, end)| range(subnet, start, end)).collect()).unwrap()
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(ip)).map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn defaults_cover_the_subnet_without_its_broadcast_address() {
        for (subnet, start, end, gateway) in [
            ("192.0.2.0/24", "192.0.2.1", "192.0.2.254", "192.0.2.1"),
            ("192.0.2.0/25", "192.0.2.1", "192.0.2.126", "192.0.2.1"),
            ("2001:db8:1::/64", "2001:db8:1::1", "2001:db8:1::ffff:ffff:ffff:ffff", "2001:db8:1::1"),
            ("0.0.0.0/0", "0.0.0.1", "255.255.255.254", "0.0.0.1"),
            ("::/0", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
        ] {
            let range = range(subnet, "", "");
            assert_eq!((range.start, range.end, range.gateway), (ip(start), ip(end), ip(gateway)), "{subnet}");
        }
    }

    #[test]
    fn a_wrong_range_names_the_key() {
        let none = "";
        for (subnet, start, end, gateway, key, problem) in [
            (
                "192.0.2.12/24",
                none,
                none,
                none,
                "subnet",
                "192.0.2.12/24 has host bits set: the network is 192.0.2.0/24",
            ),
            ("2001:db8:1::1/64", none, none, none, "subnet", "the network is 2001:db8:1::/64"),
            ("192.0.2.0/31", none, none, none, "subnet", "too small to allocate from: /30 or a shorter prefix"),
            ("192.0.2.0/32", none, none, none, "subnet", "too small"),
            ("2001:db8::/127", none, none, none, "subnet", "too small to allocate from: /126 or a shorter prefix"),
            ("192.0.2.0/24", "192.0.3.1", none, none, "rangeStart", "192.0.3.1 is not in 192.0.2.0/24"),
            ("192.0.2.0/24", "2001:db8::1", none, none, "rangeStart", "2001:db8::1 is not in 192.0.2.0/24"),
            ("192.0.2.0/24", none, "192.0.3.1", none, "rangeEnd", "192.0.3.1 is not in 192.0.2.0/24"),
            (
                "192.0.2.0/24",
                "192.0.2.50",
                "192.0.2.40",
                none,
                "rangeStart",
                "192.0.2.50 is after the range's end, 192.0.2.40",
            ),
            ("192.0.2.0/24", none, none, "2001:db8::1", "gateway", "not of the family of 192.0.2.0/24"),
        ] {
            let part = |text: &str| (!text.is_empty()).then(|| ip(text));
            let error = Range::new(subnet.parse().unwrap(), part(start), part(end), part(gateway)).unwrap_err();
            assert_eq!(error.key, key, "{subnet} {start} {end} {gateway}");
            assert!(error.problem.contains(problem), "{}", error.problem);
        }
    }

    #[test]
    fn an_off_link_gateway_and_mapped_addresses_are_accepted() {
        let range =
            Range::new("192.0.2.0/24".parse().unwrap(), Some(ip("::ffff:192.0.2.9")), None, Some(ip("169.254.1.1")))
                .unwrap();
        assert_eq!((range.start, range.gateway), (ip("192.0.2.9"), ip("169.254.1.1")));
    }

    #[test]
    fn a_range_contains_its_bounds_and_nothing_beyond() {
        let v4 = set(&[("192.0.2.0/24", "192.0.2.40", "192.0.2.50")]);
        let v6 = set(&[("2001:db8::/64", "2001:db8::40", "2001:db8::50")]);
        for (set, address, inside) in [
            (&v4, "192.0.3.45", false),
            (&v4, "192.0.2.39", false),
            (&v4, "192.0.2.40", true),
            (&v4, "192.0.2.50", true),
            (&v4, "192.0.2.51", false),
            (&v4, "2001:db8::40", false),
            (&v6, "2001:db8::3f", false),
            (&v6, "2001:db8::40", true),
            (&v6, "2001:db8::50", true),
            (&v6, "2001:db8::51", false),
            (&v6, "192.0.2.45", false),
        ] {
            assert_eq!(set.range_of(ip(address)).is_some(), inside, "{address} in {set}");
        }
    }

    #[test]
    fn overlaps_are_found_both_ways() {
        for (one, other, overlap) in [
            (("192.0.2.0/24", "", ""), ("192.0.3.0/24", "", ""), false),
            (("192.0.2.0/24", "", ""), ("2001:db8::/64", "", ""), false),
            (("192.0.2.0/24", "", ""), ("192.0.2.0/24", "", ""), true),
            (("192.0.2.0/24", "", ""), ("192.0.0.0/16", "", ""), true),
            (("192.0.2.0/24", "", "192.0.2.50"), ("192.0.2.0/24", "192.0.2.51", ""), false),
            (("192.0.2.0/24", "", "192.0.2.50"), ("192.0.2.0/24", "192.0.2.50", ""), true),
            (("2001:db8::/64", "", ""), ("2001:db8::/48", "", ""), true),
        ] {
            let (one, other) = (set(&[one]), set(&[other]));
            assert_eq!(one.overlap(&other).is_some(), overlap, "{one} {other}");
            assert_eq!(other.overlap(&one).is_some(), overlap, "{other} {one}");
        }
    }

    #[test]
    fn a_set_is_of_one_family_and_without_overlap() {
        let error = |ranges| RangeSet::new(ranges).unwrap_err();
        assert_eq!(error(vec![]).1, "needs at least one range");
        let (position, problem) = error(vec![range("192.0.2.0/24", "", ""), range("2001:db8::/64", "", "")]);
        assert_eq!(position, 1);
        assert!(problem.contains("all IPv4 or all IPv6"), "{problem}");
        let (position, problem) =
            error(vec![range("192.0.0.0/16", "", ""), range("198.51.100.0/24", "", ""), range("192.0.2.0/24", "", "")]);
        assert_eq!(position, 2);
        assert!(problem.contains("192.0.2.1-192.0.2.254 overlaps 192.0.0.1-192.0.255.254"), "{problem}");
    }

    #[test]
    fn addresses_come_round_robin_without_gateway_and_broadcast() {
        let small = set(&[("10.9.0.0/29", "", "")]);
        for (last, expected) in [
            (None, ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]),
            (Some("10.9.0.3"), ["10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.2", "10.9.0.3"]),
            (Some("10.9.0.6"), ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]),
            (Some("10.9.0.1"), ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]),
            (Some("10.9.1.3"), ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]),
            (Some("fd00::1"), ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]),
        ] {
            assert_eq!(order(&small, last), expected, "last {last:?}");
        }
    }

    #[test]
    fn addresses_wrap_through_all_ranges_of_a_set() {
        let three = set(&[("10.9.0.0/30", "", ""), ("10.9.1.0/30", "", ""), ("10.9.2.0/24", "10.9.2.10", "10.9.2.12")]);
        let all = ["10.9.0.2", "10.9.1.2", "10.9.2.10", "10.9.2.11", "10.9.2.12"];
        for (last, first) in
            [(None, 0), (Some("10.9.0.2"), 1), (Some("10.9.1.2"), 2), (Some("10.9.2.11"), 4), (Some("10.9.2.12"), 0)]
        {
            let mut expected = all.to_vec();
            expected.rotate_left(first);
            assert_eq!(order(&three, last), expected, "last {last:?}");
        }
    }

    #[test]
    fn ipv6_ends_with_its_very_last_address() {
        assert_eq!(order(&set(&[("fd77::/126", "", "")]), None), ["fd77::2", "fd77::3"]);
        let top = set(&[("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "", "")]);
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(order(&top, Some(last)), ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", last]);
    }

    #[test]
    fn a_huge_range_costs_nothing_to_begin() {
        let huge = set(&[("fd00::/8", "", "")]);
        assert_eq!(huge.candidates(None).next().unwrap().0, ip("fd00::2"));
    }

    proptest::proptest! {
        #[test]
        fn every_address_comes_exactly_once_wherever_it_starts(prefix in 24u8..=30, start in 0u8..=255) {
            let set = set(&[(&format!("10.1.0.0/{prefix}"), "", ""), ("10.2.0.0/28", "", "")]);
            let mut seen = order(&set, Some(&format!("10.1.0.{start}")));
            let count = seen.len();
            seen.sort();
            seen.dedup();
            let expected = (1usize << (32 - prefix)) - 3 + 13;
            proptest::prop_assert_eq!(seen.len(), expected);
            proptest::prop_assert_eq!(count, expected);
        }
    }
}
