//! `nacre metrics`: the node's counters, for Prometheus.

mod exposition;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use clap::{Args, Subcommand};
use nacre_run_directory::history::Totals;
use serde::Serialize;

use crate::Verdict;
use crate::output::Output;
use crate::sandboxes::{Condition, Known, Places};

/// What `GET /metrics` answers with.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics of this node: how pods start, and how many there are.
#[derive(Subcommand)]
pub(crate) enum Command {
    Show(Show),
    Serve(Serve),
}

/// Print the metrics once.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre metrics show                   as Prometheus reads them
  nacre metrics show --output json | jq .totals.failures")]
pub(crate) struct Show {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    places: Places,
}

/// Serve the metrics to Prometheus over HTTP, at /metrics.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre metrics serve                                  on 127.0.0.1:9419
  nacre metrics serve --listen 10.0.0.7:9419           to the cluster: whoever reaches it can read it

It keeps no state, may end at any time, and tells no pod's name.")]
pub(crate) struct Serve {
    /// Address and port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9419")]
    listen: SocketAddr,
    #[command(flatten)]
    places: Places,
}

/// All that is told.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics {
    /// Of this program.
    version: &'static str,
    /// Sandboxes by condition.
    sandboxes: BTreeMap<Condition, usize>,
    /// Memory of their machines' processes, in bytes.
    resident_bytes: u64,
    totals: Totals,
}

pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Show(Show { output, places }) => {
            output.show(&Metrics::of(&places)?, exposition::text)?;
        }
        Command::Serve(arguments) => serve(arguments)?,
    }
    Ok(Verdict::Good)
}

impl Metrics {
    fn of(places: &Places) -> anyhow::Result<Metrics> {
        let present = places.present()?;
        let count = |condition| present.iter().filter(|known| known.condition == condition).count();
        Ok(Metrics {
            version: env!("CARGO_PKG_VERSION"),
            sandboxes: Condition::ALL
                .iter()
                .map(|condition| (*condition, count(*condition)))
                .collect(),
            resident_bytes: present.iter().filter_map(resident_bytes).sum(),
            totals: places.history().totals(),
        })
    }
}

/// Memory of a machine's process, while it is there.
fn resident_bytes(known: &Known) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", known.machine?)).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn serve(arguments: Serve) -> anyhow::Result<()> {
    let Serve { listen, places } = arguments;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen at {listen}"))?;
        eprintln!("nacre: metrics are at http://{}/metrics", listener.local_addr()?);
        let metrics = move || {
            let places = places.clone();
            async move {
                let metrics = tokio::task::spawn_blocking(move || Metrics::of(&places)).await;
                match metrics.map_err(anyhow::Error::from).flatten() {
                    Ok(metrics) => {
                        ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition::text(&metrics))
                            .into_response()
                    }
                    Err(error) => {
                        eprintln!("nacre: {error:#}");
                        StatusCode::INTERNAL_SERVER_ERROR.into_response()
                    }
                }
            }
        };
        let router = Router::new().route("/metrics", get(metrics));
        let ended = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        axum::serve(listener, router).with_graceful_shutdown(ended).await.context("failed to serve")
    })
}
