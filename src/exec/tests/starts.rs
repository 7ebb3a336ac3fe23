//! What a run starts with, and what cannot start.

use super::*;

#[tokio::test]
async fn stdin_is_written_while_output_is_read() {
    let bytes = Bytes::from(vec![b'x'; 4 << 20]);
    let spec = Spec { program: "cat".into(), stdin: Stdin::Bytes(bytes.clone()), ..Spec::default() };
    let exit = within(30, run_with(&spec, LIMITS)).await;
    assert_eq!(exit.how, How::Exited(0));
    assert_eq!(exit.stdout.total, 4 << 20);
    assert_eq!(exit.stdout.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
}

#[tokio::test]
async fn stdin_may_be_empty_or_left_unread() {
    let with = |bytes: Vec<u8>, script| Spec { stdin: Stdin::Bytes(bytes.into()), ..shell(script) };
    assert_eq!(run_with(&with(vec![], "cat"), LIMITS).await.stdout.total, 0);
    let unread = run_with(&with(vec![0; 1 << 20], "exec <&-; sleep 0.1; exit 4"), LIMITS).await;
    assert_eq!(unread.how, How::Exited(4));
    assert_eq!(run("cat; readlink /proc/self/fd/0").await.stdout.whole().unwrap().as_ref(), b"/dev/null\n");
}

#[tokio::test]
async fn the_environment_is_ours_and_no_more() {
    let mut spec = shell("env");
    spec.env = vec![("A".into(), "1".into()), ("A".into(), "2".into()), ("EDGEWARD_RUN".into(), "r".into())];
    let env = text(&run_with(&spec, LIMITS).await.stdout);
    let lines: Vec<_> = env.lines().collect();
    assert!(lines.contains(&"A=2") && lines.contains(&"EDGEWARD_RUN=r"), "{env}");
    assert!(lines.iter().any(|line| line.starts_with("PATH=")), "{env}");
    assert!(!lines.contains(&"A=1"), "{env}");
}

#[tokio::test]
async fn a_program_is_searched_for_in_the_childs_path() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("say")).unwrap();
    let spec = Spec {
        program: "say".into(),
        args: vec!["hi".into()],
        env: vec![("PATH".into(), folder.path().into())],
        ..Spec::default()
    };
    assert_eq!(text(&run_with(&spec, LIMITS).await.stdout), "hi\n");
    let error = refusal(&Spec { env: vec![], ..spec }).await;
    assert_eq!(error.to_string(), "program \"say\" not found");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    for program in ["no-such-program", "/no/such/program", "", "/etc/passwd/x"] {
        let error = refusal(&Spec { program: program.into(), ..Spec::default() }).await;
        assert!(matches!(error, SpawnError::NotFound { .. }), "{program}: {error:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_executed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let spec = Spec { program: file.clone().into(), ..Spec::default() };
    let error = refusal(&spec).await;
    assert_eq!(error.to_string(), format!("no permission to execute {file:?}"));
    let searched =
        Spec { program: "script".into(), env: vec![("PATH".into(), folder.path().into())], ..Spec::default() };
    assert!(matches!(refusal(&searched).await, SpawnError::NotPermitted { .. }));
    let directory = Spec { program: folder.path().into(), ..Spec::default() };
    assert!(matches!(refusal(&directory).await, SpawnError::NotPermitted { .. }));

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(refusal(&spec).await, SpawnError::NoInterpreter { .. }));
}

#[tokio::test]
async fn a_bad_working_directory_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let path = folder.path().join("deleted");
    for cwd in [path.clone(), file] {
        let error = refusal(&Spec { cwd: Some(cwd), ..shell("true") }).await;
        assert!(matches!(error, SpawnError::Cwd { .. }), "{error:?}");
    }
    let error = refusal(&Spec { cwd: Some(path.clone()), ..shell("true") }).await;
    assert_eq!(error.to_string(), format!("cannot enter working directory {path:?}"));
}

#[tokio::test]
async fn what_the_kernel_cannot_be_given_is_told() {
    let error = refusal(&shell("a\0b")).await;
    assert_eq!(error.to_string(), "NUL byte in argument 2");
    let error = refusal(&Spec { program: "a\0".into(), ..Spec::default() }).await;
    assert!(matches!(error, SpawnError::Nul { .. }), "{error:?}");
    let error = refusal(&Spec { env: vec![("A".into(), "\0".into())], ..shell("") }).await;
    assert_eq!(error.to_string(), "NUL byte in environment variable \"A\"");
    for name in ["", "A=B"] {
        let error = refusal(&Spec { env: vec![(name.into(), "".into())], ..shell("") }).await;
        assert!(matches!(error, SpawnError::EnvName { .. }), "{error:?}");
    }
    let error = refusal(&shell(&"x".repeat(1 << 20))).await;
    assert!(matches!(error, SpawnError::TooLong { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unknown_user_is_told() {
    let error = refusal(&Spec { user: Some("no-such-user-here".into()), ..shell("true") }).await;
    assert_eq!(error.to_string(), "no such user \"no-such-user-here\"");
}

#[tokio::test]
async fn a_run_as_another_user() {
    let user = Some("nobody".to_owned());
    if !rustix::process::geteuid().is_root() {
        let error = refusal(&Spec { user, ..shell("true") }).await;
        assert!(matches!(error, SpawnError::User { .. }), "{error:?}");
        return;
    }
    let spec = Spec {
        user,
        cwd: Some("/".into()),
        env: vec![("X".into(), "a b".into()), ("EDGEWARD_RUN".into(), "r".into())],
        ..shell("id -un; id -gn; echo $HOME,$USER,$X,$EDGEWARD_RUN")
    };
    let exit = run_with(&spec, LIMITS).await;
    assert_eq!(exit.how, How::Exited(0), "{}", text(&exit.stderr));
    assert_eq!(text(&exit.stdout), "nobody\nnogroup\n/nonexistent,nobody,a b,r\n");

    let missing = Spec { program: "/no/such/program".into(), ..spec.clone() };
    assert!(matches!(refusal(&missing).await, SpawnError::NotFound { .. }));
    // What the sender sets must not act on the tool that still is root.
    let preload = Spec { env: vec![("LD_PRELOAD".into(), "/no/such.so".into())], ..spec.clone() };
    let said = text(&run_with(&preload, LIMITS).await.stderr);
    assert!(!said.contains("setpriv"), "{said}");
    let limits = Limits { timeout: Duration::from_millis(300), ..LIMITS };
    let exit = run_with(&Spec { args: vec!["-c".into(), "sleep 1000".into()], ..spec }, limits).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
}
