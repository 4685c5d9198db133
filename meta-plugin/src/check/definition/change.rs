//! What a change of a definition means for the pods that are attached already: they keep what they were given, so a network
//! that becomes another leaves them behind on the old one.

use std::collections::BTreeSet;

use musubi_delegates::uses::{Below, Uses};

use super::parse;
use crate::check::World;
use crate::check::overlap::used_by;
use crate::store::Definition;

/// The pods that use a network, in words; `None` when there are none.
pub(super) fn in_use(world: &World, network: &str) -> Option<String> {
    let mut users = world.users(network);
    let first = users.next()?;
    Some(match users.count() {
        0 => format!("pod {first}"),
        others => format!("pod {first} and {others} more"),
    })
}

/// The changes after which pods of before and after do not reach each other, each by its key and in words.
pub(super) fn stranding(old: &Definition, new: &Definition) -> Vec<(&'static str, String)> {
    let types = |definition: &Definition| {
        let list = definition.config.as_ref().and_then(|config| parse(config, &definition.name).ok());
        let plugins = list.map(|list| list.plugins).unwrap_or_default();
        plugins.iter().filter_map(|plugin| plugin.plugin_type().ok().map(str::to_owned)).collect::<Vec<_>>()
    };
    let (before, after) = (types(old), types(new));
    if before.first() != after.first() {
        return vec![(
            "type",
            changed("the type", &before.into_iter().take(1).collect(), &after.into_iter().take(1).collect()),
        )];
    }
    let differs = |(key, what, of): &(&'static str, &str, Fact)| {
        let (before, after) = (facts(old, *of), facts(new, *of));
        // More subnets, or more VLANs, leave nobody behind.
        (!before.is_subset(&after)).then(|| (*key, changed(what, &before, &after)))
    };
    FACTS.iter().filter_map(differs).collect()
}

/// What pods have to agree in, as texts.
type Fact = fn(&Uses) -> Vec<String>;

/// Each with its key and its name.
const FACTS: [(&str, &str, Fact); 5] = [
    ("vni", "the VNI", vnis),
    ("vlan", "the VLAN", vlans),
    ("master", "the master", masters),
    ("bridge", "the bridge", |used| used.bridge.iter().filter(|_| !used.is_own_bridge).cloned().collect()),
    ("subnet", "the subnet", |used| used.addresses.iter().map(|(subnet, _)| subnet.to_string()).collect()),
];

fn vnis(used: &Uses) -> Vec<String> {
    let text = |(vni, port)| if port == 4789 { format!("{vni}") } else { format!("{vni} at port {port}") };
    used.vni.zip(used.port).map(text).into_iter().collect()
}

fn vlans(used: &Uses) -> Vec<String> {
    used.vlans.iter().flat_map(|(_, range)| range.clone()).map(|id| id.to_string()).collect()
}

fn masters(used: &Uses) -> Vec<String> {
    let text = |master: &Below| match master {
        Below::Named(name) => name.clone(),
        Below::Found => "of the default route".to_owned(),
    };
    used.master.iter().map(text).collect()
}

fn facts(definition: &Definition, of: Fact) -> BTreeSet<String> {
    used_by(definition).iter().flat_map(of).collect()
}

fn changed(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    const SHOWN: usize = 8;
    let text = |values: &BTreeSet<String>| match values.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{n} of them"),
        _ => values.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    format!("{what} ({} to {})", text(before), text(after))
}
