//! Tests of `fetch`: fake tools for choosing and checking, the real one once.

use super::super::pins::Archive;
use super::*;

/// A way that fails at once and without a network: nothing listens on port 1 of the loopback.
const DEAD_END: Way = Way::Release {
    base: "https://127.0.0.1:1",
    version: Version::new(1, 2, 0),
    archives: &[
        Archive { platform: "linux-x86_64", stem: "tool", sha256: "" },
        Archive { platform: "linux-aarch64", stem: "tool", sha256: "" },
    ],
};
const TOOL: Tool = Tool { name: "tool", minimum: Version::new(1, 1, 0), helpers: "curl", ways: &[DEAD_END] };

/// Writes an executable that prints `version`.
fn fake(folder: &Path, version: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(TOOL.name);
    fs::write(&path, format!("#!/bin/sh\necho 'tool: {version}'\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// Puts a fake into the cache as an install by `DEAD_END` would have.
fn put_in_cache(cache: &Path) -> PathBuf {
    let folder = home(&TOOL, &DEAD_END, cache);
    let path = fake(&folder, "v1.2.0");
    fs::write(noted_sum(&folder, &TOOL), sha256(&path).unwrap()).unwrap();
    path
}

fn get_from(path: &[&Path], cache: &Path) -> (Result<Found, FetchError>, Vec<String>) {
    let path = env::join_paths(path).unwrap();
    let mut said = Vec::new();
    let found = get(&TOOL, Some(&path), cache, &mut |line| said.push(line.to_owned()));
    (found, said)
}

#[test]
fn the_first_one_on_the_path_that_is_new_enough_is_taken_and_older_ones_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let (old, development, new) = (temp.path().join("a"), temp.path().join("b"), temp.path().join("c"));
    fake(&old, "v1.0.9");
    fake(&development, "development");
    let path = fake(&new, "v1.1.0");
    let cache = temp.path().join("cache");
    let (found, said) = get_from(&[&old, &development, &new], &cache);
    assert_eq!(found.unwrap(), Found { path, version: Version::new(1, 1, 0), origin: Origin::Path });
    assert!(said[0].ends_with("is 1.0.9, needed is 1.1.0"), "{said:?}");
    assert!(said[1].ends_with("is of no use: it brought no version"), "{said:?}");
    assert!(!cache.exists(), "the cache is not touched when it is not needed");
}

#[test]
fn the_cached_one_is_taken_only_with_its_hash() {
    let temp = tempfile::tempdir().unwrap();
    let path = put_in_cache(temp.path());
    let (found, said) = get_from(&[], temp.path());
    let found = found.unwrap();
    assert_eq!((found.origin, found.version), (Origin::Cache, Version::new(1, 2, 0)));
    assert_eq!(said, Vec::<String>::new());
    fs::write(&path, "#!/bin/sh\necho 'tool: v1.2.0' # changed\n").unwrap();
    let (found, _) = get_from(&[], temp.path());
    assert!(matches!(found, Err(FetchError::NoWay { .. })), "{found:?}");
}

#[test]
fn a_failure_names_each_way_with_its_reason_and_what_to_install() {
    let temp = tempfile::tempdir().unwrap();
    let (found, said) = get_from(&[], temp.path());
    let error = found.unwrap_err().to_string();
    assert!(error.contains("the release at https://127.0.0.1:1, by curl or wget: `"), "{error}");
    assert!(error.ends_with("install tool 1.1.0 or newer on the PATH, or curl to have it brought"), "{error}");
    assert!(said[0].starts_with("fetching tool 1.2.0: the release"), "{said:?}");
    assert!(said[1].starts_with("that failed: "), "{said:?}");
    assert!(!temp.path().join(".fetch-tool").exists(), "the work folder is swept");
}

#[test]
fn who_finds_another_process_fetching_waits_and_takes_what_it_brought() {
    let temp = tempfile::tempdir().unwrap();
    let cache = fs::canonicalize(temp.path()).unwrap();
    let held = lock(&TOOL, &cache, &mut |_| ()).unwrap();
    let mut held = Some(held);
    let mut said = Vec::new();
    let found = get(&TOOL, None, &cache, &mut |line| {
        said.push(line.to_owned());
        put_in_cache(&cache);
        held = None;
    });
    assert_eq!(found.unwrap().origin, Origin::Cache);
    assert_eq!(said, ["waiting for another process that is fetching tool"]);
}

#[test]
fn the_cache_folder_follows_the_environment() {
    let with = |set: &[(&str, &str)]| {
        cache_from(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    };
    let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("CARGO_MANIFEST_DIR", "/c"), ("EDGEWARD_CACHE", "/e")];
    let expected = ["/h/.cache/edgeward", "/x/edgeward", "/c/.cache", "/e"];
    for (count, expected) in expected.iter().enumerate() {
        assert_eq!(with(&all[..=count]), PathBuf::from(expected));
    }
    assert_eq!(with(&[]), PathBuf::from("/var/cache/edgeward"));
}

#[test]
fn a_real_nats_server_is_found_or_brought() {
    let found = nats_server(&default_cache(), &mut |line| eprintln!("{line}")).unwrap();
    assert!(found.version >= pins::NATS_SERVER.minimum, "{found:?}");
    assert_eq!(version_of(&found.path).unwrap(), found.version);
}
