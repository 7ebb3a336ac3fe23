//! The `edgeward` binary: runtime, TLS provider and log, then the command line.

use edgeward::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    cli::log::init(cli.default_log());
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
