//! Credentials for the plugin: the agent's own service account, written where the plugin on the host can read it, and
//! renewed when kubelet renews it. The agent itself talks to the API server by other means.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::host_mounts::Folder;
use super::runtime_conf::replace;

/// Between two looks at the service account.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// The API server as kubelet tells pods of it; `None` outside of a cluster.
#[must_use]
pub fn api_server() -> Option<String> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(server_url(&variable("KUBERNETES_SERVICE_HOST")?, &variable("KUBERNETES_SERVICE_PORT")?))
}

fn server_url(host: &str, port: &str) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

/// The plugin's credentials, as files.
#[derive(Debug)]
pub struct Credentials {
    service_account: Folder,
    server: String,
    kubeconfig: PathBuf,
    wanted: Notify,
}

impl Credentials {
    /// Credentials for `server` that are written to `kubeconfig`, the token beside it.
    #[must_use]
    pub fn new(service_account: Folder, server: String, kubeconfig: PathBuf) -> Self {
        Self { service_account, server, kubeconfig, wanted: Notify::new() }
    }

    /// Asks for a look at the service account now: the API server has refused the token.
    pub fn ask(&self) {
        self.wanted.notify_one();
    }

    /// Keeps the files as long as the agent runs.
    pub async fn keep(&self) {
        let mut known = None;
        loop {
            let problem = self.refresh().err().map(|e| e.to_string());
            if problem != known {
                if let Some(problem) = &problem {
                    tracing::warn!(
                        "the plugin's credentials in {} are not renewed: {problem}",
                        self.kubeconfig.display()
                    );
                }
                known = problem;
            }
            let _ = timeout(INTERVAL, self.wanted.notified()).await;
        }
    }

    /// Writes what differs from the service account as it is now; whether anything did.
    ///
    /// # Errors
    /// The service account cannot be read or holds no token, or the files cannot be written. They stay as they were.
    pub fn refresh(&self) -> io::Result<bool> {
        let read = |name: &str| {
            let bytes = self.service_account.read(name);
            let place = self.service_account.path().join(name);
            bytes.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", place.display())))
        };
        let (token, ca) = (read("token")?, read("ca.crt")?);
        if token.trim_ascii().is_empty() || ca.trim_ascii().is_empty() {
            let place = self.service_account.path().display();
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{place}: the token or the CA is empty")));
        }
        let (folder, token_file) = self.places();
        make_private(folder)?;
        // The token first: a kubeconfig never names one that is not there.
        let new_token = write_if_new(&token_file, &token)?;
        let kubeconfig = format!("{:#}\n", self.kubeconfig(&token_file, &ca));
        Ok(write_if_new(&self.kubeconfig, kubeconfig.as_bytes())? || new_token)
    }

    fn places(&self) -> (&Path, PathBuf) {
        let folder = self.kubeconfig.parent().unwrap_or(Path::new("/"));
        (folder, folder.join("musubi.token"))
    }

    /// A kubeconfig is YAML, and so is this.
    fn kubeconfig(&self, token_file: &Path, ca: &[u8]) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "local",
                "cluster": {"server": self.server, "certificate-authority-data": BASE64_STANDARD.encode(ca)},
            }],
            "users": [{"name": "musubi", "user": {"tokenFile": token_file}}],
            "contexts": [{"name": "musubi", "context": {"cluster": "local", "user": "musubi"}}],
            "current-context": "musubi",
        })
    }
}

fn write_if_new(file: &Path, bytes: &[u8]) -> io::Result<bool> {
    let is_private = fs::metadata(file).is_ok_and(|m| m.permissions().mode() & 0o777 == 0o600);
    if is_private && fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    replace(file, bytes).map_err(|e| io::Error::new(e.kind(), format!("write {}: {e}", file.display()))).map(|()| true)
}

/// Makes the folder, and one that is there the owner's alone.
fn make_private(folder: &Path) -> io::Result<()> {
    const MODE: u32 = 0o700;
    let made = fs::DirBuilder::new().recursive(true).mode(MODE).create(folder);
    let set = || match fs::metadata(folder)?.permissions().mode() & 0o777 {
        MODE => Ok(()),
        _ => fs::set_permissions(folder, fs::Permissions::from_mode(MODE)),
    };
    made.and_then(|()| set()).map_err(|e| io::Error::new(e.kind(), format!("folder {}: {e}", folder.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use kube::config::Kubeconfig;
    use tempfile::TempDir;

    use super::*;

    /// A service account as kubelet projects it: files are links through `..data`, which is replaced as a whole.
    struct Projected(TempDir);

    impl Projected {
        fn new(token: &str) -> Self {
            let projected = Self(tempfile::tempdir().unwrap());
            projected.renew("..1", token);
            for name in ["token", "ca.crt"] {
                symlink(format!("..data/{name}"), projected.0.path().join(name)).unwrap();
            }
            projected
        }

        fn renew(&self, version: &str, token: &str) {
            let path = |name: &str| self.0.path().join(name);
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("token"), token).unwrap();
            fs::write(path(version).join("ca.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
            symlink(version, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
        }
    }

    fn credentials(account: &Projected, to: &TempDir) -> Credentials {
        let server = server_url("10.96.0.1", "443");
        Credentials::new(Folder::open(account.0.path()).unwrap(), server, to.path().join("musubi.d/musubi.kubeconfig"))
    }

    #[test]
    fn the_plugin_gets_a_kubeconfig_of_the_agents_service_account() {
        let (account, to) = (Projected::new("t1"), tempfile::tempdir().unwrap());
        assert!(credentials(&account, &to).refresh().unwrap());
        let file = to.path().join("musubi.d/musubi.kubeconfig");
        let config = Kubeconfig::read_from(&file).unwrap();
        let cluster = config.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.96.0.1:443"));
        let ca = BASE64_STANDARD.decode(cluster.certificate_authority_data.as_ref().unwrap()).unwrap();
        assert_eq!(ca, b"-----BEGIN CERTIFICATE-----\n");
        let token = config.auth_infos[0].auth_info.as_ref().unwrap().token_file.as_ref().unwrap();
        assert_eq!(fs::read_to_string(token).unwrap(), "t1");
        assert_eq!(config.current_context.as_deref(), Some("musubi"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!((mode(Path::new(token)), mode(file.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn they_are_renewed_with_the_service_account_and_left_alone_otherwise() {
        let (account, to) = (Projected::new("t1"), tempfile::tempdir().unwrap());
        let credentials = credentials(&account, &to);
        credentials.refresh().unwrap();
        let (kubeconfig, token) =
            (to.path().join("musubi.d/musubi.kubeconfig"), to.path().join("musubi.d/musubi.token"));
        let inodes = || [&kubeconfig, &token].map(|file| fs::metadata(file).unwrap().ino());
        let before = inodes();
        assert!(!credentials.refresh().unwrap());
        assert_eq!(inodes(), before);
        account.renew("..2", "t2");
        assert!(credentials.refresh().unwrap());
        assert_eq!(fs::read_to_string(&token).unwrap(), "t2");
        assert_eq!(
            (inodes()[0], inodes()[1] == before[1]),
            (before[0], false),
            "the token alone is another, by rename"
        );
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(credentials.refresh().unwrap(), "what others may read is made private again");
        assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_service_account_that_cannot_be_read_changes_nothing() {
        let (account, to) = (Projected::new("t1"), tempfile::tempdir().unwrap());
        let credentials = credentials(&account, &to);
        credentials.refresh().unwrap();
        account.renew("..2", "\n");
        let empty = credentials.refresh().unwrap_err().to_string();
        assert!(empty.ends_with("the token or the CA is empty"), "{empty}");
        fs::remove_file(account.0.path().join("..data")).unwrap();
        let missing = credentials.refresh().unwrap_err().to_string();
        assert!(missing.starts_with(&account.0.path().join("token").display().to_string()), "{missing}");
        assert_eq!(fs::read_to_string(to.path().join("musubi.d/musubi.token")).unwrap(), "t1");
    }

    #[test]
    fn an_ipv6_server_stands_in_brackets() {
        assert_eq!(server_url("fd00::1", "6443"), "https://[fd00::1]:6443");
        assert_eq!(server_url("api.example", "443"), "https://api.example:443");
    }

    #[tokio::test]
    async fn they_are_renewed_at_once_when_asked_for() {
        let (account, to) = (Projected::new("t1"), tempfile::tempdir().unwrap());
        let credentials = credentials(&account, &to);
        let token = to.path().join("musubi.d/musubi.token");
        let renewed = async {
            while !token.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            account.renew("..2", "t2");
            credentials.ask();
            while fs::read(&token).unwrap() != b"t2" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = credentials.keep() => unreachable!(),
            done = timeout(INTERVAL / 2, renewed) => done.expect("well before the interval is over"),
        }
    }
}
