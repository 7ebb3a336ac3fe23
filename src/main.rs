//! The `edgeward` binary: runtime, TLS provider and log, then the command line.

use edgeward::cli;
use std::process::ExitCode;
use std::time::Duration;

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(Duration::MAX).build();
    match runtime {
        Ok(runtime) => {
            // There is one from now on: tokio panics where it needs a thread for what blocks, has none, and the system gives
            // it none, because a command has started too many, say.
            runtime.spawn_blocking(|| {});
            ExitCode::from(runtime.block_on(cli.run()).code())
        }
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
