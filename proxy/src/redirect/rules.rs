//! What is captured. Pure: rules as values, which [`super::text`] and [`super::netlink`] put into their languages.
//!
//! Outbound is what local programs open (hook `output`), inbound what comes by the wire (hook `prerouting`); both see
//! the first packet of a connection only, so rules cost nothing per packet and leave open connections alone.
//!
//! What stays on the machine is not captured: loopback, and the pod calling its own address. A pod that calls itself
//! through its own Service is captured, since a Service's address is elsewhere; its sidecar then dials the pod's own
//! port 15008, which is the sidecar's own traffic on loopback, and so is the request handed to the application. (Istio
//! needs a third rule there, because its sidecar dials the application's port and must be caught again; ours dials
//! the mesh port by name.)
//!
//! Nor is what the pod only forwards, for containers or virtual machines within it: it comes in from a bridge of the pod's
//! and goes elsewhere, so it is neither the pod's own nor for it. What is for none of the pod's addresses is left alone.
//! That takes `nft_fib` of the kernel, which kube-proxy's nftables mode takes too; where it is missing, the rules are
//! written without ([`Ruleset::without_fib`]), and the sidecar refuses what is for somebody else.
//!
//! DNS is not captured, over UDP (nothing but TCP is) and over TCP alike: a resolver must work before the mesh does.

use std::{fmt, str::FromStr};

use heddle_api::ports;
use ipnet::IpNet;

use crate::cli::RedirectArgs;

/// The table's name, in the family `inet`, which is IPv4 and IPv6.
pub const TABLE: &str = "heddle";
/// DNS over TCP.
const DNS: u16 = 53;
/// Entries of one list of exceptions. Each is a rule that every new connection passes.
const MOST_EXCEPTIONS: usize = 128;

/// One port, or a range with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The lowest and the highest.
    #[must_use]
    pub const fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("{text:?} is not a port (1 to 65535) or a range such as 8000-8010")),
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends() {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// What a packet must be for a rule to hold; all of a rule's must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Sent by a process of this user.
    SentBy(u32),
    /// It leaves on loopback.
    OutLoopback,
    /// It came on loopback.
    InLoopback,
    /// It is TCP.
    Tcp,
    /// It is TCP to one of these ports.
    ToPort(PortRange),
    /// It goes to one of these addresses.
    To(IpNet),
    /// It goes to no address of the pod's.
    ToOther,
}

/// What happens where a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection goes where it was going.
    Leave,
    /// The connection goes to this port of the pod.
    Redirect(u16),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Then this happens.
    pub verdict: Verdict,
}

/// Where in netfilter a chain stands; both at the priority of destination NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What local programs send.
    Output,
    /// What comes in.
    Prerouting,
}

/// The rules of one direction, tried in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it stands.
    pub hook: Hook,
    /// What it says.
    pub rules: Vec<Rule>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Outbound, inbound.
    pub chains: [Chain; 2],
}

impl Ruleset {
    /// The rules that these flags ask for.
    ///
    /// # Errors
    /// Names the flag that is too long.
    pub fn new(args: &RedirectArgs) -> Result<Self, String> {
        for (flag, entries) in [
            ("--exclude-outbound-ports", args.exclude_outbound_ports.len()),
            ("--exclude-inbound-ports", args.exclude_inbound_ports.len()),
            ("--exclude-outbound-cidrs", args.exclude_outbound_cidrs.len()),
        ] {
            if entries > MOST_EXCEPTIONS {
                return Err(format!(
                    "{flag} has {entries} entries and at most {MOST_EXCEPTIONS} are taken: join them to ranges"
                ));
            }
        }
        Ok(Self { chains: [outbound(args), inbound(args)] })
    }

    /// The same for a kernel that cannot tell whose an address is.
    #[must_use]
    pub fn without_fib(&self) -> Self {
        let mut without = self.clone();
        for chain in &mut without.chains {
            chain.rules.retain(|rule| !rule.matches.contains(&Match::ToOther));
        }
        without
    }
}

fn outbound(args: &RedirectArgs) -> Chain {
    let sidecar = Match::SentBy(args.proxy_uid);
    let check = Match::ToPort(PortRange::one(ports::REDIRECT_CHECK));
    let mut rules = vec![
        // What the sidecar looks for, to know that these rules are there.
        Rule {
            matches: vec![sidecar.clone(), Match::OutLoopback, check],
            verdict: Verdict::Redirect(ports::METRICS),
        },
        leave(sidecar),
        leave(Match::OutLoopback),
        leave_port(DNS),
        // A Prometheus in the mesh scrapes other pods' sidecars themselves.
        leave_port(ports::METRICS),
    ];
    rules.extend(args.exclude_outbound_ports.iter().map(|&range| leave(Match::ToPort(range))));
    rules.extend(args.exclude_outbound_cidrs.iter().map(|net| leave(Match::To(net.trunc()))));
    rules.push(Rule { matches: vec![Match::Tcp], verdict: Verdict::Redirect(ports::OUTBOUND) });
    Chain { name: "outbound", hook: Hook::Output, rules }
}

fn inbound(args: &RedirectArgs) -> Chain {
    let mut rules = vec![leave(Match::InLoopback), leave(Match::ToOther)];
    let mut own = ports::SIDECAR;
    own.sort_unstable();
    rules.extend(own.into_iter().map(leave_port));
    rules.extend(args.exclude_inbound_ports.iter().map(|&range| leave(Match::ToPort(range))));
    rules.push(Rule { matches: vec![Match::Tcp], verdict: Verdict::Redirect(ports::INBOUND) });
    Chain { name: "inbound", hook: Hook::Prerouting, rules }
}

fn leave(what: Match) -> Rule {
    Rule { matches: vec![what], verdict: Verdict::Leave }
}

fn leave_port(port: u16) -> Rule {
    leave(Match::ToPort(PortRange::one(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RedirectArgs {
        RedirectArgs {
            proxy_uid: 2102,
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            dry_run: false,
            undo: false,
        }
    }

    #[test]
    fn ports_and_ranges_are_read_and_nonsense_is_named() {
        assert_eq!("80".parse(), Ok(PortRange::one(80)));
        let range: PortRange = "8000-8010".parse().unwrap();
        assert_eq!((range.ends(), range.to_string().as_str()), ((8000, 8010), "8000-8010"));
        for (text, word) in
            [("0", "not a port"), ("x", "not a port"), ("1-", "not a port"), ("9-8", "ends before")]
        {
            let error = text.parse::<PortRange>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_sidecars_own_traffic_is_left_before_anything_is_redirected_but_for_the_check() {
        let [outbound, _] = Ruleset::new(&args()).unwrap().chains;
        let own = outbound.rules.iter().position(|rule| *rule == leave(Match::SentBy(2102))).unwrap();
        for rule in &outbound.rules[..own] {
            assert!(rule.matches.contains(&Match::ToPort(PortRange::one(ports::REDIRECT_CHECK))), "{rule:?}");
        }
    }

    #[test]
    fn what_is_not_excepted_is_redirected_by_the_last_rule_of_each_chain() {
        let excepted = RedirectArgs {
            exclude_outbound_ports: vec!["3306".parse().unwrap()],
            exclude_inbound_ports: vec!["9000-9010".parse().unwrap()],
            exclude_outbound_cidrs: vec!["10.1.2.3/8".parse().unwrap()],
            ..args()
        };
        let [outbound, inbound] = Ruleset::new(&excepted).unwrap().chains;
        for (chain, port) in [(&outbound, ports::OUTBOUND), (&inbound, ports::INBOUND)] {
            let (last, others) = chain.rules.split_last().unwrap();
            assert_eq!(*last, Rule { matches: vec![Match::Tcp], verdict: Verdict::Redirect(port) });
            assert!(others.iter().all(|rule| rule.verdict != last.verdict), "{others:?}");
        }
        assert!(outbound.rules.contains(&leave(Match::To("10.0.0.0/8".parse().unwrap()))), "truncated");
        assert!(inbound.rules.contains(&leave(Match::ToPort("9000-9010".parse().unwrap()))));
        assert!(!outbound.rules.contains(&leave(Match::ToPort("9000-9010".parse().unwrap()))));
    }

    #[test]
    fn without_fib_all_other_rules_are_there() {
        let all = Ruleset::new(&args()).unwrap();
        let without = all.without_fib();
        assert_eq!(without.chains[0], all.chains[0]);
        let others = all.chains[1].rules.iter().filter(|rule| **rule != leave(Match::ToOther));
        assert!(without.chains[1].rules.iter().eq(others));
        assert_ne!(without, all);
    }

    #[test]
    fn too_many_exceptions_are_refused_by_the_flags_name() {
        let many = vec![PortRange::one(1); MOST_EXCEPTIONS + 1];
        let error = Ruleset::new(&RedirectArgs { exclude_inbound_ports: many, ..args() }).unwrap_err();
        assert!(error.contains("--exclude-inbound-ports has 129"), "{error}");
    }
}
