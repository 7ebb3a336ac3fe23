//! Frames between agent and runner: four bytes of length, big endian, then one JSON object that names what it is.
//!
//! Owns how a run, its bounds and its end read there. Unknown fields are ignored and an unknown frame is passed over, so
//! that an agent can adopt from a runner of another build; what is added later must have a default.

use super::super::{Captured, Cut, Exit, How, Limits, Spec, Stdin};
use super::RunName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol that this build speaks; raised where an older one could not even pass over what is new.
pub(super) const VERSION: u32 = 1;

/// The longest frame. A body is at most what the broker takes (64 MiB), each byte at most six of JSON.
const LONGEST: u32 = 512 << 20;

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(super) enum Ask {
    /// An agent is there, as long as this connection is. `env`: what its commands start from.
    Hello { v: u32, env: Vec<(Raw, Raw)> },
    /// Start it, or tell of it; without a spec only tell.
    Start { run: RunName, spec: Option<SpecFrame>, limits: LimitsFrame },
    /// End it, as a timeout would.
    Stop { run: RunName },
    /// No other agent follows: do not wait for one once nothing runs.
    Leave,
    /// Nobody wants it: end it and take its file away.
    Discard { run: RunName },
    /// A frame of a later build.
    #[serde(other)]
    Unknown,
}

/// From the runner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub(super) enum Tell {
    /// The answer to `hello`: what runs.
    Hello { v: u32, runs: Vec<RunName> },
    /// It runs, as this process.
    Started { pid: u32, start_time: u64 },
    /// It is over.
    Ended { exit: ExitFrame },
    /// It could not be started; nothing ran. `no_room`: the disk is full, and it may be asked for again.
    Failed {
        error: String,
        #[serde(default)]
        no_room: bool,
    },
    /// It began, and a runner died with it: how it ended nobody knows.
    Lost,
    /// It never began.
    Absent,
    /// A frame of a later build.
    #[serde(other)]
    Unknown,
}

/// Sends one frame.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= LONGEST);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    to.write_all(&bytes).await
}

/// The next frame, none at the end of the connection. Bytes are lost where it is dropped before it is done.
pub(super) async fn next<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length);
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
    }
    let mut bytes = Vec::new();
    // Room is made as the bytes come.
    if from.take(length.into()).read_to_end(&mut bytes).await? < length as usize {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Any bytes as a JSON text: each byte the character of its number. ASCII stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Raw(pub(super) Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if text.is_ascii() => serializer.serialize_str(text),
            _ => serializer.collect_str(&self.0.iter().map(|byte| char::from(*byte)).collect::<String>()),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_ascii() {
            return Ok(Self(text.into_bytes()));
        }
        let byte = |c: char| u8::try_from(c).map_err(|_| serde::de::Error::custom("a character that is no byte"));
        text.chars().map(byte).collect::<Result<_, _>>().map(Self)
    }
}

impl From<&OsString> for Raw {
    fn from(text: &OsString) -> Raw {
        Raw(text.as_bytes().to_vec())
    }
}

impl From<Raw> for OsString {
    fn from(raw: Raw) -> OsString {
        OsString::from_vec(raw.0)
    }
}

/// Variables as frames hold them.
pub(super) fn pairs(env: &[(OsString, OsString)]) -> Vec<(Raw, Raw)> {
    env.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Variables as they are set.
pub(super) fn variables(env: Vec<(Raw, Raw)>) -> Vec<(OsString, OsString)> {
    env.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// A [`Spec`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SpecFrame {
    program: Raw,
    args: Vec<Raw>,
    cwd: Option<Raw>,
    env: Vec<(Raw, Raw)>,
    stdin: Option<Raw>,
    user: Option<String>,
}

impl From<&Spec> for SpecFrame {
    fn from(spec: &Spec) -> SpecFrame {
        SpecFrame {
            program: (&spec.program).into(),
            args: spec.args.iter().map(Raw::from).collect(),
            cwd: spec.cwd.as_ref().map(|cwd| Raw(cwd.as_os_str().as_bytes().to_vec())),
            env: pairs(&spec.env),
            stdin: match &spec.stdin {
                Stdin::Null => None,
                Stdin::Bytes(bytes) => Some(Raw(bytes.to_vec())),
            },
            user: spec.user.clone(),
        }
    }
}

impl SpecFrame {
    /// What to run, from this environment.
    pub(super) fn into_spec(self, base: Arc<Vec<(OsString, OsString)>>) -> Spec {
        Spec {
            program: self.program.into(),
            args: self.args.into_iter().map(OsString::from).collect(),
            cwd: self.cwd.map(|cwd| OsString::from(cwd).into()),
            env: variables(self.env),
            base: Some(base),
            stdin: self.stdin.map_or(Stdin::Null, |raw| Stdin::Bytes(raw.0.into())),
            user: self.user,
        }
    }
}

/// [`Limits`]; times in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct LimitsFrame {
    timeout: u64,
    grace: u64,
    drain: u64,
    keep: usize,
    file: u64,
    kill_left: bool,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Limits> for LimitsFrame {
    fn from(limits: &Limits) -> LimitsFrame {
        let Limits { timeout, grace, drain, keep, file, kill_left } = *limits;
        LimitsFrame { timeout: millis(timeout), grace: millis(grace), drain: millis(drain), keep, file, kill_left }
    }
}

impl From<LimitsFrame> for Limits {
    fn from(frame: LimitsFrame) -> Limits {
        let LimitsFrame { timeout, grace, drain, keep, file, kill_left } = frame;
        let time = Duration::from_millis;
        Limits { timeout: time(timeout), grace: time(grace), drain: time(drain), keep, file, kill_left }
    }
}

/// An [`Exit`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ExitFrame {
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// `timed_out` or `stopped`.
    ended_by: Option<CutFrame>,
    stdout: CapturedFrame,
    stderr: CapturedFrame,
    left_running: bool,
    #[serde(default)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CutFrame {
    TimedOut,
    Stopped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct CapturedFrame {
    head: Raw,
    tail: Raw,
    total: u64,
    sha256: Raw,
}

impl From<&Captured> for CapturedFrame {
    fn from(captured: &Captured) -> CapturedFrame {
        CapturedFrame {
            head: Raw(captured.head().to_vec()),
            tail: Raw(captured.tail().to_vec()),
            total: captured.total,
            sha256: Raw(captured.sha256.to_vec()),
        }
    }
}

impl From<CapturedFrame> for Captured {
    fn from(frame: CapturedFrame) -> Captured {
        let sha256 = <[u8; 32]>::try_from(frame.sha256.0).unwrap_or_default();
        Captured::from_parts(frame.head.0, frame.tail.0, frame.total, sha256)
    }
}

impl From<&Exit> for ExitFrame {
    fn from(exit: &Exit) -> ExitFrame {
        let (exit_code, signal) = match exit.how {
            How::Exited(code) => (Some(code), None),
            How::Signalled(signal) => (None, Some(signal)),
            How::Unknown => (None, None),
        };
        let ended_by = exit.ended_by.map(|cut| match cut {
            Cut::TimedOut => CutFrame::TimedOut,
            Cut::Stopped => CutFrame::Stopped,
        });
        ExitFrame {
            exit_code,
            signal,
            ended_by,
            stdout: (&exit.stdout).into(),
            stderr: (&exit.stderr).into(),
            left_running: exit.left_running,
            seconds: exit.took.as_secs_f64(),
        }
    }
}

impl From<ExitFrame> for Exit {
    fn from(frame: ExitFrame) -> Exit {
        let how = match (frame.exit_code, frame.signal) {
            (Some(code), _) => How::Exited(code),
            (None, Some(signal)) => How::Signalled(signal),
            (None, None) => How::Unknown,
        };
        let ended_by = frame.ended_by.map(|cut| match cut {
            CutFrame::TimedOut => Cut::TimedOut,
            CutFrame::Stopped => Cut::Stopped,
        });
        Exit {
            how,
            ended_by,
            stdout: frame.stdout.into(),
            stderr: frame.stderr.into(),
            left_running: frame.left_running,
            took: Duration::try_from_secs_f64(frame.seconds).unwrap_or_default(),
        }
    }
}
