//! Odd places to run in: a wall clock that can be stepped.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wall clock of one agent: a preloaded library that adds an offset.
pub struct Clock {
    offset: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// Builds the library in `folder` and gives `name` a clock with it.
    pub fn build(folder: &Path, name: &str) -> Result<Clock, String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.c");
        let library = folder.join("clock.so");
        if !library.exists() {
            let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output();
            let built = built.map_err(|e| format!("cc: {e}"))?;
            if !built.status.success() {
                return Err(String::from_utf8_lossy(&built.stderr).into_owned());
            }
        }
        let clock = Clock { offset: folder.join(format!("{name}.offset")), library };
        clock.write(0).map_err(|e| e.to_string())?;
        Ok(clock)
    }

    /// What a process has to have in its environment.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("WALL_CLOCK_OFFSET", self.offset.display().to_string())]
    }

    /// Sets it so many seconds off.
    pub fn set(&self, seconds: i64) {
        self.write(seconds).unwrap();
    }

    fn write(&self, seconds: i64) -> io::Result<()> {
        // In place: whoever has mapped the file sees it at once.
        File::options().write(true).create(true).truncate(false).open(&self.offset)?.write_all(&seconds.to_ne_bytes())
    }
}
