//! Made-up iptables rules of everybody else's that live on nodes: network plugins, Docker, firewalld, clouds, operators.

use nftfleet_tests::kube_proxy::Family;
use proptest::prelude::*;
use proptest::sample::select;

/// Chains of others, among them some whose names look like kube-proxy's. Each table has some of them.
const CHAINS: [&str; 20] = [
    "DOCKER",
    "DOCKER-USER",
    "DOCKER-ISOLATION-STAGE-1",
    "CNI-HOSTPORT-DNAT",
    "CNI-HOSTPORT-SETMARK",
    "CNI-DN-5f0bbc4f3a4b2a1dd6b21",
    "FWD_public_allow",
    "PRE_public_post",
    "AWS-SNAT-CHAIN-0",
    "AWS-CONNMARK-CHAIN-0",
    "FLANNEL-FWD",
    "cali-FORWARD",
    "KUBE-ROUTER-FORWARD",
    "KUBE-ROUTER-SERVICES",
    "KUBE-POD-FW-LVKPR4NDRQHCOO6I",
    "KUBE-NWPLCY-DEFAULT",
    "KUBE-FIREWALL",
    "KUBE-KUBELET-CANARY",
    "KUBE-IPTABLES-HINT",
    "kube-services",
];

/// The kernel's own chains in which rules of others may stand before, between and after kube-proxy's.
const BUILT_IN: [(&str, &[&str]); 3] = [
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// Where a rule is put.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Before kube-proxy comes, at the end.
    Early,
    /// After kube-proxy has come: in front of everything, behind the first rule, at the end.
    First,
    Second,
    Last,
}

/// What a rule does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Goes on to the chain of others that is this many behind its own (the kernel allows no circles).
    Jump(usize),
    /// Marks for masquerading in kube-proxy's chain, as plugins for host ports have done.
    Masquerade,
    /// This target.
    Do(&'static str),
}

/// A rule of somebody else's.
#[derive(Clone, Debug)]
pub struct Rule {
    table: usize,
    /// Its chain: one of the kernel's, or one of [`CHAINS`].
    chain: usize,
    built_in: bool,
    place: Place,
    /// Matches that iptables prints as they are given.
    matches: &'static str,
    comment: Option<String>,
    action: Action,
}

/// Comments that a reader of rules may stumble over.
fn comment() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "site",
        "rule",
        "-j",
        "KUBE-SERVICES",
        "KUBE-MARK-MASQ",
        "-A",
        "PREROUTING",
        "\"",
        "\\",
        "'",
        "--",
        "#",
        "*nat",
        ":KUBE-SVC-X",
        "COMMIT",
        "kubernetes",
        "[0:0]",
        "ü",
        "$(x)",
        ";",
    ]);
    let glue = select(vec!["", " ", "  "]);
    prop::collection::vec((piece, glue), 1..8)
        .prop_map(|pieces| {
            pieces
                .into_iter()
                .flat_map(|(piece, glue)| [piece, glue])
                .collect::<String>()
        })
        .prop_filter("a comment of something", |comment| !comment.trim().is_empty())
}

fn rule() -> impl Strategy<Value = Rule> {
    let place = select(vec![Place::Early, Place::First, Place::Second, Place::Last]);
    let matches = select(vec![
        "",
        "-m limit --limit 5/min",
        "-p tcp -m tcp --dport 9999",
        "-m mark --mark 0x2000/0x2000",
        "-m conntrack --ctstate NEW",
        "-m addrtype --dst-type LOCAL",
        "-p udp -m multiport --dports 53,5353",
    ]);
    let action = prop_oneof![
        4 => (1..6usize).prop_map(Action::Jump),
        1 => Just(Action::Masquerade),
        4 => select(vec!["RETURN", "ACCEPT", "MARK --set-xmark 0x80/0x80"]).prop_map(Action::Do),
    ];
    let comment = proptest::option::weighted(0.7, comment());
    let at = (0..BUILT_IN.len(), 0..CHAINS.len(), any::<bool>());
    (at, place, matches, comment, action).prop_map(|((table, chain, built_in), place, matches, comment, action)| Rule {
        table,
        chain,
        built_in,
        place,
        matches,
        comment,
        action,
    })
}

/// Some rules of others.
pub fn rules() -> impl Strategy<Value = Vec<Rule>> {
    prop::collection::vec(rule(), 0..24)
}

impl Rule {
    fn chain(&self) -> &'static str {
        let built_in = BUILT_IN[self.table].1;
        if self.built_in {
            built_in[self.chain % built_in.len()]
        } else {
            CHAINS[self.chain]
        }
    }

    fn line(&self) -> String {
        let chain = self.chain();
        let mut line = match self.place {
            Place::Early | Place::Last => format!("-A {chain}"),
            Place::First => format!("-I {chain}"),
            Place::Second => format!("-I {chain} 2"),
        };
        if !self.matches.is_empty() {
            line = line + " " + self.matches;
        }
        if let Some(comment) = &self.comment {
            let escaped = comment.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'");
            line = format!("{line} -m comment --comment \"{escaped}\"");
        }
        let target = match &self.action {
            Action::Jump(_) if self.built_in => Some(CHAINS[self.chain]),
            Action::Jump(behind) => CHAINS.get(self.chain + behind).copied(),
            Action::Masquerade if self.marks() => Some("KUBE-MARK-MASQ"),
            Action::Masquerade => None,
            Action::Do(target) => Some(*target),
        };
        match target {
            Some(target) => format!("{line} -j {target}"),
            None => line,
        }
    }

    /// Whether it jumps to KUBE-MARK-MASQ: only where that is, and once it is there.
    pub fn marks(&self) -> bool {
        matches!(self.action, Action::Masquerade)
            && BUILT_IN[self.table].0 == "nat"
            && !matches!(self.place, Place::Early)
    }

    fn is_early(&self) -> bool {
        matches!(self.place, Place::Early)
    }
}

/// The rules that are there before kube-proxy's and those that come after, as input of `iptables-restore --noflush`.
pub fn scripts(rules: &[Rule], family: Family) -> (String, String) {
    let network = match family {
        Family::V4 => "192.0.2.0/24",
        Family::V6 => "2001:db8::/32",
    };
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for (table, (name, built_in)) in BUILT_IN.iter().enumerate() {
        early.push(format!("*{name}"));
        late.push(format!("*{name}"));
        early.extend(CHAINS.map(|chain| format!(":{chain} - [0:0]")));
        // What is inserted as the second needs a first.
        let all = built_in.iter().chain(&CHAINS);
        early.extend(all.map(|chain| format!("-A {chain} -s {network} -j RETURN")));
        for rule in rules.iter().filter(|rule| rule.table == table) {
            let script = if rule.is_early() { &mut early } else { &mut late };
            script.push(rule.line());
        }
        early.push("COMMIT\n".to_owned());
        late.push("COMMIT\n".to_owned());
    }
    (early.join("\n"), late.join("\n"))
}
