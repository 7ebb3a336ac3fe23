//! Ties the life of a child to the life of this process, also when this process is killed with -9.
//!
//! The child is started through `/bin/sh`, which forks a watcher and then *becomes* the child by
//! `exec`, so the child's pid, exit status and signals are its own. The watcher holds the reading end of
//! a pipe; the only writing end is in this process and is not inherited by anything else. When this
//! process ends, however it ends, the kernel closes that end, the watcher reads end-of-file and ends the
//! child: INT, five seconds, KILL. When the child was seen to end first, a line is written, which
//! sends the watcher away, so that it never signals a pid that by then is somebody else's.
//!
//! Both live in a process group of their own: a Ctrl-C in the terminal reaches this process alone, which
//! then stops the child in its own time. `PR_SET_PDEATHSIG` would do this without a watcher, but it has
//! to be set between fork and exec, which needs unsafe code, and follows the thread, not the process.
//!
//! The lock file of the child's folder is handed on as its stdin. The lock belongs to the open file, so
//! it is held exactly as long as the child lives, and no longer than that if this process dies first.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// stdin is the pipe, stdout the log, stderr the lock file; `$@` the child.
const SCRIPT: &str = r#"
exec 3<&0 4>&2 2>&1
(
  exec 0<&3 3<&- 4>&- 2>/dev/null
  trap '' HUP INT QUIT TERM
  read -r seen && exit 0
  kill -INT $$
  tries=0
  while [ $tries -lt 5 ] && kill -0 $$; do sleep 1; tries=$((tries + 1)); done
  kill -KILL $$
) &
exec "$@" 0<&4 3<&- 4>&-
"#;

/// The writing end of the watcher's pipe. Dropped while armed, it ends the child.
#[derive(Debug)]
pub struct Guard(PipeWriter);

impl Guard {
    /// Sends the watcher away: the child has ended, or has been killed.
    pub fn disarm(mut self) {
        // A failure means that the watcher is gone already.
        let _ = self.0.write_all(b"\n");
    }
}

/// Starts `binary` with `args`, its output appended to `log`, holding `lock` while it lives.
pub fn spawn(binary: &Path, args: &[String], log: File, lock: File) -> io::Result<(Child, Guard)> {
    let (reader, writer) = io::pipe()?;
    let child = Command::new("/bin/sh")
        .args(["-c", SCRIPT, "sh"])
        .arg(binary)
        .args(args)
        .stdin(Stdio::from(reader))
        .stdout(log)
        .stderr(lock)
        .process_group(0)
        .spawn()?;
    Ok((child, Guard(writer)))
}
