//! The server's process: reads its configuration, makes the real clock and identities, and runs until it is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use nftfleet_server::clock::{SystemClock, SystemIds};
use nftfleet_server::config::Flags;
use nftfleet_server::service::Service;
use nftfleet_server::telemetry;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    telemetry::init_logs(flags.log_format);
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", telemetry::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is started, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = flags.check()?;
    let starting = Service::start(config, Arc::new(SystemClock), Arc::new(SystemIds));
    let service = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
    }
    service.stop().await;
    Ok(())
}
