//! The shop with traffic on: lets time pass while the screen shows it, and measures what the mesh does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use heddle_tests::{
    client::Client,
    load::{Load, Plan, Tally},
    metrics::Scrape,
};

use crate::{
    screen::{Frame, Row, Screen},
    shop::{REVIEWS, Shop},
};

/// Requests a second through `web`'s sidecar.
const RATE: f64 = 400.0;

/// How long an effect of a saved file is waited for.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);

/// The shop, its traffic and the screen.
#[derive(Debug)]
pub(crate) struct Act {
    /// The shop.
    pub(crate) shop: Shop,
    /// Where the story is told.
    pub(crate) screen: Screen,
    /// All that happened so far.
    pub(crate) total: Tally,
    load: Load,
    began: Instant,
    sampled: Instant,
    requests_by_mtls: BTreeMap<String, [f64; 2]>,
    control_plane: bool,
    expiries: BTreeSet<u64>,
}

impl Act {
    /// Turns the traffic on.
    #[must_use]
    pub(crate) fn begin(shop: Shop) -> Self {
        let plan = Plan {
            through: shop.web.outbound(),
            host: REVIEWS.to_owned(),
            path: "/".to_owned(),
            http1: 6,
            http2: 2,
            rate: RATE,
            post_every: 0,
        };
        Self {
            shop,
            screen: Screen::new(),
            total: Tally::default(),
            load: Load::start(&plan),
            began: Instant::now(),
            sampled: Instant::now(),
            requests_by_mtls: BTreeMap::new(),
            control_plane: true,
            expiries: BTreeSet::new(),
        }
    }

    /// Lets `span` pass, showing frames, and gives what happened in it.
    ///
    /// # Errors
    /// When a sidecar does not answer for its metrics.
    pub(crate) async fn watch(&mut self, span: Duration) -> anyhow::Result<Tally> {
        let end = Instant::now() + span;
        let step = Duration::from_millis(if self.screen.is_live() { 500 } else { 2000 });
        let mut seen = Tally::default();
        while Instant::now() < end {
            tokio::time::sleep(step.min(end.saturating_duration_since(Instant::now()))).await;
            let tally = self.load.take();
            let frame = self.frame(&tally).await?;
            self.screen.show(&frame);
            self.total.add(&tally);
            seen.add(&tally);
        }
        Ok(seen)
    }

    /// Saves new weights and measures how long it takes until an open connection gets an answer of `version`,
    /// which had weight 0 before.
    ///
    /// # Errors
    /// When that takes more than 10 s or a request fails.
    pub(crate) async fn time_to_effect(&self, weights: [i32; 3], version: &str) -> anyhow::Result<Duration> {
        let mut probe = Client::http1(self.shop.web.outbound()).await?;
        probe.get(REVIEWS, "/probe").await?;
        let saved = Instant::now();
        self.shop.split(weights)?;
        while saved.elapsed() < EFFECT_LIMIT {
            let answer = probe.get(REVIEWS, "/probe").await?;
            if answer.answered_by() == version {
                return Ok(saved.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bail!("{version} did not answer within {EFFECT_LIMIT:?} of the route's saving")
    }

    /// SIGKILL.
    pub(crate) fn kill_control_plane(&mut self) {
        self.shop.world.kill_control_plane();
        self.control_plane = false;
    }

    /// And starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) async fn restart_control_plane(&mut self) -> anyhow::Result<()> {
        self.shop.world.start_control_plane().await?;
        self.control_plane = true;
        Ok(())
    }

    /// Certificates that `web`'s sidecar has had, told by when they expire.
    ///
    /// # Errors
    /// When it does not answer for its metrics.
    pub(crate) async fn certificates(&mut self) -> anyhow::Result<usize> {
        let expiry = self.shop.web.scrape().await?.sum("heddle_certificate_expiry_timestamp_seconds", &[]);
        // Whole seconds, so they compare.
        self.expiries.insert(expiry as u64);
        Ok(self.expiries.len())
    }

    /// Stops the traffic and gives the shop's last words.
    pub(crate) async fn end(mut self) -> Tally {
        let last = self.load.finish().await;
        self.total.add(&last);
        self.total
    }

    async fn frame(&mut self, tally: &Tally) -> anyhow::Result<Frame> {
        let span = self.sampled.elapsed().as_secs_f64();
        self.sampled = Instant::now();
        let ejected = self.ejected().await?;
        let mut rows = Vec::new();
        for pod in &self.shop.reviews {
            let version = &pod.manifest.labels[1].1;
            let scrape = pod.scrape().await.with_context(|| format!("metrics of {}", pod.name))?;
            let now = ["true", "false"].map(|mtls| requests(&scrape, mtls));
            let before = self.requests_by_mtls.insert(pod.name.clone(), now).unwrap_or_default();
            let [over_mtls, plain] = [now[0] - before[0], now[1] - before[1]];
            rows.push(Row {
                pod: pod.manifest.name.clone(),
                rate: tally.by_version.get(version).copied().unwrap_or(0) as f64 / span,
                share: tally.share(version),
                mtls: (over_mtls + plain > 0.0).then_some(plain == 0.0),
                ejected: ejected.contains(&pod.ip.to_string()),
            });
        }
        let success = match tally.requests {
            0 => 100.0,
            all => (all - tally.failed) as f64 * 100.0 / all as f64,
        };
        Ok(Frame {
            elapsed: self.began.elapsed().as_secs_f64(),
            rate: tally.requests as f64 / span,
            success,
            p50: tally.latencies.percentile(0.5).as_secs_f64() * 1000.0,
            p99: tally.latencies.percentile(0.99).as_secs_f64() * 1000.0,
            certificates: self.certificates().await?,
            control_plane: self.control_plane,
            rows,
        })
    }

    /// Addresses that `web`'s sidecar leaves out now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn ejected(&self) -> anyhow::Result<BTreeSet<String>> {
        self.shop.web.ejected().await
    }
}

fn requests(scrape: &Scrape, mtls: &str) -> f64 {
    scrape.sum("http_server_request_duration_seconds_count", &[("heddle_mtls", mtls)])
}
