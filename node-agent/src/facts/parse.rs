//! Pure readers of what the host says.

use nftfleet_domain::inventory::{OsRelease, Version};
use serde_json::Value;

/// Reads `/etc/os-release`; none if it has no `ID`.
pub fn os_release(text: &str) -> Option<OsRelease> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix('=')?.trim();
            Some(value.trim_matches(['"', '\'']).to_owned())
        })
    };
    let id = field("ID")?;
    Some(OsRelease {
        pretty_name: field("PRETTY_NAME").unwrap_or_else(|| id.clone()),
        version_id: field("VERSION_ID").unwrap_or_default(),
        id,
    })
}

/// Reads `nft --version`: `nftables v1.0.6 (Lester Gooch #5)`.
pub fn nft_version(text: &str) -> Option<Version> {
    text.split_whitespace()
        .find(|word| word.starts_with('v'))
        .and_then(Version::at_start_of)
}

/// Counts the virtual servers in `/proc/net/ip_vs`.
pub fn ipvs_services(text: &str) -> u32 {
    let servers = text.lines().filter(|line| {
        ["TCP ", "UDP ", "SCTP ", "FWM "]
            .iter()
            .any(|kind| line.starts_with(kind))
    });
    u32::try_from(servers.count()).unwrap_or(u32::MAX)
}

/// The plugin types of a CNI configuration, of a list or of a single one.
///
/// # Errors
/// The text is not JSON.
pub fn cni_plugins(text: &str) -> Result<Vec<String>, serde_json::Error> {
    let config: Value = serde_json::from_str(text)?;
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    Ok(match config.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().filter_map(kind).collect(),
        None => kind(&config).into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_releases_are_read() {
        let debian =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        let read = os_release(debian).unwrap();
        assert_eq!((read.id.as_str(), read.version_id.as_str()), ("debian", "12"));
        assert_eq!(os_release("NAME=x\n"), None);
    }

    #[test]
    fn nft_versions_are_read() {
        assert_eq!(
            nft_version("nftables v1.0.6 (Lester Gooch #5)\n"),
            Some(Version::new(1, 0, 6))
        );
        assert_eq!(
            nft_version("nftables v1.1.3 (Commodore Bullmoose #4)"),
            Some(Version::new(1, 1, 3))
        );
        assert_eq!(nft_version("command not found"), None);
    }

    #[test]
    fn virtual_servers_are_counted_and_destinations_are_not() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr\n  -> C0A80001:192B      Masq    1      0          0\nUDP  0A60000A:0035 rr\n";
        assert_eq!(ipvs_services(table), 2);
    }

    #[test]
    fn cni_plugins_are_named() {
        let list = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
        assert_eq!(cni_plugins(list).unwrap(), ["flannel", "portmap"]);
        assert_eq!(cni_plugins(r#"{"type":"calico"}"#).unwrap(), ["calico"]);
        assert!(cni_plugins("calico").is_err());
    }
}
