//! Runs the control plane's benchmark: `bench-control-plane [--smoke | --one SERVICES STREAMS CHANGES] [OUT]`.

use std::path::PathBuf;

use heddle_tests::bench::control_plane::{self, Plan, SizePlan};

#[tokio::main]
#[allow(clippy::print_stderr, reason = "progress is for whoever waits")]
async fn main() -> anyhow::Result<()> {
    let mut plan = Plan::full();
    let mut out = PathBuf::from("target/bench");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--smoke" => plan = Plan::smoke(),
            "--one" => {
                let mut number = || -> anyhow::Result<usize> { Ok(args.next().unwrap_or_default().parse()?) };
                let (services, streams) = (number()?, number()?);
                plan.changes = number()?;
                plan.sizes = vec![SizePlan { services, endpoints_each: 20, streams: vec![streams] }];
            }
            path => out = path.into(),
        }
    }
    let report = control_plane::run(&plan, |line| eprintln!("{line}")).await?;
    control_plane::publish(&report, &out)?;
    eprintln!("{}\nwritten to {}", report.markdown(), out.display());
    Ok(())
}
