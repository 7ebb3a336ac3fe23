//! Records as they are written and read.

use super::*;
use crate::model::message::StreamKind;
use proptest::prelude::*;

fn bare() -> Record {
    let at = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(7), stored_at: Timestamp::from_nanos(9) };
    Record::bare(MessageId::derived(at.stream, at.seq), at, "FLEET_COMMANDS".into(), "n1", State::Running, By::Node)
}

#[test]
fn small_output_is_whole_and_large_output_keeps_head_and_tail() {
    let outcome = Outcome { stdout: Output::whole(&b"hi\n"[..]), ..Outcome::succeeded() };
    let record: Record = serde_json::from_slice(&bare().encode_with(&outcome, 1 << 20)).unwrap();
    assert_eq!((record.stdout.as_deref(), record.truncated), (Some("hi\n"), false));

    let big = Output { head: vec![b'a'; 8192], tail: vec![b'z'; 8192], total: 1_000_000 };
    let outcome = Outcome { stdout: big, ..Outcome::succeeded() };
    let record: Record = serde_json::from_slice(&bare().encode_with(&outcome, 1 << 20)).unwrap();
    let text = record.stdout.unwrap();
    assert!(text.starts_with("aaa") && text.ends_with("zzz") && text.contains("983616 bytes left out"), "{text}");
    assert!(record.truncated && record.stdout_bytes == 1_000_000);
}

#[test]
fn output_that_is_not_text_comes_back_to_the_byte() {
    let outcome = Outcome { stderr: Output::whole(vec![0xff, 0, 1]), ..Outcome::succeeded() };
    let record: Record = serde_json::from_slice(&bare().encode_with(&outcome, 1 << 20)).unwrap();
    assert_eq!(record.stderr_bytes_inline(), vec![0xff, 0, 1]);
    assert_eq!(record.stderr, None);
}

#[test]
fn fields_of_a_newer_release_are_ignored() {
    let mut value = serde_json::to_value(bare()).unwrap();
    value["mood"] = "good".into();
    assert_eq!(serde_json::from_value::<Record>(value).unwrap(), bare());
}

proptest! {
    /// Sizes are of the encoded record: control characters are six times as long in JSON.
    #[test]
    fn an_encoded_record_fits(
        head in proptest::collection::vec(any::<u8>(), 0..9000),
        tail in proptest::collection::vec(0u8..32, 0..9000),
        limit in 4096usize..60_000,
    ) {
        let total = (head.len() + tail.len()) as u64;
        let outcome = Outcome { stdout: Output { head, tail, total }, ..Outcome::succeeded() };
        let encoded = bare().encode_with(&outcome, limit);
        prop_assert!(encoded.len() <= limit, "{} > {}", encoded.len(), limit);
        prop_assert!(serde_json::from_slice::<Record>(&encoded).is_ok());
    }

    #[test]
    fn a_cut_never_makes_text_binary(text in "[aé€😀]{0,4000}", keep in 0usize..5000) {
        let (inline, base64) = Output::whole(text).inline(keep);
        prop_assert!(inline.is_some() && base64.is_none());
    }
}
