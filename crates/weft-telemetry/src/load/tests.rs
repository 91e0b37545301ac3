use super::*;
use crate::flags::ResponseFlags;
use std::time::Duration;

fn peer(workload: &str) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        workload: workload.into(),
        namespace: "shop".into(),
        ..PeerInfo::default()
    })
}

struct World {
    table: LoadTable,
    source: Arc<PeerInfo>,
    destination: Arc<PeerInfo>,
    service: Arc<ServiceInfo>,
}

impl World {
    fn new() -> Self {
        let service = ServiceInfo { name: "reviews".into(), ..ServiceInfo::default() };
        Self {
            table: LoadTable::default(),
            source: peer("web"),
            destination: peer("reviews-v1"),
            service: Arc::new(service),
        }
    }

    fn get(&mut self, path: &str, code: u16, flags: ResponseFlags) {
        let labels = RequestLabels {
            reporter: Reporter::Source,
            source: &self.source,
            destination: &self.destination,
            service: &self.service,
            protocol: Protocol::Http,
            security: SecurityPolicy::Unknown,
            view: None,
            values: &[],
        };
        let interface = Interface { method: "GET", path: path.as_bytes() };
        let amounts = Amounts {
            duration: Duration::from_millis(3),
            response_bytes: 10,
            ..Amounts::default()
        };
        self.table.request(
            &labels,
            interface,
            Outcome { code, grpc_status: None, flags },
            &amounts,
        );
    }
}

#[test]
fn requests_add_up_between_takings() {
    let mut world = World::new();
    assert!(world.table.is_empty());
    for id in 0..100 {
        world.get(&format!("/users/{id}"), 200, ResponseFlags::NONE);
    }
    world.get("/users/7", 404, ResponseFlags::NO_ROUTE);
    world.get("/", 200, ResponseFlags::NONE);
    let LoadBatch { mut loads, lost } = world.table.take();
    assert_eq!(lost, 0);
    loads.sort_by(|a, b| a.path.cmp(&b.path));
    let [root, users] = &loads[..] else { panic!("two interfaces: {loads:?}") };
    assert_eq!((&*root.path, root.tally.requests), ("/", 1));
    assert_eq!((&*users.method, &*users.path, users.tally.requests), ("GET", "/users/{id}", 101));
    assert_eq!(users.tally.outcomes.iter().map(|(_, count)| count).sum::<u64>(), 101);
    assert_eq!(users.tally.outcomes.len(), 2);
    assert_eq!(users.tally.latency, [(latency_bucket(3000), 101)]);
    assert_eq!(users.tally.response_bytes, 1010);
    assert!(world.table.is_empty());
    assert!(world.table.take().loads.is_empty());
}

#[test]
fn hostile_paths_and_codes_stay_within_bounds_and_every_request_counts() {
    let mut world = World::new();
    for number in 0..5_000u32 {
        let name: String =
            number.to_string().bytes().map(|b| char::from(b - b'0' + b'a')).collect();
        world.get(&format!("/word-{name}"), (number % 900) as u16, ResponseFlags::NONE);
    }
    let LoadBatch { loads, lost } = world.table.take();
    assert!(loads.len() <= INTERFACES_MAX + 1, "{}", loads.len());
    let other = loads.iter().find(|load| &*load.path == OTHER).expect("the rest");
    assert!(other.tally.outcomes.len() <= 2 * OUTCOMES_MAX);
    assert_eq!(loads.iter().map(|load| load.tally.requests).sum::<u64>() + lost, 5_000);
}

#[test]
fn tcp_counts_while_connections_live() {
    let mut world = World::new();
    let labels = TcpLabels {
        reporter: Reporter::Source,
        source: &world.source,
        destination: &world.destination,
        service: &world.service,
        security: SecurityPolicy::Unknown,
        flags: ResponseFlags::NONE,
        view: None,
        values: &[],
    };
    let connection = world.table.tcp(&labels).unwrap();
    connection.opened();
    connection.received(5);
    let first = world.table.take().loads;
    assert_eq!((first[0].tally.opened, first[0].tally.request_bytes), (1, 5));
    assert!(world.table.is_empty());
    connection.sent(7);
    connection.closed();
    drop(connection);
    let second = world.table.take().loads;
    assert_eq!((second[0].tally.closed, second[0].tally.response_bytes), (1, 7));
    assert!(world.table.tcp.is_empty());
}
