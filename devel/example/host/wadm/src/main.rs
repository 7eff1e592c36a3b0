// SPDX-License-Identifier: Apache-2.0
//! wadm's crate is all of it but the main function, which this is. `--help` says what it can be told, and the environment's names.

use clap::Parser as _;
use tokio::signal::unix::{signal, SignalKind};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut tasks = wadm::start_wadm(wadm::config::WadmConfig::parse()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        ended = tasks.join_next() => ended.map_or(Ok(()), |task| task?),
    }
}
