//! Running a helper program (pip, curl, go, …) to its end, with a deadline, from blocking code.
//!
//! The end of the helper is what is waited for, not the end of its output: a grandchild that was left
//! behind with the pipes cannot keep us. The helper stays in our process group, so that Ctrl-C ends it
//! together with us.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running helper is looked at. There is no portable wait with a deadline.
const POLL: Duration = Duration::from_millis(20);
/// What is kept of a helper's output: enough for a JSON answer or the end of an error.
const OUTPUT_KEPT: usize = 64 * 1024;
/// How long the pipes of a helper that has ended may stay open before its output is given up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a helper program brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not on this machine.
    #[error("`{0}` is not installed")]
    Missing(String),
    /// It ended with a failure; the last line that it printed to stderr is told.
    #[error("`{program}` failed ({status}): {said}")]
    Failed {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// It did not end in time and was killed.
    #[error("`{program}` did not end within {} s", .limit.as_secs())]
    TimedOut {
        /// The program's name.
        program: String,
        /// The time it had.
        limit: Duration,
    },
    /// It could not be started or followed.
    #[error("`{program}` could not be run")]
    Io {
        /// The program's name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Runs `command` for at most `limit` and returns its stdout.
pub fn output(command: &mut Command, limit: Duration) -> Result<String, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CommandError::Missing(program.clone()),
        _ => CommandError::Io { program: program.clone(), source },
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io)?;
    let stdout = child.stdout.take().map(follow);
    let stderr = child.stderr.take().map(follow);
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(io)? {
            break status;
        }
        if Instant::now() >= end {
            child.kill().map_err(io)?;
            child.wait().map_err(io)?;
            return Err(CommandError::TimedOut { program, limit });
        }
        thread::sleep(POLL);
    };
    let text = |reader: Option<Receiver<String>>| {
        reader.and_then(|reader| reader.recv_timeout(LAST_WORDS).ok()).unwrap_or_default()
    };
    let (said, complaint) = (text(stdout), text(stderr));
    if status.success() {
        return Ok(said);
    }
    let lines = complaint.lines().chain(said.lines());
    let last = lines.map(str::trim).rfind(|line| line.len() > 1).unwrap_or("it said nothing");
    Err(CommandError::Failed { said: last.to_owned(), program, status })
}

/// Reads a pipe to its end on a thread of its own, so that the helper never blocks on it.
fn follow(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut chunk = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            kept.extend_from_slice(&chunk[..count]);
            let surplus = kept.len().saturating_sub(OUTPUT_KEPT);
            kept.drain(..surplus);
        }
        // Nobody listens any more when the helper was killed.
        let _ = sender.send(String::from_utf8_lossy(&kept).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, CommandError> {
        output(Command::new("/bin/sh").args(["-c", script]), limit)
    }

    #[test]
    fn returns_stdout_and_tells_the_last_words_of_a_failure() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("echo out; echo err >&2", long).unwrap(), "out\n");
        let error = sh("echo first >&2; echo last >&2; exit 3", long).unwrap_err().to_string();
        assert!(error.ends_with("3): last"), "{error}");
    }

    #[test]
    fn keeps_the_end_of_much_output_and_does_not_wait_for_grandchildren() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; sleep 30 >/dev/null 2>&1 &";
        let text = sh(script, Duration::from_secs(20)).unwrap();
        assert!(text.len() <= OUTPUT_KEPT && text.ends_with("line 19999\n"), "{} bytes", text.len());
    }

    #[test]
    fn kills_what_does_not_end_and_names_what_is_missing() {
        let before = Instant::now();
        let error = sh("exec sleep 30", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(before.elapsed() < Duration::from_secs(20));
        let error = output(&mut Command::new("no-such-program"), POLL).unwrap_err();
        assert_eq!(error.to_string(), "`no-such-program` is not installed");
    }
}
