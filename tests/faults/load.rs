//! The load: which messages are sent, by whom and when, and the sending of them.
//!
//! Owns the scripts: each writes one line into its node's file at its start and one at its end, and prints what the
//! second says. Sending goes on until the broker says that a message is stored.

use super::dice::Dice;
use super::groups;
use super::history::{At, Expect, Sent, Stream};
use super::options::Options;
use edgeward::broker::{Broker, Outgoing, PublishError};
use edgeward::model::header::RawHeaders;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Who sends from outside.
pub const OPERATORS: [&str; 3] = ["ops1", "ops2", "ops3"];

/// How long one publish is waited for.
const PUBLISH: Duration = Duration::from_secs(4);

/// What the shell gets as an argument at most.
const ARGUMENT: usize = 100 * 1024;

/// A message to be sent.
#[derive(Debug, Clone)]
pub struct Planned {
    pub when: Duration,
    pub sent: Sent,
    pub subject: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The same for `inmsg.txt`, where a node sends it.
    pub in_file: Option<Value>,
    /// It is published again with the same `Nats-Msg-Id`.
    pub repeated: bool,
}

/// Everything that is sent in a run, by sender, in order of time.
pub fn plan(options: &Options, files: &dyn Fn(&str) -> String) -> Vec<Planned> {
    let mut dice = Dice::new(options.seed, "load");
    let mut cancels = Dice::new(options.seed, "cancels");
    let nodes = options.node_names();
    let span = u64::try_from(options.duration().as_millis()).unwrap_or(u64::MAX);
    let mut planned: Vec<Planned> = (0..options.messages)
        .flat_map(|number| {
            // Half of them come in bursts, so that work piles up.
            let when = dice.next() % span;
            let when = if dice.percent(50) { when / 3000 * 3000 } else { when };
            let mut planned = message(&mut dice, number, Duration::from_millis(when), &nodes, files);
            if options.disk_full {
                // A script that goes to the shell as a file fails on a full disk, and says so.
                planned.body.truncate(ARGUMENT);
            }
            let cancel = cancel(&mut cancels, 7, &planned);
            [Some(planned), cancel].into_iter().flatten()
        })
        .collect();
    planned.extend(groups::plan(options, files));
    planned.sort_by_key(|one| one.when);
    planned
}

fn message(
    dice: &mut Dice,
    number: usize,
    when: Duration,
    nodes: &[String],
    files: &dyn Fn(&str) -> String,
) -> Planned {
    let id = format!("m{number:06}");
    let to = dice.pick(nodes);
    match dice.below(100) {
        0..4 => malformed(dice, id, when, &to),
        4..24 => event(dice, id, when, &to),
        24..30 => from_node(dice, id, when, nodes, &to, &files(&to)),
        _ => command(dice, id, when, &to, &files(&to)),
    }
}

/// One that is to end well at its first try.
pub fn sent(id: String, from: &str, to: &str) -> Sent {
    Sent {
        id,
        from: from.to_owned(),
        to: to.to_owned(),
        expect: Expect::Success,
        retries: 0,
        rerun: false,
        cancels: None,
        extra_output: 0,
        copies: 1,
        confirmed: Vec::new(),
        taken_from_file: false,
    }
}

fn base(id: String, from: &str, to: &str, when: Duration, subject: String) -> Planned {
    let sent = sent(id.clone(), from, to);
    let headers = vec![("Fleet-Id", id)];
    Planned { when, sent, subject, headers, body: Vec::new(), in_file: None, repeated: false }
}

fn lane(dice: &mut Dice) -> &'static str {
    dice.pick(&["", "", ".a", ".b", ".c"])
}

pub fn event(dice: &mut Dice, id: String, when: Duration, to: &str) -> Planned {
    let from = dice.pick(&OPERATORS);
    let subject = format!("fleet.msg.{to}.event.{from}.log{}", lane(dice));
    let mut planned = base(id, from, to, when, subject);
    planned.sent.rerun = true;
    let size = if dice.percent(5) { 20_000 } else { 40 };
    planned.body = "all quiet on deck; ".repeat(size / 19).into_bytes();
    copies(dice, &mut planned);
    planned
}

/// What a script does beside its two lines.
fn script(id: &str, file: &str, before_end: &str, after: &str) -> String {
    format!(
        "printf 's {id} %s %s\\n' \"$EDGEWARD_MSG_ATTEMPT\" $$ >> {file}\n{before_end}\n\
         printf 'e {id} %s %s\\n' \"$EDGEWARD_MSG_ATTEMPT\" $$ >> {file}\n\
         echo \"{id} $EDGEWARD_MSG_ATTEMPT $$\"\n{after}\n"
    )
}

fn pause(dice: &mut Dice) -> &'static str {
    dice.pick(&["", "", "", "", "", "", "sleep 0.05", "sleep 0.2", "sleep 0.6", "sleep 1.4"])
}

pub fn command(dice: &mut Dice, id: String, when: Duration, to: &str, file: &str) -> Planned {
    let from = dice.pick(&OPERATORS);
    let subject = format!("fleet.msg.{to}.command.{from}.shell{}", lane(dice));
    let mut planned = base(id.clone(), from, to, when, subject);
    let (sent, headers) = (&mut planned.sent, &mut planned.headers);
    let wait = pause(dice);
    let text = match dice.below(100) {
        0..6 => {
            sent.expect = Expect::Exit(3);
            script(&id, file, wait, "exit 3")
        }
        6..12 => {
            (sent.expect, sent.retries) = (Expect::SuccessAt(2), 2);
            headers.extend([("Fleet-Retries", "2".to_owned()), ("Fleet-Retry-Wait", "200ms".to_owned())]);
            script(&id, file, wait, "[ \"$EDGEWARD_MSG_ATTEMPT\" -ge 2 ] || exit 4")
        }
        12..15 => {
            (sent.expect, sent.retries) = (Expect::Exit(5), 1);
            headers.extend([("Fleet-Retries", "1".to_owned()), ("Fleet-Retry-Wait", "100ms".to_owned())]);
            script(&id, file, wait, "exit 5")
        }
        15..27 => {
            sent.rerun = true;
            headers.push(("Fleet-On-Crash", "rerun".to_owned()));
            script(&id, file, wait, "")
        }
        27..31 => {
            sent.expect = Expect::Timeout;
            headers.push(("Fleet-Timeout", "400ms".to_owned()));
            script(&id, file, "sleep 30", "")
        }
        31..34 => {
            sent.expect = Expect::StartBy;
            headers.push(("Fleet-Start-By", "1s".to_owned()));
            script(&id, file, wait, "")
        }
        34..38 => {
            sent.extra_output = 50_000;
            script(&id, file, wait, "head -c 50000 /dev/zero | tr '\\0' x")
        }
        38..44 => script(&id, file, wait, "") + &padding(dice, 17_000, 60_000),
        // More than an argument may hold.
        44..45 => script(&id, file, wait, "") + &padding(dice, 110_000, 150_000),
        _ => script(&id, file, wait, ""),
    };
    planned.body = text.into_bytes();
    copies(dice, &mut planned);
    planned
}

fn padding(dice: &mut Dice, from: usize, to: usize) -> String {
    let size = from + dice.below(to - from);
    format!("# {}\n", "the quick brown fox ".repeat(size / 20))
}

/// So many of a hundred are cancelled by their sender, those of a node by an operator: before they are there, while they
/// wait or run, or too late.
pub fn cancel(dice: &mut Dice, percent: usize, planned: &Planned) -> Option<Planned> {
    let Sent { id, from, to, expect, .. } = &planned.sent;
    if matches!(expect, Expect::Refused(_) | Expect::NoNode) || !dice.percent(percent) {
        return None;
    }
    let when = if dice.percent(15) {
        planned.when.saturating_sub(dice.millis(0, 600))
    } else {
        planned.when + dice.millis(0, 1500)
    };
    let by = if planned.in_file.is_some() { OPERATORS[0] } else { from };
    let subject = format!("fleet.msg.{to}.control.{by}.cancel");
    let letter = if to.starts_with('@') { 'y' } else { 'x' };
    let mut cancel = base(format!("{letter}{}", &id[1..]), by, to, when, subject);
    let named = if by == from { json!({ "id": id }) } else { json!({ "id": id, "from": from }) };
    cancel.body = named.to_string().into_bytes();
    cancel.sent.cancels = Some((from.clone(), id.clone()));
    Some(cancel)
}

/// Some are stored twice under one id, some are published twice and stored once.
fn copies(dice: &mut Dice, planned: &mut Planned) {
    match dice.below(100) {
        0..3 => planned.sent.copies = 2,
        3..6 => planned.repeated = true,
        _ => {}
    }
}

fn from_node(dice: &mut Dice, id: String, when: Duration, nodes: &[String], to: &str, file: &str) -> Planned {
    let from = dice.pick(nodes);
    let mut planned = base(id.clone(), &from, to, when, String::new());
    let body = script(&id, file, pause(dice), "");
    planned.in_file = Some(json!({ "to": to, "kind": "command", "method": "shell", "body": body, "id": id }));
    planned
}

fn malformed(dice: &mut Dice, id: String, when: Duration, to: &str) -> Planned {
    let from = dice.pick(&OPERATORS);
    let subject = |kind: &str, rest: &str| format!("fleet.msg.{to}.{kind}.{from}.{rest}");
    let shell = subject("command", "shell");
    let (subject, header, body, expect) = match dice.below(9) {
        0 => (shell, Some(("Fleet-Timeout", "soon")), "true", Expect::Refused("bad_header")),
        1 => (shell, Some(("Fleet-Colour", "blue")), "true", Expect::Refused("bad_header")),
        2 => (shell, None, "", Expect::Refused("bad_body")),
        3 => (shell, None, "echo \0", Expect::Refused("bad_body")),
        4 => (subject("command", "dance"), None, "x", Expect::Refused("unknown_method")),
        5 => (subject("command", "log"), None, "x", Expect::Refused("wrong_kind")),
        6 => (subject("command", "shell.a.b"), None, "true", Expect::Refused("bad_subject")),
        7 => (shell, Some(("Fleet-Kind", "event")), "true", Expect::Refused("bad_header")),
        _ => (format!("fleet.msg.@nosuch.command.{from}.shell"), None, "true", Expect::NoNode),
    };
    let mut planned = base(id, from, to, when, subject);
    planned.headers.extend(header.map(|(name, value)| (name, value.to_owned())));
    planned.body = body.as_bytes().to_vec();
    planned.sent.expect = expect;
    planned
}

/// What senders have done so far.
pub type Ledger = Arc<Mutex<Vec<Sent>>>;

/// Sends an operator's messages, each at its time or as soon after it as the broker lets it.
pub async fn operate(broker: Broker, mine: Vec<Planned>, start: Instant, give_up: Instant, ledger: Ledger) {
    for planned in mine {
        sleep_until(start + planned.when).await;
        let mut sent = planned.sent.clone();
        for copy in 0..sent.copies {
            let msg_id = format!("{}.{}.{}.{copy}", sent.from, sent.id, sent.to);
            let mut headers = RawHeaders::default().with("Nats-Msg-Id", msg_id);
            planned.headers.iter().for_each(|(name, value)| headers.push(name, value.clone()));
            let message = Outgoing { subject: planned.subject.clone(), headers, body: planned.body.clone().into() };
            for _ in 0..=usize::from(planned.repeated) {
                let Some(at) = publish(&broker, &message, give_up).await else { break };
                sent.confirmed.push(at);
            }
        }
        ledger.lock().unwrap().push(sent);
    }
}

/// Publishes until the broker says that it is stored.
pub async fn publish(broker: &Broker, message: &Outgoing, give_up: Instant) -> Option<At> {
    while Instant::now() < give_up {
        match broker.publish(message, PUBLISH).await {
            Ok(stored) => {
                let stream = if stored.stream.ends_with("EVENTS") { Stream::Events } else { Stream::Commands };
                return Some(At::new(stream, stored.seq.0));
            }
            Err(error @ (PublishError::TooLarge { .. } | PublishError::Unsendable(_))) => {
                panic!("{}: {error}", message.subject)
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
    None
}

/// Writes a node's messages into its `inmsg.txt`, some in one file, each file once the one before is taken.
pub async fn write_files(state: &Path, mine: Vec<Planned>, start: Instant, give_up: Instant, ledger: Ledger) {
    const LOOK: Duration = Duration::from_millis(100);
    let mut rest = mine.as_slice();
    while let Some(first) = rest.first() {
        sleep_until(start + first.when).await;
        let count = rest.iter().take(3).filter(|one| one.when <= start.elapsed()).count().max(1);
        let (now, later) = rest.split_at(count);
        while !is_free(state) && Instant::now() < give_up {
            sleep(LOOK).await;
        }
        let text = Value::from(now.iter().filter_map(|one| one.in_file.clone()).collect::<Vec<_>>()).to_string();
        // What is renamed into place is never half there.
        let fresh = state.join("inmsg.fresh");
        if fs::write(&fresh, text).is_ok() && fs::rename(&fresh, state.join("inmsg.txt")).is_ok() {
            ledger.lock().unwrap().extend(now.iter().map(|one| Sent { taken_from_file: true, ..one.sent.clone() }));
            rest = later;
        } else {
            // A full disk.
            sleep(LOOK).await;
        }
        if Instant::now() >= give_up {
            return;
        }
    }
}

/// True where the last file has been taken.
pub fn is_free(state: &Path) -> bool {
    state.exists() && !state.join("inmsg.txt").exists() && !state.join("inmsg.claimed").exists()
}
