//! What the Secret holds, and when it is to hold something else. Pure: reading, writing and the clock are the keeper's.
//!
//! A certificate is renewed in two steps. With a third of its life left the next one is made, and its authority is added to
//! those that API servers are told to believe. With a sixth left, all of them know it, and the next one is shown. So at no
//! moment is a certificate shown that is not believed.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::authority::{self, Made};
use super::{Pair, expiry};

const AUTHORITIES: &str = "ca.crt";
const SHOWN: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];

/// The Secret's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The authorities that API servers are told to believe, in PEM, the newest first.
    pub authorities: Vec<String>,
    /// What is shown.
    pub shown: Pair,
    /// What is shown after that.
    pub next: Option<Pair>,
}

/// What certificates are made for.
#[derive(Debug, Clone)]
pub struct Order {
    /// The names of the server.
    pub names: Vec<String>,
    /// How long a certificate is valid.
    pub lifetime: SignedDuration,
}

impl Order {
    fn make(&self, now: Timestamp) -> anyhow::Result<Made> {
        authority::make(&self.names, now, self.lifetime)
    }
}

impl Kept {
    /// Reads the data of the Secret. Nothing when what is to be shown is not there or is broken; what else is broken is left
    /// out.
    #[must_use]
    pub fn read(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |key: &str| data.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default();
        let pair = |[certificate, key]: [&str; 2]| Pair::parse(text(certificate), text(key)).ok();
        Some(Self { authorities: split(text(AUTHORITIES)), shown: pair(SHOWN)?, next: pair(NEXT) })
    }

    /// The data of the Secret.
    #[must_use]
    pub fn write(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::from([(AUTHORITIES.to_owned(), ByteString(self.bundle().into_bytes()))]);
        let pairs = [(SHOWN, Some(&self.shown)), (NEXT, self.next.as_ref())];
        for ([certificate, key], pair) in pairs {
            if let Some(pair) = pair {
                data.insert(certificate.to_owned(), ByteString(pair.certificates.clone().into_bytes()));
                data.insert(key.to_owned(), ByteString(pair.key.clone().into_bytes()));
            }
        }
        data
    }

    /// What API servers are told to believe, in PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.authorities.concat()
    }
}

/// What the Secret is to hold now, where that is something else than it holds. `believed` says whether the authorities in it
/// are what API servers were told to believe when they were last looked at.
///
/// # Errors
/// A certificate cannot be made.
pub fn due(kept: Option<&Kept>, believed: bool, order: &Order, now: Timestamp) -> anyhow::Result<Option<Kept>> {
    let left = |pair: &Pair| pair.expires.duration_since(now);
    let Some(kept) = kept.filter(|kept| left(&kept.shown) > SignedDuration::ZERO) else {
        // Nothing can be kept up: whoever trusts another authority finds out.
        let Made { pair, authority } = order.make(now)?;
        return Ok(Some(Kept { authorities: vec![authority], shown: pair, next: None }));
    };
    let left = left(&kept.shown);
    let authorities = || kept.authorities.iter().filter(|pem| is_valid(pem, now)).cloned();
    match &kept.next {
        None if left < order.lifetime / 3 => {
            let Made { pair, authority } = order.make(now)?;
            let authorities = std::iter::once(authority).chain(authorities()).collect();
            Ok(Some(Kept { authorities, shown: kept.shown.clone(), next: Some(pair) }))
        }
        Some(next) if left < order.lifetime / 6 && believed => {
            Ok(Some(Kept { authorities: authorities().collect(), shown: next.clone(), next: None }))
        }
        _ => Ok(None),
    }
}

fn is_valid(pem: &str, now: Timestamp) -> bool {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    der.is_ok_and(|der| expiry::of(&der).is_some_and(|expires| expires > now))
}

/// The certificates of a bundle, each with its lines.
fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|part| part.contains(END));
    parts.map(|part| format!("{}\n", part.trim_start())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn order() -> Order {
        Order { names: vec!["gate.musubi.svc".to_owned()], lifetime: DAY * 90 }
    }

    fn at(days: i32) -> Timestamp {
        Timestamp::from_second(1_795_694_848).unwrap() + DAY * days
    }

    fn due_at(kept: &Kept, believed: bool, days: i32) -> Option<Kept> {
        due(Some(kept), believed, &order(), at(days)).unwrap()
    }

    fn first() -> Kept {
        due(None, false, &order(), at(0)).unwrap().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let first = first();
        assert_eq!((first.authorities.len(), &first.next, first.shown.expires), (1, &None, at(90)));
        assert_eq!(Kept::read(&first.write()).as_ref(), Some(&first));
        let second = due_at(&first, true, 61).unwrap();
        assert_eq!(Kept::read(&second.write()), Some(second));
    }

    #[test]
    fn a_certificate_is_renewed_in_two_steps() {
        let first = first();
        assert_eq!(due_at(&first, true, 59), None, "more than a third is left");
        let second = due_at(&first, true, 61).unwrap();
        assert_eq!(second.shown, first.shown, "the next one is made, and not shown yet");
        assert_eq!(second.authorities[1..], first.authorities, "the newest first, the old one stays");
        let next = second.next.clone().unwrap();
        assert_eq!(next.expires, at(151));
        assert_eq!(due_at(&second, true, 74), None, "more than a sixth is left");
        assert_eq!(due_at(&second, false, 76), None, "it is not believed yet");
        let third = due_at(&second, true, 76).unwrap();
        assert_eq!((&third.shown, &third.next), (&next, &None));
        assert_eq!(third.authorities, second.authorities, "another replica may still show the old one");
        let fourth = due_at(&third, true, 122).unwrap();
        assert_eq!(fourth.authorities[1..], third.authorities[..1], "what has expired is left out");
    }

    #[test]
    fn what_cannot_be_used_is_made_anew() {
        let first = first();
        let expired = due_at(&first, true, 91).unwrap();
        assert!(expired.shown != first.shown && expired.next.is_none() && expired.shown.expires == at(181));
        let broken = |key: &str, value: &str| {
            let mut data = first.write();
            data.insert(key.to_owned(), ByteString(value.into()));
            Kept::read(&data)
        };
        assert_eq!(broken("tls.crt", "x"), None);
        assert_eq!(broken("tls.key", &self::first().shown.key), None, "the key of another");
        assert_eq!(Kept::read(&BTreeMap::new()), None);
        assert_eq!(broken("next.crt", "x"), Some(first.clone()), "what is shown goes on being shown");
    }
}
