//! An authority for one certificate: it signs it, and its key is forgotten. A new certificate has a new authority, so nobody
//! can ever be made to sign another one, and every renewal takes the same way.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;

use super::Pair;

/// Clocks differ: what is new is valid since a while.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// A certificate, and the authority by which it is believed.
#[derive(Debug, Clone)]
pub struct Made {
    /// The certificate with its key.
    pub pair: Pair,
    /// The authority's certificate in PEM.
    pub authority: String,
}

/// Makes a certificate for a server of these names.
pub fn make(names: &[String], now: Timestamp, lifetime: SignedDuration) -> anyhow::Result<Made> {
    let expires = now.checked_add(lifetime)?;
    let dated = |names: &[String], name: &str| -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = OffsetDateTime::from_unix_timestamp(now.checked_sub(CLOCKS)?.as_second())?;
        params.not_after = OffsetDateTime::from_unix_timestamp(expires.as_second())?;
        Ok(params)
    };
    // Authorities of one name would be taken for each other.
    let mut params = dated(&[], &format!("musubi-webhook {now}"))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);

    let mut params = dated(names, "musubi-webhook")?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Made { pair: Pair::parse(&certificate, &key.serialize_pem())?, authority })
}
