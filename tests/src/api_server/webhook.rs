//! One call of a webhook: where it is, over which TLS, and for how long. What is asked and what the answer means is in
//! `admission.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::shared::{self, Shared};

/// Where a webhook is called.
pub struct Endpoint {
    /// Where to connect to: an address, or a name with a port.
    address: String,
    /// The name its certificate has to bear.
    name: String,
    path: String,
    /// In PEM.
    authority: Vec<u8>,
    timeout: Duration,
}

/// The first address of a service.
fn endpoint(shared: &Shared, namespace: &str, name: &str) -> Option<String> {
    let store = shared.store();
    let (index, _) = store.find(|resource| resource.plural == "endpointslices")?;
    let mut slices = store.objects(index).values().map(|object| &object.value);
    let slice = slices.find(|slice| {
        let metadata = &slice["metadata"];
        metadata["namespace"] == namespace && metadata["labels"]["kubernetes.io/service-name"] == name
    })?;
    let host = slice["endpoints"][0]["addresses"][0].as_str()?;
    Some(format!("{host}:{}", slice["ports"][0]["port"]))
}

impl Endpoint {
    /// Reads an entry of `webhooks`. Services are found where [`super::ApiServer::map_service`] says, else by their
    /// EndpointSlices.
    pub fn of(shared: &Shared, webhook: &Value) -> Result<Self, String> {
        let client = &webhook["clientConfig"];
        let authority = STANDARD.decode(client["caBundle"].as_str().unwrap_or_default());
        let authority = authority.map_err(|error| format!("caBundle: {error}"))?;
        let timeout = Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(10));
        if let Some(url) = client["url"].as_str() {
            let rest = url.strip_prefix("https://").ok_or("a webhook's URL begins with https://")?;
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (name, port) = host.rsplit_once(':').unwrap_or((host, "443"));
            let address = format!("{name}:{port}");
            return Ok(Self { address, name: name.to_owned(), path: format!("/{path}"), authority, timeout });
        }
        let service = &client["service"];
        let [namespace, name] = ["namespace", "name"].map(|key| service[key].as_str().unwrap_or_default());
        let mapped: Option<SocketAddr> = shared::lock(&shared.services).get(&format!("{namespace}/{name}")).copied();
        let address = mapped.map(|address| address.to_string()).or_else(|| endpoint(shared, namespace, name));
        let address = address.ok_or_else(|| format!("service \"{name}\" not found"))?;
        let path = service["path"].as_str().unwrap_or("/").to_owned();
        Ok(Self { address, name: format!("{name}.{namespace}.svc"), path, authority, timeout })
    }

    /// The URL as messages have it.
    pub fn url(&self) -> String {
        let port = self.address.rsplit(':').next().unwrap_or_default();
        format!("https://{}:{port}{}?timeout={}s", self.name, self.path, self.timeout.as_secs())
    }

    /// Sends a review; the answer.
    pub async fn call(&self, review: &Value) -> Result<Value, String> {
        let answer = tokio::time::timeout(self.timeout, self.exchange(review)).await;
        answer.map_err(|_| "context deadline exceeded".to_owned())?.map_err(|error| error.to_string())
    }

    async fn exchange(&self, review: &Value) -> anyhow::Result<Value> {
        let stream = TcpStream::connect(&self.address).await?;
        let stream = self.connector()?.connect(ServerName::try_from(self.name.clone())?, stream).await?;
        let (status, body) = self.post(stream, review).await?;
        anyhow::ensure!(status == 200, "the server answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    fn connector(&self) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn post(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        review: &Value,
    ) -> anyhow::Result<(u16, Bytes)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(format!("{}?timeout={}s", self.path, self.timeout.as_secs()))
            .header(HOST, &self.name)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .header(ACCEPT_ENCODING, "identity")
            .body(Full::new(Bytes::from(review.to_string())))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok((head.status.as_u16(), body))
    }
}
