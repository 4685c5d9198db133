//! `resolvConf` of `host-local`: a file as resolv.conf(5) describes it, read for the result's `dns`.

use std::path::Path;

use crate::cni::{CniError, Dns, code};

/// Reads a file.
///
/// # Errors
/// It cannot be read (code 5).
pub fn read(path: &Path) -> Result<Dns, CniError> {
    let content = std::fs::read(path).map_err(|error| {
        let problem = format!("host-local: cannot read ipam.resolvConf {}: {error}", path.display());
        CniError::new(code::IO, problem)
    })?;
    Ok(parse(&String::from_utf8_lossy(&content)))
}

/// What lines we do not know say is left out.
fn parse(content: &str) -> Dns {
    let mut dns = Dns::default();
    for line in content.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let mut rest = words.map(str::to_string);
        match keyword {
            Some("nameserver") => dns.nameservers.extend(rest.next()),
            Some("domain") => dns.domain = rest.next().unwrap_or_default(),
            Some("search") => dns.search.extend(rest),
            Some("options") => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_the_results_dns() {
        let strings = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let content = "# resolver\n; of the pod\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\n\ndomain example.test\nsearch a.test b.test\noptions ndots:5 edns0\nsortlist 10.0.0.0\nnameserver\n";
        let expected = Dns {
            nameservers: strings(&["192.0.2.1", "2001:db8::1"]),
            domain: "example.test".to_string(),
            search: strings(&["a.test", "b.test"]),
            options: strings(&["ndots:5", "edns0"]),
        };
        assert_eq!(parse(content), expected);
        assert_eq!(parse(""), Dns::default());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nowhere/resolv.conf")).unwrap_err();
        assert_eq!(error.code, code::IO);
        assert!(error.msg.contains("ipam.resolvConf /nowhere/resolv.conf: No such file"), "{error}");
    }
}
