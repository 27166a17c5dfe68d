//! The running sidecar, put together: sockets first, then identity and discovery, then the workers; the control
//! runtime is the caller's, and carries discovery, admin and signals alone.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    admin::{self, Admin, Readiness, Running, Surface},
    cli::RunArgs,
    identity::{self, ControlPlaneConfig},
    listen,
    log::Logs,
    metrics::Metrics,
    probe::{Replayer, Spares},
    redirect::check::{self, Instance},
    store::Store,
    threads::{Entrance, Workers},
    warm,
    worker::{Drain, DrainTrigger, Settings, Shared},
};

/// More workers than this bring nothing to one pod.
const MOST_WORKERS: usize = 4;
/// How often a drain looks whether the last connection has gone, and the sidecar whether its workers live.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// When a flag cannot be obeyed: an address is taken, a URL is none.
pub async fn run(args: RunArgs, logs: Logs) -> anyhow::Result<ExitCode> {
    let listeners = args.listeners();
    let defaults = args.as_in_a_cluster();
    let sockets = listen::bind(&listeners, &args.forward, defaults)?;
    let mut surfaces = Vec::new();
    for (addresses, surface, flag) in [
        (&listeners.admin, Surface::Admin, "--admin-listen"),
        (&listeners.metrics, Surface::Metrics, "--metrics-listen"),
    ] {
        for &address in addresses {
            match listen::bind_one(address) {
                Ok(socket) => surfaces.push((TcpListener::from_std(socket)?, surface)),
                Err(error) if defaults && address.is_ipv6() => {
                    tracing::info!(%address, %error, "not listening on IPv6");
                }
                Err(error) => return Err(error).with_context(|| format!("{flag} {address}")),
            }
        }
    }

    let settings = Arc::new(settings(&args, &listeners)?);
    let workers = args.workers.map_or_else(default_workers, usize::from);
    let metrics = Metrics::new(workers);
    let config = ControlPlaneConfig {
        url: args.control_plane.clone(),
        ca: args.control_plane_ca.clone(),
        token: args.token_file.clone(),
        pod: args.pod.clone(),
    };
    let (identity, store) = identity::start(config);
    let readiness = Readiness::default();
    let (spares, left_by_probes) = Spares::new();
    let live = Running { store: Arc::clone(&store), identity: Arc::clone(&identity) };
    let admin = Arc::new(Admin {
        pod: args.pod.clone(),
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
        logs: logs.clone(),
        live: Arc::new(live),
        probes: replayer(&args, &settings, spares)?,
        instance: Instance::new()?,
    });
    if args.expect_redirect {
        let rules = readiness.part("redirect", "the rules are being looked for");
        tokio::spawn(check::watch(rules, admin.instance.clone()));
    }
    for (listener, surface) in surfaces {
        tokio::spawn(admin::serve(listener, surface, Arc::clone(&admin)));
    }
    let serving = readiness.part("workers", "they are being started");
    let warming = readiness.part("warm", "the control plane's first word");
    let (warmed, mut warm_workers) = watch::channel(0);
    let (ready_store, ready_identity) = (Arc::clone(&store), Arc::clone(&identity));
    tokio::spawn(async move {
        ready_identity.ready().await;
        inbound_known(&ready_store).await;
        warming.not_ready("rehearsing, and connecting to what other pods of the workload talk to");
        // Ready either way: it is for the sake of speed alone.
        let _ = timeout(warm::LIMIT, warm_workers.wait_for(|&done| done >= workers)).await;
        warming.ready();
        tracing::info!("ready");
    });

    let (trigger, drain) = Drain::new();
    let trigger = Arc::new(trigger);
    tokio::spawn(drain_when_terminating(Arc::clone(&store), Arc::clone(&trigger)));
    let shared = Shared { store, identity, metrics, access_log: logs.access.clone(), settings, drain };
    let workers =
        Workers::start(workers, &shared, Entrance { sockets, spares: left_by_probes }, &Arc::new(warmed))?;
    serving.ready();
    tracing::info!(
        pod = %args.pod, outbound = ?listeners.outbound, inbound = ?listeners.inbound, mesh = ?listeners.mesh,
        admin = ?listeners.admin, metrics = ?listeners.metrics, "listening"
    );
    until_the_end(&workers, &trigger, args.drain_time).await
}

/// Probes are replayed where kubelet would have asked: at the pod's first address.
fn replayer(args: &RunArgs, settings: &Settings, spares: Spares) -> anyhow::Result<Replayer> {
    let probes = args.probes.clone().unwrap_or_default();
    if let Some(port) = probes.ports().into_iter().find(|port| heddle_api::ports::SIDECAR.contains(port)) {
        anyhow::bail!("--probes: port {port} is the sidecar's own, and no application's");
    }
    let ip = settings.pod_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Replayer::new(probes, ip, spares)
}

fn settings(args: &RunArgs, listeners: &crate::cli::Listeners) -> anyhow::Result<Settings> {
    let pod_ips: Vec<IpAddr> = if args.pod_ip.is_empty() {
        let interfaces = if_addrs::get_if_addrs()
            .context("the addresses of this machine cannot be read; name the pod's with --pod-ip")?;
        interfaces.iter().filter(|i| !i.is_loopback()).map(|i| i.ip().to_canonical()).collect()
    } else {
        args.pod_ip.iter().map(IpAddr::to_canonical).collect()
    };
    let all =
        [&listeners.outbound, &listeners.inbound, &listeners.mesh, &listeners.admin, &listeners.metrics];
    let listening = all.into_iter().flatten().copied().chain(args.forward.iter().map(|f| f.listen));
    Ok(Settings {
        pod: args.pod.clone(),
        pod_ips,
        listening: listening.collect(),
        detect_timeout: args.detect_timeout,
        header_limit: args.header_limit as usize,
        drain_time: args.drain_time,
        stall_timeout: args.stall_timeout,
    })
}

/// The CPU limit rounded up, at most [`MOST_WORKERS`]. The standard library reads cgroup quotas, rounding down.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS)
}

async fn inbound_known(store: &Store) {
    loop {
        let changed = store.inbound_changed();
        if store.inbound().is_some() {
            return;
        }
        changed.await;
    }
}

/// A native sidecar gets SIGTERM only after its application has gone, too late to begin: the control plane's word
/// that the pod is terminating begins the drain.
async fn drain_when_terminating(store: Arc<Store>, trigger: Arc<DrainTrigger>) {
    loop {
        let changed = store.inbound_changed();
        if store.inbound().is_some_and(|inbound| inbound.terminating) {
            tracing::info!("the pod is terminating: draining, and serving what comes");
            trigger.terminating();
            return;
        }
        changed.await;
    }
}

async fn until_the_end(
    workers: &Workers,
    trigger: &DrainTrigger,
    drain_time: Duration,
) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be awaited")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be awaited")?;
    let died = async {
        while !workers.one_has_died() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = died => anyhow::bail!("a worker thread died; see the log above"),
    }
    let deadline = Instant::now() + drain_time;
    tracing::info!(open = workers.open(), limit = ?drain_time, "leaving: waiting for open connections");
    trigger.leave();
    while workers.open() > 0 && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    match workers.open() {
        0 => tracing::info!("left: every connection has ended"),
        open => tracing::warn!(open, "left: connections were still open at the end of the drain time"),
    }
    Ok(ExitCode::SUCCESS)
}
