use super::*;
use crate::world::{Subscription, World};

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n"
    )
}

fn names(world: &World) -> Vec<String> {
    world.snapshot().services().map(|service| service.name.to_string()).collect()
}

/// Waits for updates until the services are these; the test runner's limit is the timeout.
async fn until(world: &World, updates: &mut Subscription, expect: &[&str]) {
    while names(world) != expect {
        updates.next().await.unwrap();
    }
}

#[tokio::test]
async fn follows_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a.yaml"), service("a")).unwrap();
    std::fs::write(at("notes.txt"), service("ignored")).unwrap();
    std::fs::write(at(".hidden.yaml"), service("hidden")).unwrap();
    let (world, events) = World::start(1);
    let (_, mut updates) = world.subscribe();
    watch(vec![dir.path().to_path_buf()], events).await.unwrap();
    world.synced().await;
    assert_eq!(names(&world), ["a"]);

    // A new file below a new directory.
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("sub/b.json"), r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"b"},"spec":{"ports":[{"name":"http","port":80}]}}"#).unwrap();
    until(&world, &mut updates, &["a", "b"]).await;

    // An editor that writes beside and renames over.
    std::fs::write(at("a.yaml~"), service("c")).unwrap();
    std::fs::rename(at("a.yaml~"), at("a.yaml")).unwrap();
    until(&world, &mut updates, &["b", "c"]).await;

    std::fs::remove_dir_all(at("sub")).unwrap();
    until(&world, &mut updates, &["c"]).await;

    // Meant to be empty, after a while.
    std::fs::write(at("a.yaml"), "").unwrap();
    until(&world, &mut updates, &[]).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error() {
    let (_world, events) = World::start(1);
    let error = watch(vec![PathBuf::from("/nowhere/at/all")], events).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn looks_compare_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut scanner = Scanner { dirs: vec![dir.path().to_path_buf()], ..Scanner::default() };
    let mut look = || {
        let mut all = Vec::new();
        let more = |files: Vec<FileChange>| {
            all.extend(files.iter().map(|change| change.content.is_some()));
            true
        };
        assert!(scanner.scan(more));
        all
    };
    std::fs::write(&path, service("a")).unwrap();
    assert_eq!(look(), [true]);
    std::fs::write(&path, service("a")).unwrap();
    assert!(look().is_empty());
    // Truncated: perhaps being rewritten. Only the second look believes it.
    std::fs::write(&path, "").unwrap();
    assert!(look().is_empty());
    assert_eq!(look(), [true]);
    assert!(look().is_empty());
    // Not UTF-8: reported once.
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert_eq!(look(), [true]);
    assert!(look().is_empty());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(look(), [false]);
}
