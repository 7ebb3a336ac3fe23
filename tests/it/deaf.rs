//! Brokers that are not there as they should be, played by a small server: one of a cluster that has no leader and leaves
//! requests unanswered, and one that is too old.

use crate::harness::Cli;
use std::collections::HashMap;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const CLUSTERED: &str = r#""version":"2.15.1","cluster":"c""#;
const API: &str = "fleet.api.INFO";
const OWN_API: &str = "$JS.API.INFO";

/// Speaks as much of the client protocol as a request needs, for one connection. The first question to the imported API is
/// left without an answer; the account's own API is denied, as to an operator.
async fn serve(stream: TcpStream, about: &str) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let info = format!(r#"INFO {{"server_id":"A","proto":1,"headers":true,"max_payload":1048576,{about}}}"#);
    write.write_all(format!("{info}\r\n").as_bytes()).await?;
    let (mut inboxes, mut asked) = (HashMap::new(), 0);
    let mut line = String::new();
    while lines.read_line(&mut line).await? > 0 {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        line.clear();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["PING"] => write.write_all(b"PONG\r\n").await?,
            ["SUB", inbox, sid] => drop(inboxes.insert(inbox.trim_end_matches('*').to_owned(), sid.to_owned())),
            ["PUB", subject, reply, size] => {
                let mut body = vec![0; size.parse::<usize>().unwrap() + 2];
                lines.read_exact(&mut body).await?;
                let sid = inboxes.iter().find(|(inbox, _)| reply.starts_with(inbox.as_str())).map(|(_, sid)| sid);
                asked += usize::from(subject == API);
                let answer = match (subject, sid) {
                    (API, Some(sid)) if asked > 1 => format!("MSG {reply} {sid} 2\r\n{{}}\r\n"),
                    (OWN_API, _) => format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'\r\n"),
                    (API, _) => continue,
                    (_, Some(sid)) => {
                        let body = format!(r#"{{"error":{{"err_code":10059,"description":"asked {subject}"}}}}"#);
                        format!("MSG {reply} {sid} {}\r\n{body}\r\n", body.len())
                    }
                    (_, None) => continue,
                };
                write.write_all(answer.as_bytes()).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A broker that says this of itself.
async fn broker(about: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, about));
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_api_is_looked_for_until_the_cluster_has_a_leader() {
    let cli = Cli::edgeward(&broker(CLUSTERED).await).env("EDGEWARD_NKEY", &crate::accounts::key("ops"));
    let said = cli.run(&["nodes", "--from", "ops"]).await;
    assert!(
        said.stderr.contains("asked fleet.api.STREAM.INFO.KV_FLEET_NODES"),
        "not the API of another account: {said:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_too_old_is_named_with_what_to_do() {
    let cli = Cli::edgeward(&broker(r#""version":"2.12.8""#).await);
    for verb in [&["nodes"][..], &["run", "ship1", "true"], &["hub"], &["init"]] {
        let said = cli.run(verb).await;
        let wanted = "the broker is nats-server 2.12.8; edgeward needs 2.14 or newer: upgrade nats-server";
        assert!(said.stderr.contains(wanted), "{verb:?}: {said:#?}");
    }
}
