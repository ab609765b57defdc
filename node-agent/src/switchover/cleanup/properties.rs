//! Whatever stands beside kube-proxy's rules, the script names only kube-proxy's.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;

use super::script;

const BUILT_IN: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];

const FOREIGN: [&str; 10] = [
    "DOCKER",
    "CNI-HOSTPORT-DNAT",
    "FWD_public_allow",
    "AWS-SNAT-CHAIN-0",
    "KUBE-ROUTER-SERVICES",
    "KUBE-POD-FW-LVKPR4NDRQHCOO6I",
    "KUBE-NWPLCY-DEFAULT",
    "KUBE-FIREWALL",
    "KUBE-KUBELET-CANARY",
    "KUBE-MARK-DROP",
];

const KUBE_PROXYS: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-SVC-NPX46M4PTMTKRN6Y",
    "KUBE-SVL-NPX46M4PTMTKRN6Y",
    "KUBE-SEP-EQX7RFQBOBSBOFBX",
    "KUBE-EXT-NPX46M4PTMTKRN6Y",
    "KUBE-PROXY-CANARY",
];

/// kube-proxy's own jumps, as `iptables-save` prints them.
const JUMPS: [&str; 3] = [
    r#"PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#,
    r#"OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#,
    r#"POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING"#,
];

/// A comment as iptables prints it.
fn comment() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "a",
        " ",
        "-j",
        " -j ",
        "KUBE-SERVICES",
        "KUBE-MARK-MASQ",
        "\\\\",
        "\\\"",
        "\\'",
        "kubernetes ",
        "-A",
        "*nat",
        "COMMIT",
    ]);
    prop::collection::vec(piece, 1..6).prop_map(|pieces| {
        let text = pieces.concat();
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if is_plain { text } else { format!("\"{text}\"") }
    })
}

/// A rule of somebody else's, as `CHAIN SPECIFICATION`: from a chain of the kernel's or of others, to one of anybody's.
fn foreign_rule() -> impl Strategy<Value = String> {
    let chain = select([&BUILT_IN[..], &FOREIGN].concat());
    let target = select([&FOREIGN[..], &KUBE_PROXYS, &["ACCEPT", "RETURN"]].concat());
    (chain, proptest::option::of(comment()), any::<bool>(), target).prop_map(|(chain, comment, goes, target)| {
        let comment = comment
            .map(|text| format!(" -m comment --comment {text}"))
            .unwrap_or_default();
        let verb = if goes { "-g" } else { "-j" };
        format!("{chain} -s 192.0.2.0/24{comment} {verb} {target}")
    })
}

fn kube_proxys_rule() -> impl Strategy<Value = String> {
    let target = select([&KUBE_PROXYS[..], &["RETURN"]].concat());
    (select(KUBE_PROXYS.to_vec()), target).prop_map(|(chain, target)| format!("{chain} -p tcp -j {target}"))
}

fn saved(rules: &[String]) -> String {
    let built_in = BUILT_IN.iter().map(|chain| format!(":{chain} ACCEPT [0:0]"));
    let others = FOREIGN
        .iter()
        .chain(&KUBE_PROXYS)
        .map(|chain| format!(":{chain} - [0:0]"));
    let rules = rules.iter().map(|rule| format!("-A {rule}"));
    let lines: Vec<String> = built_in.chain(others).chain(rules).collect();
    format!("*nat\n{}\nCOMMIT\n", lines.join("\n"))
}

/// What a foreign rule jumps to, told from the way in which it was made.
fn needed(rule: &str) -> &str {
    rule.rsplit(' ').next().unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn only_what_is_kube_proxys_is_named(
        foreign in prop::collection::vec(foreign_rule(), 0..12),
        own in prop::collection::vec(kube_proxys_rule(), 0..12),
        order in any::<prop::sample::Index>(),
    ) {
        let mut rules = foreign.clone();
        let at = order.index(rules.len() + 1);
        rules.splice(at..at, own.iter().cloned().chain(JUMPS.map(str::to_owned)));
        let script = script(&saved(&rules)).unwrap_or_default();
        let needed: BTreeSet<&str> = foreign.iter().map(|rule| needed(rule)).collect();
        for line in script.lines() {
            let (is_named, chain) = match line.split_at(1) {
                (":", rest) => (true, rest.strip_suffix(" - [0:0]").unwrap_or(rest)),
                ("-", rest) if rest.starts_with("X ") => (true, &rest[2..]),
                ("-", rest) if rest.starts_with("D ") => {
                    prop_assert!(JUMPS.contains(&&rest[2..]), "{} is not kube-proxy's", line);
                    (false, "")
                }
                _ => {
                    prop_assert!(["*nat", "COMMIT"].contains(&line), "{}", line);
                    (false, "")
                }
            };
            if is_named {
                prop_assert!(KUBE_PROXYS.contains(&chain), "{} is somebody else's", line);
                prop_assert!(!needed.contains(chain), "{} is needed by somebody else", line);
            }
        }
        // What nobody else needs goes.
        if needed.iter().all(|target| !KUBE_PROXYS.contains(target)) {
            for chain in KUBE_PROXYS {
                let deletes = format!("-X {chain}");
                prop_assert!(script.lines().any(|line| line == deletes), "{} stays", chain);
            }
        }
    }
}
