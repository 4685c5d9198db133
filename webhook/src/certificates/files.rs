//! A certificate that somebody else keeps, cert-manager for one, as files of a mounted Secret: read anew when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::{Pair, Shown, Trouble};

/// Between two looks at the files. Kubelet takes up to a minute to bring them anyway.
const PAUSE: Duration = Duration::from_secs(1);

/// The files of a folder: `tls.crt` and `tls.key`.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    shown: Shown,
    trouble: Trouble,
}

impl Files {
    /// Files that `shown` shows.
    #[must_use]
    pub fn new(folder: PathBuf, shown: Shown) -> Self {
        Self { folder, shown, trouble: Trouble::default() }
    }

    /// Where it says what is wrong.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Looks at them for ever. What cannot be used, half of a change for one, leaves what is shown as it is.
    pub async fn keep(self) {
        loop {
            self.trouble.set(self.look().err().map(|problem| format!("{problem:#}")));
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn look(&self) -> anyhow::Result<()> {
        let pair = Pair::parse(&read(&self.folder, "tls.crt")?, &read(&self.folder, "tls.key")?)
            .with_context(|| format!("{}", self.folder.display()))?;
        Ok(self.shown.show(&pair)?)
    }
}

fn read(folder: &Path, name: &str) -> anyhow::Result<String> {
    let file = folder.join(name);
    fs::read_to_string(&file).with_context(|| format!("{}", file.display()))
}
