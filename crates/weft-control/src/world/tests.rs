use weft_model::parse_yaml;

use super::*;

fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: {port}}}]}}\n"
    )
}

fn file(name: &str, text: &str) -> FileChange {
    FileChange { file: name.into(), content: Some(parse_yaml(name, text)) }
}

fn gone(name: &str) -> FileChange {
    FileChange { file: name.into(), content: None }
}

/// A world that takes steps one at a time.
struct Steps {
    world: World,
    events: mpsc::Sender<Event>,
    updates: Subscription,
}

impl Steps {
    async fn start() -> Steps {
        let (world, events) = World::start(1);
        let (_, updates) = world.subscribe();
        Steps { world, events, updates }
    }

    async fn step(&mut self, files: Vec<FileChange>) -> Update {
        self.events.send(Event::Files(files)).await.unwrap();
        self.updates.next().await.unwrap()
    }

    /// `name:port` of every service.
    fn services(&self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        snapshot.services().map(|s| format!("{}:{}", s.name, s.ports[0].number)).collect()
    }

    /// `message | help` of every error.
    fn errors(&self) -> Vec<String> {
        let state = self.world.current();
        let errors = state.diagnostics.iter().filter(|found| found.is_error());
        errors.map(|found| format!("{} | {}", found.message, found.help)).collect()
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut steps = Steps::start().await;
    let update = steps.step(vec![file("a", &service("a", 1)), file("b", &service("b", 2))]).await;
    assert_eq!(update.state.version, 1);
    assert_eq!(update.touched.services.len(), 2);
    assert_eq!(steps.services(), ["a:1", "b:2"]);
    let update = steps.step(vec![file("a", &service("a", 3)), gone("b")]).await;
    assert_eq!(steps.services(), ["a:3"]);
    assert_eq!(update.touched.services.len(), 2);
}

#[tokio::test]
async fn a_resource_that_moves_between_files_is_not_touched() {
    let mut steps = Steps::start().await;
    let both = format!("{}{}", service("a", 1), service("b", 2));
    steps.step(vec![file("x", &both)]).await;
    let update = steps
        .step(vec![
            file("x", &service("a", 1)),
            file("y", &format!("{}{}", service("b", 2), service("c", 3))),
        ])
        .await;
    assert_eq!(steps.services(), ["a:1", "b:2", "c:3"]);
    let touched: Vec<&str> = update.touched.services.iter().map(|host| &**host).collect();
    assert_eq!(touched, ["c.default.svc.cluster.local"]);
}

#[tokio::test]
async fn the_last_good_version_stays() {
    let mut steps = Steps::start().await;
    let good = format!("{}{}", service("a", 1), service("b", 2));
    steps.step(vec![file("x", &good)]).await;

    // One invalid resource: it stays as it was, the other moves on.
    let bad = format!("{}{}", service("a", 0), service("b", 3));
    steps.step(vec![file("x", &bad)]).await;
    assert_eq!(steps.services(), ["a:1", "b:3"]);
    assert_eq!(
        steps.errors(),
        ["0 is not a port number from 1 to 65535 | The last valid version stays in force."]
    );

    // A document that nobody can read: what is missing now may be in it.
    steps.step(vec![file("x", &format!("{}---\n{{ oops\n", service("b", 4)))]).await;
    assert_eq!(steps.services(), ["a:1", "b:4"]);
    assert!(steps.errors()[0].contains("Kept in force from before: Service default/a."));

    // Mended and left out: it goes.
    steps.step(vec![file("x", &service("b", 4))]).await;
    assert_eq!(steps.services(), ["b:4"]);
    assert!(steps.errors().is_empty());
}

#[tokio::test]
async fn of_two_definitions_the_first_stays_and_the_second_inherits() {
    let mut steps = Steps::start().await;
    steps.step(vec![file("x", &service("a", 1))]).await;
    steps.step(vec![file("w", &service("a", 2))]).await;
    assert_eq!(steps.services(), ["a:1"]);
    assert_eq!(
        steps.errors(),
        [
            "Service default/a is already defined in x | Remove one of the two; the first stays in force."
        ]
    );
    steps.step(vec![gone("x")]).await;
    assert_eq!(steps.services(), ["a:2"]);
    assert!(steps.errors().is_empty());
    // Twice in one file.
    steps.step(vec![file("w", &format!("{}{}", service("a", 5), service("a", 6)))]).await;
    assert_eq!(steps.services(), ["a:5"]);
    assert_eq!(steps.errors().len(), 1);
}

#[tokio::test]
async fn a_slow_subscriber_gets_everything_merged() {
    let (world, events) = World::start(0);
    let (_, mut slow) = world.subscribe();
    let (_, mut quick) = world.subscribe();
    for (name, port) in [("a", 1), ("b", 2), ("c", 3)] {
        events.send(Event::Files(vec![file(name, &service(name, port))])).await.unwrap();
        quick.next().await.unwrap();
    }
    let update = slow.next().await.unwrap();
    assert_eq!((update.state.version, update.touched.services.len()), (3, 3));
    drop(events);
    assert!(slow.next().await.is_none());
    let (_, mut late) = world.subscribe();
    assert!(late.next().await.is_none());
}

#[tokio::test]
async fn synced_when_every_source_said_so() {
    let (world, events) = World::start(2);
    let (_, mut updates) = world.subscribe();
    events.send(Event::Synced).await.unwrap();
    events.send(Event::Files(vec![file("a", &service("a", 1))])).await.unwrap();
    updates.next().await.unwrap();
    assert!(!world.is_synced());
    events.send(Event::Synced).await.unwrap();
    world.synced().await;
    assert_eq!(world.snapshot().services().count(), 1);
}

#[tokio::test]
async fn endpoints_may_come_before_their_service() {
    const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 1}]
endpoints: [{addresses: [10.0.0.1]}]
";
    let mut steps = Steps::start().await;
    steps.events.send(Event::Files(vec![file("s", SLICE)])).await.unwrap();
    let (done, flushed) = oneshot::channel();
    steps.events.send(Event::Flush(done)).await.unwrap();
    flushed.await.unwrap();
    let update = steps.step(vec![file("a", &service("a", 1))]).await;
    assert_eq!(update.state.snapshot.services().next().unwrap().endpoints.len(), 1);
}
