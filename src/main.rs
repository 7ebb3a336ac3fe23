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
    // One thread serves best: nothing here computes for long, what blocks has threads of its own (the journal, files), and
    // commands are another process's. More threads cost an agent memory, and each message the way between them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(cli.run()).code()),
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
