//! `heddle-proxy redirect`: the netfilter rules that lead a pod's TCP through its sidecar. It runs once, before the
//! sidecar, in the pod's network namespace, with `CAP_NET_ADMIN`; the sidecar itself has no such right.
//!
//! [`rules`] says what is captured and what is not, [`text`] writes it as nft would, [`netlink`] hands it to the
//! kernel. [`check`] is the sidecar's side: whether the rules are there.

pub mod check;
pub mod netlink;
pub mod rules;
pub mod text;

use std::io::{self, Write as _};

use anyhow::Context as _;

use crate::cli::RedirectArgs;

pub use self::rules::{PortRange, Ruleset};

const WITHOUT_FIB: &str = "heddle-proxy: the kernel lacks nft_fib, so what this pod forwards for containers or machines within it \
     is captured too, and refused: load nft_fib_inet, nft_fib_ipv4 and nft_fib_ipv6 if it forwards any";

/// Writes the rules, prints them (`--dry-run`), or removes them (`--undo`).
///
/// # Errors
/// When a flag cannot be obeyed or the kernel refuses, with what to do about it.
pub fn run(args: &RedirectArgs) -> anyhow::Result<()> {
    if args.undo {
        if args.dry_run {
            return print(text::REMOVAL);
        }
        return netlink::remove().context("the redirect rules could not be removed");
    }
    let ruleset = Ruleset::new(args).map_err(anyhow::Error::msg)?;
    if args.dry_run {
        return print(&ruleset.to_string());
    }
    if !netlink::replace(&ruleset).context("the redirect rules could not be written")? {
        say(WITHOUT_FIB);
    }
    Ok(())
}

fn say(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _written = writeln!(io::stderr(), "{text}");
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}
