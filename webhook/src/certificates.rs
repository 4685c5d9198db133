//! The certificate that the server shows: one of an authority of our own, kept in a Secret ([`keeper`]), or files that
//! somebody else keeps ([`files`]). What is shown changes while connections are open; they stay.

mod authority;
mod expiry;
pub mod files;
pub mod keeper;
mod secret;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

pub use self::secret::Order;

/// A certificate with its key, in PEM, and until when it is valid.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, and those between it and its authority.
    pub certificates: String,
    /// The key.
    pub key: String,
    /// When it is not valid any more.
    pub expires: Timestamp,
}

/// Keys are not for logs.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Pair {
    /// Reads a pair.
    ///
    /// # Errors
    /// One of them is none, or they do not belong together.
    pub fn parse(certificates: &str, key: &str) -> Result<Self, Problem> {
        let chain = chain(certificates)?;
        let first = chain.first().ok_or(Problem::NoCertificate)?;
        let expires = expiry::of(first).ok_or(Problem::NoDates)?;
        let pair = Self { certificates: certificates.to_owned(), key: key.to_owned(), expires };
        pair.to_rustls()?;
        Ok(pair)
    }

    fn to_rustls(&self) -> Result<CertifiedKey, Problem> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| Problem::NoKey)?;
        let key = any_supported_type(&key).map_err(|_| Problem::NoKey)?;
        let certified = CertifiedKey::new(chain(&self.certificates)?, key);
        certified.keys_match().map_err(|_| Problem::Strangers)?;
        Ok(certified)
    }
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| Problem::NoCertificate)
}

/// Why a pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No certificate.
    #[error("there is no certificate in PEM")]
    NoCertificate,
    /// A certificate without readable dates.
    #[error("it cannot be read until when the certificate is valid")]
    NoDates,
    /// No key.
    #[error("there is no key in PEM, or one of a kind that is not served")]
    NoKey,
    /// Certificate and key of different pairs.
    #[error("the key is not the certificate's")]
    Strangers,
}

/// What is shown to those who connect; copies share it.
#[derive(Debug, Clone, Default)]
pub struct Shown(Arc<RwLock<Option<Showing>>>);

#[derive(Debug)]
struct Showing {
    pair: Pair,
    certified: Arc<CertifiedKey>,
}

impl Shown {
    /// Shows a pair from the next connection on.
    ///
    /// # Errors
    /// It is none; what was shown goes on being shown.
    pub fn show(&self, pair: &Pair) -> Result<(), Problem> {
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|showing| showing.pair != *pair) {
            *shown = Some(Showing { certified: Arc::new(pair.to_rustls()?), pair: pair.clone() });
            tracing::info!(expires = %pair.expires, "another certificate is shown");
        }
        Ok(())
    }

    /// Until when what is shown is valid; nothing while nothing is shown.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|showing| showing.pair.expires)
    }

    /// How connections are accepted: TLS 1.2 or newer, HTTP/1.1, and each with a handshake of its own, so that nobody goes on
    /// by what an earlier certificate was good for.
    ///
    /// # Errors
    /// TLS cannot be had.
    pub fn config(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().map(|showing| Arc::clone(&showing.certified))
    }
}

/// What is wrong with the certificates at the moment; copies share it.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// Says what is wrong; in the log too, if it is something new.
    pub fn set(&self, problem: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|problem| known.as_ref() != Some(problem)) {
            tracing::warn!("certificates: {problem}");
        }
        *known = problem;
    }

    /// What is wrong, in one line.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
