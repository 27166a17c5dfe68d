//! The rules in the language of nft: what `--dry-run` prints. `nft -f` takes it, and then the kernel holds what
//! [`super::netlink`] would have written (a test in a network namespace compares the two).

use std::fmt;

use ipnet::IpNet;

use super::rules::{Chain, Hook, Match, Rule, Ruleset, TABLE, Verdict};

/// What `--undo --dry-run` prints. To add a table first is how nft says that it need not be there.
pub const REMOVAL: &str = "table inet heddle\ndelete table inet heddle\n";

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REMOVAL)?;
        writeln!(f, "table inet {TABLE} {{")?;
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Output => "output",
            Hook::Prerouting => "prerouting",
        };
        writeln!(f, "\tchain {} {{", self.name)?;
        writeln!(f, "\t\ttype nat hook {hook} priority -100; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in &self.matches {
            write!(f, "{what} ")?;
        }
        match self.verdict {
            Verdict::Leave => f.write_str("return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SentBy(user) => write!(f, "meta skuid {user}"),
            Self::OutLoopback => f.write_str("oifname \"lo\""),
            Self::InLoopback => f.write_str("iifname \"lo\""),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::ToPort(range) => write!(f, "tcp dport {range}"),
            Self::To(net @ IpNet::V4(_)) => write!(f, "ip daddr {net}"),
            Self::To(net @ IpNet::V6(_)) => write!(f, "ip6 daddr {net}"),
            Self::ToOther => f.write_str("fib daddr type != local"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_rules_read_as_nft_writes_them() {
        let flags = ["--exclude-outbound-ports", "3306,6000-6010", "--exclude-inbound-ports", "9000"];
        let cidrs = ["--exclude-outbound-cidrs", "169.254.0.0/16,fd00::/8"];
        let line = ["heddle-proxy", "redirect"].iter().chain(&flags).chain(&cidrs);
        let Command::Redirect(args) = Cli::parse_from(line).command else { panic!("it is redirect") };
        assert_eq!(
            Ruleset::new(&args).unwrap().to_string(),
            r#"table inet heddle
delete table inet heddle
table inet heddle {
	chain outbound {
		type nat hook output priority -100; policy accept;
		meta skuid 2102 oifname "lo" tcp dport 15009 redirect to :15020
		meta skuid 2102 return
		oifname "lo" return
		tcp dport 53 return
		tcp dport 15020 return
		tcp dport 3306 return
		tcp dport 6000-6010 return
		ip daddr 169.254.0.0/16 return
		ip6 daddr fd00::/8 return
		meta l4proto tcp redirect to :15001
	}
	chain inbound {
		type nat hook prerouting priority -100; policy accept;
		iifname "lo" return
		fib daddr type != local return
		tcp dport 15000 return
		tcp dport 15001 return
		tcp dport 15006 return
		tcp dport 15008 return
		tcp dport 15020 return
		tcp dport 9000 return
		meta l4proto tcp redirect to :15006
	}
}
"#
        );
    }
}
