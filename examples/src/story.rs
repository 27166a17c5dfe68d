//! What happens in the demo, in order, and how it is judged.

use std::time::{Duration, Instant};

use heddle_tests::app::Mode;

use crate::{act::Act, shop::Shop};

/// How often the time from file save to effect is measured.
const MEASUREMENTS: usize = 6;

/// What the story's end depends on.
#[derive(Debug, Default)]
struct Findings {
    /// What should have happened and did not.
    missed: Vec<String>,
    to_effect: Vec<Duration>,
}

impl Findings {
    fn expect(&mut self, held: bool, what: &str) {
        if !held {
            self.missed.push(what.to_owned());
        }
    }
}

/// Plays it. True: every request that the mesh should have saved was.
///
/// # Errors
/// When the shop does not start or a part of it goes away.
pub(crate) async fn play() -> anyhow::Result<bool> {
    let shop = Shop::open().await?;
    let mut act = Act::begin(shop);
    let mut findings = Findings::default();
    let began = Instant::now();
    act.screen.say(
        "\nTraffic: web → its sidecar → mTLS → the sidecars of reviews v1, v2, v3. Weights 90 / 10 / 0, as declared.",
    );
    let tally = act.watch(Duration::from_secs(3)).await?;
    let share = tally.share("v1");
    findings.expect((share - 90.0).abs() < 5.0, &format!("v1 gets 90 % (it got {share:.1} %)"));

    weights(&mut act, &mut findings).await?;
    break_and_heal(&mut act, &mut findings).await?;
    lose_the_control_plane(&mut act, &mut findings).await?;
    renew(&mut act, &mut findings).await?;

    let took = began.elapsed();
    summary(act, findings, took).await
}

async fn weights(act: &mut Act, findings: &mut Findings) -> anyhow::Result<()> {
    act.screen.say("\n1. Editing the HTTPRoute's weights, with connections open.");
    for turn in 0..MEASUREMENTS {
        let (weights, version) = if turn % 2 == 0 { ([0, 0, 100], "v3") } else { ([100, 0, 0], "v1") };
        findings.to_effect.push(act.time_to_effect(weights, version).await?);
    }
    act.shop.split([50, 30, 20])?;
    act.screen.say(&format!(
        "   From file save to the first answer that obeys it, {MEASUREMENTS} times: {}. Now 50 / 30 / 20.",
        list(&findings.to_effect)
    ));
    act.watch(Duration::from_secs(1)).await?;
    let tally = act.watch(Duration::from_secs(3)).await?;
    let share = tally.share("v1");
    findings
        .expect((share - 50.0).abs() < 8.0, &format!("v1 gets 50 % after the edit (it got {share:.1} %)"));
    Ok(())
}

async fn break_and_heal(act: &mut Act, findings: &mut Findings) -> anyhow::Result<()> {
    act.screen.say("\n2. The Service balances over the three, and v2 breaks: it answers 503 to everything.");
    act.shop.balance()?;
    act.watch(Duration::from_secs(2)).await?;
    let before = act.shop.reviews[1].app().requests();
    act.shop.reviews[1].app().behave(Mode::Status(503));
    act.watch(Duration::from_secs(3)).await?;
    let failed_tries = act.shop.reviews[1].app().requests() - before;
    let ejections = ejections(act).await?;
    findings.expect(ejections >= 1.0, "the broken endpoint is ejected");
    act.shop.reviews[1].app().behave(Mode::Healthy);
    act.screen.say(&format!(
        "   v2 was asked {failed_tries} times while broken, and put out {ejections:.0} times; callers saw none of it. Now it heals."
    ));
    let mut share = 0.0;
    for _ in 0..4 {
        share = act.watch(Duration::from_secs(2)).await?.share("v2");
        if share > 10.0 {
            break;
        }
    }
    findings.expect(share > 10.0, "the healed endpoint gets traffic again");
    Ok(())
}

async fn lose_the_control_plane(act: &mut Act, findings: &mut Findings) -> anyhow::Result<()> {
    act.screen
        .say("\n3. The control plane is killed (SIGKILL). Traffic goes on; a route is edited meanwhile.");
    act.kill_control_plane();
    act.shop.split([100, 0, 0])?;
    let tally = act.watch(Duration::from_secs(3)).await?;
    findings.expect(tally.share("v1") < 90.0, "nothing changes while the control plane is gone");
    let restarted = Instant::now();
    act.restart_control_plane().await?;
    act.screen.say("   It is back, and the sidecars take up where they were.");
    let mut share = 0.0;
    for _ in 0..8 {
        share = act.watch(Duration::from_secs(1)).await?.share("v1");
        if share > 99.0 {
            break;
        }
    }
    findings.expect(share > 99.0, "the edit made meanwhile holds after the restart");
    act.screen.say(&format!(
        "   The edit made meanwhile holds, {:.1} s after the restart.",
        restarted.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn renew(act: &mut Act, findings: &mut Findings) -> anyhow::Result<()> {
    let lifetime = crate::shop::CERTIFICATE_LIFETIME;
    act.screen
        .say(&format!("\n4. Certificates live {lifetime:?} here and are renewed at two thirds, under way."));
    let mut certificates = 0;
    for _ in 0..14 {
        certificates = act.certificates().await?;
        if certificates >= 2 {
            break;
        }
        act.watch(Duration::from_secs(1)).await?;
    }
    act.watch(Duration::from_secs(2)).await?;
    certificates = certificates.max(act.certificates().await?);
    findings.expect(certificates >= 2, "web's sidecar renewed its certificate");
    act.screen.say(&format!("   web's sidecar has had {certificates} certificates."));
    Ok(())
}

async fn ejections(act: &Act) -> anyhow::Result<f64> {
    Ok(act.shop.web.scrape().await?.sum("heddle_ejections_total", &[]))
}

async fn summary(act: Act, findings: Findings, took: Duration) -> anyhow::Result<bool> {
    let tally = act.end().await;
    let longest = findings.to_effect.iter().max().copied().unwrap_or_default();
    println!("\nIn {:.0} s:", took.as_secs_f64());
    println!("  {} requests, {} failed, {} connections closed", tally.requests, tally.failed, tally.closed);
    println!(
        "  p50 {:.1} ms, p99 {:.1} ms",
        tally.latencies.percentile(0.5).as_secs_f64() * 1000.0,
        tally.latencies.percentile(0.99).as_secs_f64() * 1000.0
    );
    println!("  from file save to effect: {} (longest {longest:.0?})", list(&findings.to_effect));
    for failure in &tally.failures {
        println!("  failed: {failure}");
    }
    for missed in &findings.missed {
        println!("  did not happen: {missed}");
    }
    let good = tally.failed == 0 && tally.closed == 0 && findings.missed.is_empty();
    println!("{}", if good { "The mesh held." } else { "The mesh did not hold." });
    Ok(good)
}

fn list(durations: &[Duration]) -> String {
    durations.iter().map(|d| format!("{:.0} ms", d.as_secs_f64() * 1000.0)).collect::<Vec<_>>().join(", ")
}
