//! Damaged journals: never trusted, never thrown away, never a silent new beginning.

use super::*;
use crate::model::id::JournalId;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// A journal with some messages in it, as `kill -9` leaves it: a copy made while it is open.
async fn crashed() -> (tempfile::TempDir, JournalId) {
    let bed = Bed::new();
    let journal = bed.open();
    for seq in 1..=60 {
        take(&journal, vec![arrival(seq, &format!("m-{seq}"), queue("x"))]).await;
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["journal.db", "journal.db-wal", "journal.mark"] {
        fs::copy(bed.dir.path().join(name), copy.path().join(name)).unwrap();
    }
    (copy, journal.id())
}

fn open(folder: &Path) -> Opened {
    when_free(folder, "n1", None).unwrap()
}

fn aside(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("journal.db.damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm"))
        .count()
}

/// The journal is another one, what was there is kept beside it, and the new one knows why.
async fn replaced(folder: &Path, old: JournalId) -> String {
    let opened = open(folder);
    assert!(opened.is_new && opened.journal.id() != old);
    assert_eq!(opened.journal.position(StreamKind::Commands).await.unwrap(), None);
    opened.journal.meta::<String>(Key::Replaced).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_crash_is_no_damage() {
    let (folder, id) = crashed().await;
    let opened = open(folder.path());
    assert_eq!((opened.is_new, opened.journal.id()), (false, id));
    assert_eq!(opened.journal.position(StreamKind::Commands).await.unwrap().unwrap().last.seq, StreamSeq(60));
}

#[tokio::test]
async fn bytes_overwritten_in_the_middle() {
    let (folder, id) = crashed().await;
    drop(open(folder.path()));
    let path = folder.path().join("journal.db");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    // Its writer may still be closing.
    while folder.path().join("journal.db-wal").exists() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let size = fs::metadata(&path).unwrap().len();
    let mut file = File::options().write(true).open(&path).unwrap();
    for page in 2..size / 4096 {
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xa5; 1024]).unwrap();
    }
    let text = replaced(folder.path(), id).await;
    assert!(text.contains("damaged") && text.contains("journal.db.damaged-"), "{text}");
    assert_eq!(aside(folder.path()), 1);
}

#[tokio::test]
async fn a_header_that_is_gone_and_a_file_cut_short() {
    for keep in [0, 50, 5000] {
        let (folder, id) = crashed().await;
        let _ = fs::remove_file(folder.path().join("journal.db-wal"));
        File::options().write(true).open(folder.path().join("journal.db")).unwrap().set_len(keep).unwrap();
        replaced(folder.path(), id).await;
    }
    let (folder, id) = crashed().await;
    fs::write(folder.path().join("journal.db"), vec![0; 8192]).unwrap();
    fs::remove_file(folder.path().join("journal.db-wal")).unwrap();
    replaced(folder.path(), id).await;
}

#[tokio::test]
async fn a_log_that_was_cut_would_go_back_in_time() {
    let (folder, id) = crashed().await;
    let wal = folder.path().join("journal.db-wal");
    let size = fs::metadata(&wal).unwrap().len();
    File::options().write(true).open(&wal).unwrap().set_len(size / 2).unwrap();
    let text = replaced(folder.path(), id).await;
    assert!(text.contains("commits are gone"), "{text}");
    let (folder, id) = crashed().await;
    fs::remove_file(folder.path().join("journal.db-wal")).unwrap();
    replaced(folder.path(), id).await;
}

#[tokio::test]
async fn a_journal_that_is_gone_is_said_to_be() {
    let (folder, id) = crashed().await;
    fs::remove_file(folder.path().join("journal.db")).unwrap();
    fs::remove_file(folder.path().join("journal.db-wal")).unwrap();
    let text = replaced(folder.path(), id).await;
    assert!(text.contains("missing") && text.contains(&id.to_string()), "{text}");
}

#[tokio::test]
async fn what_a_running_agent_finds_counts_at_the_next_start() {
    let (folder, id) = crashed().await;
    let journal = open(folder.path()).journal;
    let failed: Result<(), _> =
        journal.writer.call(|_| Err(JournalError::Damaged("database disk image is malformed".to_owned()))).await;
    assert!(matches!(failed, Err(JournalError::Damaged(_))));
    let reason = journal.damaged().await;
    journal.note_damage(&reason);
    drop(journal);
    let opened = open(folder.path());
    assert!(opened.is_new && opened.journal.id() != id);
    assert_eq!(aside(folder.path()), 1);
    assert!(!folder.path().join("journal.damaged").exists(), "said once");
}

#[tokio::test]
async fn a_failing_disk_does_not_fill_itself_with_damaged_journals() {
    let (folder, _) = crashed().await;
    for day in 1..=6 {
        fs::write(folder.path().join(format!("journal.db.damaged-2020010{day}T00000")), "old").unwrap();
    }
    fs::write(folder.path().join("journal.db"), vec![0; 8192]).unwrap();
    fs::remove_file(folder.path().join("journal.db-wal")).unwrap();
    open(folder.path());
    assert_eq!(aside(folder.path()), 3);
}
