//! What of a node's iptables rules is kube-proxy's to remove, as input for `iptables-restore --noflush`.
//!
//! Pure: the text of `iptables-save` in, a script out. Everything that is not known to be kube-proxy's stays byte for byte.
//! A chain of kube-proxy's that a foreign rule jumps to stays too, with all that it leads to: taking it away would fail, or
//! change what that rule does. (KUBE-MARK-MASQ is such a chain: network plugins have used it for host ports, and then
//! KUBE-POSTROUTING must go on masquerading what it marks.)

pub mod nftables;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::facts::iptables::{Backend, SavedRule, SavedTable, is_kube_proxys, tables};
use crate::host::Host;

/// The script that removes what is kube-proxy's, none if there is nothing to remove.
pub fn script(saved: &str) -> Option<String> {
    let mut script = String::new();
    for table in tables(saved) {
        let kept = kept_for_others(&table);
        let goes = |chain: &str| is_kube_proxys(chain) && !kept.contains(chain);
        let chains: Vec<&str> = table.chains.iter().map(|c| c.name).filter(|c| goes(c)).collect();
        let jumps = table
            .rules
            .iter()
            .filter(|r| !is_kube_proxys(r.chain) && r.target.is_some_and(goes));
        let mut lines = String::new();
        // Declaring a chain empties it, which frees what it jumps to before anything is deleted.
        for chain in &chains {
            let _ = writeln!(lines, ":{chain} - [0:0]");
        }
        for rule in jumps {
            let _ = writeln!(lines, "-D {} {}", rule.chain, rule.specification);
        }
        for chain in &chains {
            let _ = writeln!(lines, "-X {chain}");
        }
        if !lines.is_empty() {
            let _ = write!(script, "*{}\n{lines}COMMIT\n", table.name);
        }
    }
    (!script.is_empty()).then_some(script)
}

/// Whether a rule is kube-proxy's: one in its chains, or one that hooks such a chain into one of the kernel's own, with
/// kube-proxy's words. Any other jump is somebody else's.
fn is_kube_proxys_own(rule: &SavedRule<'_>) -> bool {
    const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    const ENTRIES: [&str; 9] = [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-FORWARD",
        "KUBE-POSTROUTING",
        "KUBE-PROXY-FIREWALL",
        // Of its IPVS mode.
        "KUBE-NODE-PORT",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
    ];
    // All that such a rule has beside its comment and its target.
    const PLAIN: [&str; 7] = ["-m", "conntrack", "--ctstate", "NEW", "comment", "--comment", "-j"];
    let is_comment = |word: &str| word.starts_with("\"kubernetes ") || word.starts_with("\"kube-proxy ");
    let hooks_in = || {
        let mut words = rule.words().filter(|word| !PLAIN.contains(word));
        BUILT_IN.contains(&rule.chain)
            && rule.target.is_some_and(|target| ENTRIES.contains(&target))
            && words.next().is_some_and(is_comment)
            && words.next() == rule.target
            && words.next().is_none()
    };
    is_kube_proxys(rule.chain) || hooks_in()
}

/// Chains of kube-proxy's that must stay because something foreign needs them.
fn kept_for_others<'a>(table: &SavedTable<'a>) -> BTreeSet<&'a str> {
    let mut kept: BTreeSet<&str> = table
        .rules
        .iter()
        .filter(|rule| !is_kube_proxys_own(rule))
        .filter_map(|rule| rule.target)
        .filter(|target| is_kube_proxys(target))
        .collect();
    // What a foreign rule marks must still be masqueraded.
    if kept.contains("KUBE-MARK-MASQ") && table.chains.iter().any(|c| c.name == "KUBE-POSTROUTING") {
        kept.insert("KUBE-POSTROUTING");
    }
    loop {
        let more: Vec<&str> = table
            .rules
            .iter()
            .filter(|rule| kept.contains(rule.chain))
            .filter_map(|rule| rule.target)
            .filter(|target| is_kube_proxys(target) && !kept.contains(target))
            .collect();
        if more.is_empty() {
            return kept;
        }
        kept.extend(more);
    }
}

/// How often a clean-up is tried before a person is asked. kube-proxy may be writing at the same time.
const TRIES: usize = 5;

/// Between two tries of the clean-up.
const PAUSE: Duration = Duration::from_millis(200);

/// Removes what is kube-proxy's from both backends and families of iptables, and its nftables tables.
///
/// # Errors
/// What could not be read or removed, in words, after some tries.
pub fn remove_kube_proxys(host: &dyn Host) -> Result<(), String> {
    let mut failure = String::new();
    for _ in 0..TRIES {
        let tables_gone = || nftables::remove_tables().map_err(|error| error.to_string());
        match remove_once(host).and_then(|()| tables_gone()) {
            Ok(()) => return Ok(()),
            Err(why) => failure = why,
        }
        std::thread::sleep(PAUSE);
    }
    Err(failure)
}

fn remove_once(host: &dyn Host) -> Result<(), String> {
    for (save, restore) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
        let Some(input) = script(&saved(host, save)?) else {
            continue;
        };
        let restored = host
            .run(restore, &["--noflush", "-w", "5"], &input)
            .map_err(|error| format!("{restore}: {error}"))?;
        if !restored.succeeded {
            return Err(format!("{restore}: {}", restored.stderr.trim()));
        }
        // Done means observed.
        if script(&saved(host, save)?).is_some() {
            return Err(format!(
                "{save} still shows rules of kube-proxy's: does it run, and write them again?"
            ));
        }
    }
    Ok(())
}

/// What a `save` command prints.
///
/// # Errors
/// It failed, or could not show everything, in words.
pub fn saved(host: &dyn Host, save: &str) -> Result<String, String> {
    let ran = host.run(save, &[], "").map_err(|error| format!("{save}: {error}"))?;
    if !ran.succeeded {
        return Err(format!("{save}: {}", ran.stderr.trim()));
    }
    // iptables-nft-save says so in a comment, with status 0, when a table holds what only nft can show.
    if ran.stdout.contains("is incompatible, use 'nft' tool") {
        return Err(format!(
            "{save} can't show all rules: a table holds rules that only nft can show"
        ));
    }
    Ok(ran.stdout)
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A DOCKER -i docker0 -j RETURN
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-SEP-AAAA -p tcp -j DNAT --to-destination 10.128.0.1:80
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-BBBB
-A KUBE-SVC-BBBB -j KUBE-SEP-AAAA
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
"#;

    #[test]
    fn only_what_is_kube_proxys_goes() {
        assert_eq!(
            script(NODE).unwrap(),
            r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BBBB - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-X KUBE-MARK-MASQ
-X KUBE-POSTROUTING
-X KUBE-SEP-AAAA
-X KUBE-SERVICES
-X KUBE-SVC-BBBB
COMMIT
"#
        );
    }

    #[test]
    fn a_chain_that_a_plugin_uses_stays_and_goes_on_working() {
        let used = NODE.replace("-A DOCKER -i docker0 -j RETURN", "-A DOCKER -j KUBE-MARK-MASQ");
        let script = script(&used).unwrap();
        for stays in ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
            assert!(!script.contains(stays), "{script}");
        }
        assert!(script.contains("-X KUBE-SERVICES"));
    }

    #[test]
    fn an_operators_own_jump_stays_with_what_it_needs() {
        let own = "-A PREROUTING -s 192.0.2.0/24 -j KUBE-MARK-MASQ\n-A PREROUTING -m addrtype";
        let script = script(&NODE.replace("-A PREROUTING -m addrtype", own)).unwrap();
        assert!(
            !script.contains("192.0.2.0") && !script.contains("KUBE-MARK-MASQ"),
            "{script}"
        );
        assert!(script.contains("-X KUBE-SERVICES"));
    }

    /// A node in IPVS mode, as `iptables-save` prints it.
    const IPVS: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
COMMIT
*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
"#;

    #[test]
    fn chains_of_the_ipvs_mode_go_and_kubelets_stay() {
        assert_eq!(
            script(IPVS).unwrap(),
            r#"*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-LOAD-BALANCER
-X KUBE-MARK-MASQ
-X KUBE-NODE-PORT
-X KUBE-POSTROUTING
-X KUBE-SERVICES
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
-D INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-D INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-D OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-X KUBE-IPVS-FILTER
-X KUBE-IPVS-OUT-FILTER
-X KUBE-NODE-PORT
COMMIT
"#
        );
    }

    #[test]
    fn a_jump_without_kube_proxys_words_is_somebody_elses_and_keeps_what_it_leads_to() {
        for own in [
            "-A PREROUTING -i eth7 -j KUBE-SERVICES\n",
            "-A DOCKER -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n",
        ] {
            let used = NODE.replace("COMMIT\n*filter", &format!("{own}COMMIT\n*filter"));
            let script = script(&used).unwrap();
            for stays in ["KUBE-SERVICES", "KUBE-SVC-BBBB", "KUBE-SEP-AAAA", "DOCKER"] {
                assert!(!script.contains(stays), "{stays} in {script}");
            }
            assert!(script.contains("-X KUBE-POSTROUTING"), "{script}");
        }
    }

    #[test]
    fn nothing_of_kube_proxys_needs_no_script() {
        let clean: String = NODE
            .lines()
            .filter(|l| !l.contains("KUBE-") || l.contains("KUBE-FIREWALL"))
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(script(&clean), None);
    }
}
