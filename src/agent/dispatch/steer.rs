//! What cancels and orders about processes do to what the dispatcher has in hand, once the journal has carried them out.
//!
//! Which processes are stopped is the journal's; what is here follows it. Never changes what is kept.

use super::Dispatcher;
use crate::journal::{Effect, Met, Obeyed};
use crate::killpoint::{Point, here};

impl Dispatcher {
    /// Stops and starts processes as the journal says.
    pub(super) async fn look_at_processes(&mut self) {
        match self.node.journal.stopped().await {
            Ok(stopped) => {
                let names: Vec<&str> = self.node.registry.names().collect();
                names.into_iter().for_each(|name| self.set_stopped(name, stopped.iter().any(|one| one == name)));
                self.node.wakes.beat.notify_one();
            }
            Err(error) => tracing::error!(%error, "which processes are stopped could not be read"),
        }
    }

    pub(super) fn set_stopped(&mut self, process: &str, stopped: bool) {
        if let Ok(method) = process.parse()
            && self.lanes.is_stopped(&method) != stopped
        {
            tracing::warn!(process, stopped, "process");
            self.lanes.set_stopped(&method, stopped);
        }
    }

    /// What follows from a cancel outside the journal.
    pub(super) fn met(&mut self, met: Met) {
        match met {
            Met::Ended { row, lane, next } => self.lanes.withdrawn(&lane, row, next),
            Met::ToStop { row, lane } => {
                if let Some((_, stop)) = self.stops.get(&lane).filter(|(running, _)| *running == row) {
                    stop.cancel();
                }
            }
            Met::GoesOn | Met::WasOver(_) => {}
        }
    }

    /// What follows from an order outside the journal; leaving comes last, since it only asks for it.
    pub(super) fn obey(&mut self, obeyed: Obeyed) {
        here(Point::Obeyed);
        obeyed.met.into_iter().for_each(|met| self.met(met));
        for effect in obeyed.effects {
            match effect {
                Effect::Stopped { name, .. } => self.set_stopped(&name, true),
                Effect::Started { name, .. } | Effect::Restarted { name, .. } => self.set_stopped(&name, false),
                Effect::Leaving => self.node.shutdown.cancel(),
                Effect::Granted | Effect::GoesOn | Effect::Impossible(_) => {}
            }
        }
        self.node.wakes.beat.notify_one();
    }
}
