//! An admission server for tests: started as its Deployment starts it, with the rights that `deploy/webhook` gives it, and
//! asked over TLS as an API server asks it, or as one should not.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api_server::ApiServer;
use crate::cluster::Cluster;
use crate::process::Process;

/// The name that its certificates bear.
pub const NAME: &str = "musubi-webhook.kube-system.svc";
/// How long an answer may take.
const ENOUGH: Duration = Duration::from_secs(20);

/// A running admission server.
#[derive(Debug)]
pub struct Gate {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

/// What it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The response of the AdmissionReview.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn response(&self) -> Value {
        let review: Value = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!((self.status, &review["kind"]), (200, &json!("AdmissionReview")), "{self:?}");
        review["response"].clone()
    }
}

/// The program.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("MUSUBI_WEBHOOK") {
        return path.into();
    }
    let own = std::env::current_exe().expect("our own path");
    let built = own.ancestors().map(|folder| folder.join("musubi-webhook")).find(|file| file.is_file());
    built.expect("musubi-webhook is not built: run `cargo build -p musubi-webhook` first, or `make test`")
}

/// The objects of a file of `deploy/webhook`.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn manifests(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/webhook").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Applies to a server what the gate needs there.
pub fn install(server: &ApiServer) {
    for object in manifests("secret.yaml").iter().chain(&manifests("configurations.yaml")) {
        server.create(object);
    }
}

impl Gate {
    /// Starts one in the network namespace of the calling thread and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(server: &ApiServer, options: &[&str]) -> Self {
        let gate = Self::spawn(server, options);
        gate.until_ready();
        gate
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn until_ready(&self) {
        self.until("it is ready", || self.try_get("/readyz").is_some_and(|answer| answer.status == 200));
    }

    /// Starts one and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn spawn(server: &ApiServer, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let rules: Vec<Value> = manifests("rbac.yaml")
            .into_iter()
            .flat_map(|object| object["rules"].as_array().cloned().unwrap_or_default())
            .collect();
        let kubeconfig = kubeconfig(server, &server.issue_token_for(&rules), folder.path());
        Self::launch(folder, &kubeconfig, IpAddr::V4(Ipv4Addr::LOCALHOST), options)
    }

    /// Starts one of any cluster, at an address of this machine.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    pub fn of(cluster: &Cluster, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = cluster.kubeconfig(folder.path());
        Self::launch(folder, &kubeconfig, cluster.own_address(), options)
    }

    fn launch(folder: TempDir, kubeconfig: &Path, address: IpAddr, options: &[&str]) -> Self {
        let log = folder.path().join("log");
        let mut command = Command::new(program());
        command.arg(format!("--listen={}", SocketAddr::new(address, 0)));
        command.arg("--kubeconfig").arg(kubeconfig).args(options);
        if !options.iter().any(|option| option.starts_with("--log-level")) {
            command.arg("--log-level=debug");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).expect("a log"));
        let process = Process::of(command.spawn().expect("start the program"), log);
        let mut gate = Self { process, address: SocketAddr::new(address, 0), _folder: folder };
        gate.until("it listens", || gate.listens_on().is_some());
        gate.address = gate.listens_on().expect("it listens");
        gate
    }

    fn listens_on(&self) -> Option<SocketAddr> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("serving"))?;
        line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        self.process.until(what, is_so);
    }

    /// Asks for a path, whoever signed the certificate, as kubelet's probes do.
    #[must_use]
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(ENOUGH)).ok()?;
        let mut tls = ClientConnection::new(trusting_anybody(), name()).ok()?;
        let mut stream = rustls::Stream::new(&mut tls, &mut stream);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").ok()?;
        answer(&mut BufReader::new(stream))
    }

    /// Asks for a path.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}; log:\n{}", self.log()))
    }

    /// A connection of one who believes an authority, in PEM.
    #[must_use]
    pub fn connect(&self, authority: &str) -> Client {
        Client::connect(self.address, authority)
    }

    /// Tells it to stop and waits for its end; whether it ended well.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn stop(self) -> bool {
        self.process.stop()
    }
}

/// The authorities that an API server is told to believe, in PEM; empty before it is told.
#[must_use]
pub fn believed(server: &ApiServer) -> String {
    let configuration = server.get("validatingwebhookconfigurations", "", "musubi-webhook").unwrap_or_default();
    let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default();
    String::from_utf8(BASE64_STANDARD.decode(bundle).expect("base64")).expect("PEM")
}

/// A connection that is kept open.
pub struct Client {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens, or the authority is none.
    #[must_use]
    pub fn connect(address: SocketAddr, authority: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("an authority");
        }
        let config = builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_read_timeout(Some(ENOUGH)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let tls = ClientConnection::new(Arc::new(config), name()).expect("a client");
        Self { stream: BufReader::new(StreamOwned::new(tls, stream)) }
    }

    /// Posts a body as an API server does; an error says why there is no answer.
    ///
    /// # Errors
    /// The connection, or its certificate, is of no use.
    pub fn post(&mut self, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        self.send(
            format!(
                "POST {path}?timeout=5s HTTP/1.1\r\nHost: {NAME}:443\r\nUser-Agent: kube-apiserver-admission\r\n\
                 Content-Length: {}\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\n\
                 Accept-Encoding: gzip\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        )?;
        self.send(body)?;
        self.answer()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// There is none.
    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let mut first = [0];
        // What TLS says comes with the first byte.
        self.stream.read_exact(&mut first)?;
        answer(&mut first.as_slice().chain(&mut self.stream)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    /// Ends its own side, and leaves the other open.
    ///
    /// # Errors
    /// It was closed already.
    pub fn half_close(&mut self) -> std::io::Result<()> {
        let stream = self.stream.get_mut();
        stream.conn.send_close_notify();
        stream.flush()?;
        stream.sock.shutdown(std::net::Shutdown::Write)
    }
}

fn answer(stream: &mut impl BufRead) -> Option<Answer> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Answer { status, body: String::from_utf8(body).ok()? })
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions")
}

fn name() -> ServerName<'static> {
    NAME.try_into().expect("a name")
}

fn trusting_anybody() -> Arc<ClientConfig> {
    Arc::new(builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth())
}

/// Believes any certificate, as kubelet does for its probes.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn kubeconfig(server: &ApiServer, token: &str, folder: &Path) -> PathBuf {
    let (file, token_file) = (folder.join("kubeconfig"), folder.join("token"));
    fs::write(&token_file, token).expect("a token file");
    let mut cluster = json!({"server": server.url()});
    if let Some(authority) = server.authority() {
        cluster["certificate-authority-data"] = BASE64_STANDARD.encode(authority).into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "gate",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "gate", "user": {"tokenFile": token_file}}],
        "contexts": [{"name": "gate", "context": {"cluster": "cluster", "user": "gate"}}],
    });
    fs::write(&file, config.to_string()).expect("a kubeconfig");
    file
}
