//! Finds kernel modules and the order to load them in. An unpacked kernel package has no `modules.dep` (depmod writes
//! that on installation), so dependencies are read from the modules themselves: the `.modinfo` section of each holds
//! `depends=a,b` with the names the kernel uses, in which `-` is `_`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const DEPENDS: &[u8] = b"\0depends=";

/// The modules below one `lib/modules/<version>`, by name.
#[derive(Debug)]
pub(super) struct ModuleFolder {
    files: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
}

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    path: PathBuf,
}

impl Module {
    /// The module as the kernel takes it, uncompressed.
    pub(super) fn load(&self) -> Result<Vec<u8>> {
        let unreadable = || format!("cannot read the kernel module {}", self.path.display());
        if self.path.extension().is_none_or(|extension| extension != "xz") {
            return fs::read(&self.path).with_context(unreadable);
        }
        let unpacked =
            Command::new("xz").arg("-dc").arg(&self.path).output().context("cannot run xz: run tests/setup.sh")?;
        ensure!(unpacked.status.success(), "xz cannot unpack {}", self.path.display());
        Ok(unpacked.stdout)
    }

    fn depends(&self) -> Result<Vec<String>> {
        Ok(depends(&self.load()?))
    }
}

impl ModuleFolder {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&folder.join("kernel"), &mut files)?;
        let list = folder.join("modules.builtin");
        let built_in = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        Ok(Self { files, built_in: built_in.lines().filter_map(|line| module_name(line.as_ref())).collect() })
    }

    /// The modules named and all that they depend on, each after its dependencies; what the kernel has built in is left out.
    pub(super) fn with_dependencies(&self, names: &[String]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.visit(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(&self, name: &str, ordered: &mut Vec<Module>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else { bail!("the virtual machine's kernel has no module {name}") };
        let module = Module { name, path: path.clone() };
        for dependency in module.depends()? {
            self.visit(&dependency, ordered)?;
        }
        ordered.push(module);
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/nft-x.ko.xz` is the module `nft_x`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn depends(module: &[u8]) -> Vec<String> {
    let Some(start) = module.windows(DEPENDS.len()).position(|window| window == DEPENDS) else {
        return Vec::new();
    };
    let list = module[start + DEPENDS.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_become_the_kernels_names() {
        let cases = [
            ("kernel/net/8021q/8021q.ko", Some("8021q")),
            ("kernel/net/nf-x.ko.xz", Some("nf_x")),
            ("modules.order", None),
            ("x.ko.gz", None),
        ];
        for (path, name) in cases {
            assert_eq!(module_name(path.as_ref()).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn each_module_comes_once_and_after_those_it_depends_on() {
        let folder = tempfile::tempdir().unwrap();
        let net = folder.path().join("kernel/net");
        fs::create_dir_all(&net).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/lib/crc-base.ko\n").unwrap();
        for (file, depends) in
            [("br-idge.ko", "stp,crc_base"), ("stp.ko", "llc"), ("llc.ko", ""), ("garp.ko", "stp,llc")]
        {
            fs::write(net.join(file), format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
        }
        let modules = ModuleFolder::read(folder.path()).unwrap();

        let order = |names: &[&str]| -> Result<Vec<String>> {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Ok(modules.with_dependencies(&names)?.into_iter().map(|module| module.name).collect())
        };
        assert_eq!(order(&["br-idge", "garp"]).unwrap(), ["llc", "stp", "br_idge", "garp"]);
        assert_eq!(order(&["crc-base"]).unwrap(), [""; 0]);
        assert!(order(&["wifi"]).unwrap_err().to_string().contains("wifi"));
    }
}
