// SPDX-License-Identifier: Apache-2.0
//! The smallest wasmCloud host. Like wasmCloud's own program, which can take its place, it is told everything by the environment:
//! WASMCLOUD_NATS_HOST and _PORT, _LATTICE, _ALLOW_FILE_LOAD, _SECRETS_TOPIC, _PROV_SHUTDOWN_DELAY_MS, and perhaps a registry,
//! _OCI_ALLOWED_INSECURE. It takes its orders over the lattice's control interface, and runs until SIGTERM, SIGINT or the order to stop.

use std::{env, io, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{signal, SignalKind};
use tokio::time::timeout;
use wasmcloud_host::url::Url;
use wasmcloud_host::{OciConfig, WasmbusHost, WasmbusHostConfig};

fn told(name: &str) -> anyhow::Result<String> {
    env::var(format!("WASMCLOUD_{name}")).with_context(|| format!("WASMCLOUD_{name} is not set"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let url = Url::parse(&format!("nats://{}:{}", told("NATS_HOST")?, told("NATS_PORT")?))?;
    let (host, shutdown) = Box::pin(WasmbusHost::new(WasmbusHostConfig {
        ctl_nats_url: url.clone(),
        rpc_nats_url: url,
        lattice: told("LATTICE")?.into(),
        allow_file_load: told("ALLOW_FILE_LOAD")? == "true",
        oci_opts: OciConfig { allowed_insecure: Vec::from_iter(told("OCI_ALLOWED_INSECURE").ok()), ..Default::default() },
        secrets_topic_prefix: Some(told("SECRETS_TOPIC")?),
        provider_shutdown_delay: Some(Duration::from_millis(told("PROV_SHUTDOWN_DELAY_MS")?.parse()?)),
        ..Default::default()
    }))
    .await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
        stopped = host.stopped() => { stopped?; }
    }
    drop(host);
    timeout(Duration::from_secs(5), shutdown).await? // a call that hangs would hold it up for ever
}
