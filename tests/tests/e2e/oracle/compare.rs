//! One configuration through both programs: ADD, CHECK, DEL, and what each says and leaves, compared fact by fact.

use std::collections::BTreeSet;

use musubi_tests::node::Output;
use serde_json::Value;

use super::differences::WANTED;
use super::facts::{self, Facts};
use super::stage::{BOTH, Stage, Who, with_result};

/// A configuration and where it is tried.
pub struct Case {
    pub name: String,
    kind: String,
    conf: Value,
    args: &'static str,
    interface: &'static str,
    prepare: fn(&Stage),
    thorough: bool,
    refused: Option<u64>,
}

impl Case {
    /// A configuration of a type; `what` and the type name the case. `cniVersion` and `name` are filled in.
    pub fn new(kind: &str, what: &str, mut conf: Value) -> Self {
        for (key, value) in [("type", kind), ("cniVersion", "1.0.0"), ("name", "net")] {
            if conf.get(key).is_none() {
                conf[key] = value.into();
            }
        }
        Self {
            name: format!("{kind}: {what}"),
            kind: kind.to_owned(),
            conf,
            args: "",
            interface: "eth0",
            prepare: |_| {},
            thorough: false,
            refused: None,
        }
    }

    /// With these `CNI_ARGS`.
    pub fn args(self, args: &'static str) -> Self {
        Self { args, ..self }
    }

    /// For this interface instead of `eth0`.
    pub fn interface(self, interface: &'static str) -> Self {
        Self { interface, ..self }
    }

    /// On a node where this was done before.
    pub fn on(self, prepare: fn(&Stage)) -> Self {
        Self { prepare, ..self }
    }

    /// Sysctls, and for host-local the modes of files, are compared too: once for each kind is enough.
    pub fn thorough(self) -> Self {
        Self { thorough: true, ..self }
    }

    /// ADD fails, ours with this code and with nothing left.
    pub fn refused(self, code: u64) -> Self {
        Self { refused: Some(code), ..self }
    }

    fn run(&self, who: Who) -> Facts {
        let stage = Stage { args: self.args.to_owned(), interface: self.interface, ..Stage::new() };
        (self.prepare)(&stage);
        let before = facts::state(&stage);
        let mut facts = Facts::new();
        let add = self.call(&stage, who, "ADD", &self.conf);
        facts.insert("ADD".to_owned(), verdict(add.ok));
        if who == Who::Ours {
            let code = (!add.ok).then(|| add.error().0);
            assert_eq!(code, self.refused, "{}: {} {}", self.name, add.stdout, add.stderr);
        }
        if !add.ok {
            if who == Who::Ours {
                assert_eq!(left(&facts::state(&stage), &before), Vec::<String>::new(), "{}", self.name);
            }
            return facts;
        }
        let result = add.json();
        facts.extend(facts::result(&stage, &result));
        facts.extend(facts::state(&stage));
        if self.thorough {
            facts.extend(facts::settings(&stage));
        }
        // A result is in no configuration before 0.3.0, and CHECK in none before 0.4.0.
        let version = self.conf["cniVersion"].as_str().expect("a version");
        let conf = if version < "0.3" { self.conf.clone() } else { with_result(&self.conf, &result) };
        if version >= "0.4" {
            facts.insert("CHECK".to_owned(), verdict(self.call(&stage, who, "CHECK", &conf).ok));
        }
        facts.insert("DEL".to_owned(), verdict(self.call(&stage, who, "DEL", &conf).ok));
        facts.extend(facts::state(&stage).into_iter().map(|(key, value)| (format!("after DEL/{key}"), value)));
        facts.insert("DEL again".to_owned(), verdict(self.call(&stage, who, "DEL", &conf).ok));
        let modes = self.thorough && self.kind == "host-local";
        facts.retain(|key, _| modes || !key.ends_with("/mode"));
        facts
    }

    fn call(&self, stage: &Stage, who: Who, command: &str, conf: &Value) -> Output {
        stage.call_as(who, &self.kind, command, &stage.sandbox, stage.interface, conf)
    }
}

fn verdict(ok: bool) -> String {
    if ok { "succeeds" } else { "fails" }.to_owned()
}

/// What is there now and was not before, but for what stays on purpose: a bridge and what it says of itself, and the
/// files that host-local keeps of an empty network.
pub fn left(now: &Facts, before: &Facts) -> Vec<String> {
    let is_bridge = |key: &str| {
        let device = key.split('/').take(2).collect::<Vec<_>>().join("/");
        now.get(&format!("{device}/kind")).is_some_and(|kind| kind == "bridge")
    };
    let stays = |key: &str| {
        key.starts_with("files/net")
            && (key.ends_with("/")
                || key.ends_with("/mode")
                || key.contains("/lock")
                || key.contains("/last_reserved_ip"))
            || is_bridge(key)
    };
    let new = now.iter().filter(|(key, value)| before.get(*key) != Some(value) && !stays(key));
    let gone = before.iter().filter(|(key, _)| !now.contains_key(*key) && !stays(key));
    new.map(|(key, value)| format!("{key} {value}"))
        .chain(gone.map(|(key, value)| format!("gone: {key} {value}")))
        .collect()
}

/// Runs each case on both sides. Differences have to be exactly those that `WANTED` names.
pub fn compare(cases: Vec<Case>) {
    let mut complaints = Vec::new();
    for case in &cases {
        complaints.extend(differences(case));
    }
    assert!(
        complaints.is_empty(),
        "{} differences that differences.rs does not list as they are:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

fn differences(case: &Case) -> Vec<String> {
    let [mut theirs, mut ours] = BOTH.map(|who| case.run(who));
    if theirs["ADD"] != ours["ADD"] {
        // The rest is what a success has and a failure has not.
        theirs.retain(|key, _| key == "ADD");
        ours.retain(|key, _| key == "ADD");
    }
    judge(&case.name, &theirs, &ours)
}

/// What differs and is not listed, and what is listed and does not differ.
pub fn judge(case: &str, theirs: &Facts, ours: &Facts) -> Vec<String> {
    let listed: BTreeSet<&str> = WANTED.iter().filter(|(of, _, _)| *of == case).map(|(_, field, _)| *field).collect();
    let keys = theirs.keys().chain(ours.keys()).map(String::as_str).chain(listed.iter().copied());
    let mut complaints = Vec::new();
    for key in keys.collect::<BTreeSet<&str>>() {
        let [their, our] = [theirs, ours].map(|facts| facts.get(key).map_or("–", String::as_str));
        if (their == our) == listed.contains(key) {
            let what = if their == our { "differs no more" } else { "differs" };
            complaints.push(format!("{case}: {key} {what}: theirs {their}, ours {our}"));
        }
    }
    complaints
}
