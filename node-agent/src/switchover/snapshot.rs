//! A copy of the rules that a move leaves behind, beside the ledger: for the record, and to put them back by hand.
//!
//! Files that `iptables-restore`, `nft -f` and a person can read; everything that is not ours, as it was before anything was
//! touched.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::disk::{self, DiskError};
use crate::facts::iptables::Backend;
use crate::host::Host;

/// The file that is written last: a folder without it is of a copy that was broken off.
const COMPLETE: &str = "complete";

/// How many copies are kept, the newest.
const KEPT: usize = 3;

/// What else decided how Services answered: forwarding, IPVS, connection tracking.
const SETTINGS: [&str; 8] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/conn_reuse_mode",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It can't be written.
    #[error("the copy of the old rules can't be kept: {0}")]
    Disk(#[from] DiskError),
    /// A program could not show what is to be copied.
    #[error("the old rules can't be read: {program}: {why}")]
    Unread {
        /// The program.
        program: String,
        /// What it said.
        why: String,
    },
}

/// Writes the copy into `folder/NAME`, unless it is there and whole, and removes all but the newest few.
///
/// # Errors
/// See [`SnapshotError`].
pub fn take(host: &dyn Host, folder: &Path, name: &str) -> Result<(), SnapshotError> {
    let own = folder.join(name);
    if own.join(COMPLETE).exists() {
        return Ok(());
    }
    for (save, _) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
        let text = printed(host, save, &[])?;
        disk::write_text(&own.join(save), &text)?;
    }
    let mut tables = String::new();
    for table in printed(host, "nft", &["list", "tables"])?.lines() {
        let words: Vec<&str> = table.split_whitespace().collect();
        let [_, family, name] = words[..] else { continue };
        // iptables' tables are in its own files.
        let is_iptables =
            ["ip", "ip6"].contains(&family) && ["nat", "filter", "mangle", "raw", "security"].contains(&name);
        if (family, name) == ("inet", "nftfleet") || is_iptables {
            continue;
        }
        tables.push_str(&printed(host, "nft", &["list", "table", family, name])?);
    }
    disk::write_text(&own.join("nft"), &tables)?;
    let read = |path: &str| match host.read(Path::new(path)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SnapshotError::Unread {
            program: path.to_owned(),
            why: error.to_string(),
        }),
    };
    if let Some(services) = read("/proc/net/ip_vs")? {
        disk::write_text(&own.join("ip_vs"), &services)?;
    }
    let mut settings = String::new();
    for name in SETTINGS {
        if let Some(value) = read(&format!("/proc/sys/{name}"))? {
            let _ = writeln!(settings, "{} = {}", name.replace('/', "."), value.trim());
        }
    }
    disk::write_text(&own.join("sysctl.conf"), &settings)?;
    disk::write_text(&own.join(COMPLETE), "")?;
    prune(folder, name).map_err(|source| {
        let path = folder.display().to_string();
        DiskError::Io { path, source }.into()
    })
}

fn printed(host: &dyn Host, program: &str, arguments: &[&str]) -> Result<String, SnapshotError> {
    let unread = |why: String| SnapshotError::Unread {
        program: program.to_owned(),
        why,
    };
    let ran = host
        .run(program, arguments, "")
        .map_err(|error| unread(error.to_string()))?;
    if ran.succeeded {
        Ok(ran.stdout)
    } else {
        Err(unread(ran.stderr.trim().to_owned()))
    }
}

/// Removes all copies but the newest, and never the one of this name.
fn prune(folder: &Path, name: &str) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != name {
            others.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    others.sort();
    let old = others.len().saturating_sub(KEPT - 1);
    for (_, path) in &others[..old] {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Ran;

    /// A node whose programs print their own names.
    struct Printing;

    impl Host for Printing {
        fn read(&self, path: &Path) -> io::Result<String> {
            if path.ends_with("ip_forward") {
                Ok("1\n".to_owned())
            } else {
                Err(ErrorKind::NotFound.into())
            }
        }

        fn list(&self, _: &Path) -> io::Result<Vec<String>> {
            Ok(vec![])
        }

        fn run(&self, program: &str, arguments: &[&str], _: &str) -> io::Result<Ran> {
            let stdout = if arguments == ["list", "tables"] {
                "table inet nftfleet\ntable ip nat\ntable ip kube-proxy\n".to_owned()
            } else {
                format!("{program} {}\n", arguments.join(" "))
            };
            Ok(Ran {
                succeeded: true,
                stdout,
                stderr: String::new(),
            })
        }
    }

    #[test]
    fn a_copy_is_whole_is_made_once_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            take(&Printing, folder.path(), name).unwrap();
        }
        let there = |name: &str| folder.path().join(name).join(COMPLETE).exists();
        assert_eq!(["a", "b", "c", "d"].map(there), [false, true, true, true]);
        let text = |file: &str| std::fs::read_to_string(folder.path().join("d").join(file)).unwrap();
        assert_eq!(text("nft"), "nft list table ip kube-proxy\n");
        assert_eq!(text("ip6tables-nft-save"), "ip6tables-nft-save \n");
        assert_eq!(text("sysctl.conf"), "net.ipv4.ip_forward = 1\n");
        std::fs::write(folder.path().join("d/nft"), "kept").unwrap();
        take(&Printing, folder.path(), "d").unwrap();
        assert_eq!(text("nft"), "kept", "a whole copy is of before the move, and stays");
    }
}
