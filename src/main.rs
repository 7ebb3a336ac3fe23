//! The `edgeward` binary: runtime, TLS provider and log, then the command line.

use edgeward::cli;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    let filter = EnvFilter::try_from_env("EDGEWARD_LOG").unwrap_or_else(|_| EnvFilter::new(cli.default_log()));
    // In a log file or the journal, colours are noise.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    // It fails only where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = if cli.needs_one_thread() {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        // Two workers: one may be busy with a large message while the other keeps the connection alive.
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    };
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(cli.run()).code()),
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
