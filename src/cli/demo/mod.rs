//! `walcast demo`: everything at once on this machine, and nothing left of it afterwards.

mod built;
mod failover;
mod postgres;
mod workload;

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::process::parent_id,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, interval, sleep, timeout};

use self::{built::Built, failover::Story, postgres::Cluster};
use super::{
    advice,
    args::{DemoArgs, Format, HubArgs},
    client::Hub,
    error::Error,
    output::Output,
    serve, signals,
    start::From,
    tail,
};
use crate::{
    app,
    config::{Config, Override},
    shutdown::Drain,
};

/// Time for the hub to serve its first stream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for the hub to end.
const DRAIN: Duration = Duration::from_secs(10);

pub async fn run(args: &DemoArgs) -> Result<(), Error> {
    let stop = signals::drain_on_signal()?;
    if args.with_parent {
        tokio::spawn(end_with_parent(stop.clone()));
    }
    let output = Output::with_status();
    output.status(|| "starting PostgreSQL".to_owned());
    let begun = Instant::now();
    let mut cluster = Cluster::start(args.bin_dir.as_deref(), args.failover).await?;
    let outcome = match args.failover {
        true => with_pair(args, &mut cluster, &output, &stop, begun).await,
        false => with_cluster(args, &mut cluster, &output, &stop).await,
    };
    output.status(|| "stopping".to_owned());
    let stopped = cluster.stop().await;
    outcome.and(stopped)
}

async fn with_cluster(args: &DemoArgs, cluster: &mut Cluster, output: &Output, stop: &Drain) -> Result<(), Error> {
    let sql = |error: tokio_postgres::Error| Error::Failed(format!("the demo's workload failed: {error}"));
    let version = tokio::select! {
        version = cluster.ready() => version?,
        () = stop.wait() => return Ok(()),
    };
    let mut shop = cluster.connect().await.map_err(sql)?;
    workload::create(&shop).await.map_err(sql)?;
    let config = config(args, cluster)?;
    serve::log(&config.log)?;
    if args.format == Format::Pretty {
        output.print(&introduction(cluster, &version, &config))?;
    }
    output.status(|| "starting the hub".to_owned());
    let listen = config.grpc.listen;
    let drain = Drain::new();
    let mut hub = tokio::spawn(app::serve(config, drain.clone()));
    let work = async { workload::run(&mut shop, stop).await.map_err(sql) };
    let outcome = tokio::select! {
        tailed = follow(args, listen, output, stop, &|_| {}) => tailed,
        worked = work => worked,
        served = &mut hub => return Err(hub_ended(served)),
    };
    finish(hub, &drain, outcome).await
}

/// The same with a standby, which takes over.
async fn with_pair(
    args: &DemoArgs,
    cluster: &mut Cluster,
    output: &Output,
    stop: &Drain,
    begun: Instant,
) -> Result<(), Error> {
    let prepared = async {
        let version = cluster.ready().await?;
        failover::prepare(cluster).await?;
        Ok::<_, Error>(version)
    };
    let version = tokio::select! {
        prepared = prepared => prepared?,
        () = stop.wait() => return Ok(()),
    };
    let config = config(args, cluster)?;
    serve::log(&config.log)?;
    if args.format == Format::Pretty {
        output.print(&introduction(cluster, &version, &config))?;
    }
    output.status(|| "starting the hub".to_owned());
    let listen = config.grpc.listen;
    let drain = Drain::new();
    let mut hub = tokio::spawn(app::serve(config, drain.clone()));
    let built = Mutex::new(Built::default());
    let hub_dir = cluster.hub_dir();
    let story = Story { output, format: args.format, begun, hub_dir, built: &built };
    let enough = Drain::new();
    let played = async {
        let played = story.play(cluster).await;
        enough.start();
        played
    };
    let observe = |item: &tail::follow::Item<'_>| built.lock().take(item);
    let outcome = tokio::select! {
        both = async { tokio::try_join!(played, follow(args, listen, output, &enough, &observe)) } => both.map(drop),
        () = stop.wait() => Ok(()),
        served = &mut hub => return Err(hub_ended(served)),
    };
    let finished = outcome.is_ok() && !stop.started();
    finish(hub, &drain, outcome).await?;
    match finished {
        true => story.compare(cluster).await,
        false => Ok(()),
    }
}

/// Ends the hub well.
async fn finish(
    mut hub: tokio::task::JoinHandle<Result<(), app::Error>>,
    drain: &Drain,
    outcome: Result<(), Error>,
) -> Result<(), Error> {
    drain.start();
    match timeout(DRAIN, &mut hub).await {
        Ok(Ok(Ok(()))) => outcome,
        Ok(served) => outcome.and(Err(hub_ended(served))),
        Err(_) => {
            hub.abort();
            outcome.and(Err(Error::Failed(format!("the hub did not end within {} s", DRAIN.as_secs()))))
        }
    }
}

/// The subscriber that the person watches.
async fn follow(
    args: &DemoArgs,
    listen: SocketAddr,
    output: &Output,
    stop: &Drain,
    observe: &tail::Observe<'_>,
) -> Result<(), Error> {
    let hub = Hub::new(&HubArgs {
        hub: format!("http://{listen}"),
        token: None,
        token_file: None,
        ca: None,
        cert: None,
        key: None,
        tls_name: None,
    })?;
    let options = tail::Options {
        from: Some(From::Earliest),
        count: args.count,
        format: args.format,
        patience: PATIENCE,
        ..Default::default()
    };
    let limit = async {
        match args.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        tailed = tail::run_observed(&hub, &options, output, stop, observe) => tailed.map(drop),
        () = limit => Ok(()),
    }
}

fn hub_ended(served: Result<Result<(), app::Error>, tokio::task::JoinError>) -> Error {
    match served {
        Ok(Ok(())) => Error::Failed("the hub ended by itself".to_owned()),
        Ok(Err(error)) => advice::hub(&error),
        Err(error) => Error::Failed(format!("the hub ended: {error}")),
    }
}

fn config(args: &DemoArgs, cluster: &Cluster) -> Result<Config, Error> {
    let settings = [
        ("source.dsn", cluster.dsn()),
        ("source.create_publication", (!args.failover).to_string()),
        ("journal.data_dir", cluster.hub_dir().display().to_string()),
        ("journal.segment_bytes", "16MiB".to_owned()),
        ("journal.retain_bytes", "256MiB".to_owned()),
        ("grpc.listen", free_address(50051)?.to_string()),
        ("http.listen", free_address(8080)?.to_string()),
        ("grpc.drain_timeout", "2s".to_owned()),
        ("log.format", "compact".to_owned()),
        ("log.filter", args.log.clone()),
    ];
    let flags = settings.map(|(key, value)| Override { key: key.into(), value, flag: "walcast demo".into() });
    Ok(Config::load(None, |_| None, &flags)?)
}

/// The port that the documentation names, or any other when that is taken.
fn free_address(port: u16) -> Result<SocketAddr, Error> {
    let bound = TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind("127.0.0.1:0"));
    bound.and_then(|listener| listener.local_addr()).map_err(Error::io("finding a free port"))
}

fn introduction(cluster: &Cluster, version: &str, config: &Config) -> String {
    let (bold, dim) = (anstyle::Style::new().bold(), anstyle::Style::new().dimmed());
    let walcast = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let walcast = walcast.map_or_else(
        || "walcast".to_owned(),
        |path| match here.as_ref().and_then(|here| path.strip_prefix(here).ok()) {
            Some(relative) => format!("./{}", relative.display()),
            None => path.display().to_string(),
        },
    );
    let listen = config.grpc.listen;
    let hub = if listen.port() == 50051 { String::new() } else { format!(" --hub http://{listen}") };
    let taken = match listen.port() {
        50051 => "",
        _ => " (50051 is taken)",
    };
    let dashboard = config.http.listen.map_or_else(String::new, |address| format!("http://{address}"));
    format!(
        "{bold}PostgreSQL {}{bold:#} with a small shop, {bold}walcast{bold:#} on {listen}{taken}, dashboard {dashboard}\n\
         {dim}In another terminal:{dim:#}\n  \
         {walcast} tail{hub} public.orders --where \"status = 'paid'\"\n  \
         grpcurl -plaintext -d '{{\"row_format\": \"ROW_FORMAT_STRUCT\"}}' {listen} walcast.v1.ChangeStreamService/Subscribe\n  \
         psql {}\n\
         {dim}Ctrl-C ends it and leaves nothing behind.{dim:#}\n\n",
        version,
        cluster.url(),
    )
}

/// Tells `stop` when the parent process is gone: there is no portable signal for that, so it is looked at.
async fn end_with_parent(stop: Drain) {
    let parent = parent_id();
    let mut ticks = interval(Duration::from_millis(500));
    while parent_id() == parent {
        ticks.tick().await;
    }
    stop.start();
}
