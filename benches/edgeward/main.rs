//! `cargo bench`: edgeward against raw async-nats doing the same stream operations, in the same run.
//!
//! Prints one table, a row per question, as ratios: absolute times are those of the machine and of the moment. Owns the
//! order of things; `raw` is what is compared with, `rows` what is measured.
//!
//! `cargo bench --bench edgeward -- --quick` takes a tenth of the work, for trying out; words after it choose what is
//! measured: `ping`, `shell`, `lanes`, `events`, `reconnect`, `rest`, `isolation`, `runner`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that cannot measure ends")]

#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod raw;
mod rows;
mod stats;

use rows::{Bed, Row};

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let scale = if quick { 1 } else { 10 };
    // cargo adds an option of its own.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |what: &str| chosen.is_empty() || chosen.iter().any(|word| word == what);
    let mut table: Vec<Row> = Vec::new();
    if wants("runner") {
        table.push(rows::runner(100 * scale).await);
    }
    for sync_always in [true, false] {
        let mut bed = Bed::start(sync_always).await;
        if wants("ping") {
            table.extend(rows::ping(&bed, 100 * scale, sync_always).await);
        }
        if wants("shell") {
            table.extend(rows::shell(&bed, 50 * scale, sync_always).await);
        }
        if sync_always {
            continue;
        }
        if wants("lanes") {
            table.push(rows::shells_across_lanes(&bed, 200 * scale).await);
        }
        if wants("events") {
            table.push(rows::events(&mut bed, 10_000 * scale).await);
        }
        if wants("reconnect") {
            table.push(rows::reconnect(&mut bed, scale.min(5)).await);
        }
        if wants("rest") {
            table.extend(rows::at_rest(&mut bed).await);
        }
        if wants("isolation") {
            table.extend(rows::isolation(&mut bed, 10_000 * scale).await);
        }
    }
    println!("\n{:<58} {:>14} {:>14} {:>8}  {:<10} met", "what", "edgeward", "compared with", "ratio", "bound");
    for row in &table {
        println!("{row}");
    }
    if table.iter().any(|row| !row.is_met()) {
        println!("\nnot every bound was met on this machine at this moment");
    }
}
