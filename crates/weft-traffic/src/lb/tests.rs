mod warm_up;

use std::time::Duration;

use super::*;
use crate::circuit::Thresholds;
use crate::cluster::{Health, LbConfig, Locality, Transport, UpstreamHttp, UpstreamProtocol};
use crate::outlier::{OutlierConfig, Trigger};

/// `(weight, priority, health, locality with weight)` for each endpoint; addresses count up.
type Spec<'a> = (u32, u32, Health, (&'a str, u32));

const UP: Health = Health::Healthy;
const DOWN: Health = Health::Unhealthy;

fn endpoint(number: usize, spec: &Spec<'_>) -> Arc<Endpoint> {
    let (weight, priority, health, (zone, zone_weight)) = *spec;
    let address = format!("10.0.{}.{}:80", number / 250, number % 250 + 1).parse().unwrap();
    let locality = Locality { zone: zone.into(), weight: zone_weight, ..Default::default() };
    let base = Endpoint::at(address);
    Arc::new(Endpoint { weight, priority, health, locality: Arc::new(locality), ..base })
}

fn cluster(policy: LbPolicy, specs: &[Spec<'_>]) -> Cluster {
    let endpoints = specs.iter().enumerate().map(|(i, spec)| endpoint(i, spec)).collect();
    let http = UpstreamHttp {
        protocol: UpstreamProtocol::H1,
        idle_timeout: None,
        connection_duration: None,
        requests_per_connection_max: None,
        http2: Default::default(),
        http1_preserve_case: false,
        auto_sni: false,
        auto_san_validation: false,
    };
    let lb = LbConfig {
        policy,
        panic_threshold: 50.0,
        locality_weighted: false,
        hash_by_hostname: false,
        slow_start: None,
    };
    let config = ClusterConfig {
        kind: ClusterKind::Static,
        connect_timeout: Duration::from_secs(1),
        transport_matches: Vec::new(),
        transport: Transport::Plain,
        http,
        lb,
        limits: [Thresholds::default(); 2],
        outlier: None,
        istio: Default::default(),
        tcp_keepalive: None,
        source_addresses: Vec::new(),
        proxy_protocol: None,
        close_on_removal: false,
    };
    let set = EndpointSet { endpoints, ..Default::default() };
    Cluster { name: "c".into(), config: Arc::new(config), endpoints: Arc::new(set) }
}

fn with_config(cluster: Cluster, change: impl FnOnce(&mut ClusterConfig)) -> Cluster {
    let mut config = ClusterConfig::clone(&cluster.config);
    change(&mut config);
    Cluster { config: Arc::new(config), ..cluster }
}

/// How often each endpoint is picked in `picks` picks, by position.
fn spread(cluster: &Cluster, picks: usize) -> Vec<usize> {
    let now = Instant::now();
    let mut balancer = Balancer::new(cluster, 3, now);
    let mut rng = test_rng(1);
    let mut counts = vec![0; cluster.endpoints.endpoints.len()];
    for _ in 0..picks {
        let Some(picked) = balancer.pick(&PickInput::plain(now), &mut rng) else { continue };
        counts[position(cluster, &picked)] += 1;
    }
    counts
}

fn position(cluster: &Cluster, picked: &Picked) -> usize {
    let same = |endpoint: &Arc<Endpoint>| endpoint.address == picked.endpoint.address;
    cluster.endpoints.endpoints.iter().position(same).unwrap()
}

fn assert_near(counts: &[usize], shares: &[f64], tolerance: f64) {
    let total: usize = counts.iter().sum();
    for (at, (count, share)) in counts.iter().zip(shares).enumerate() {
        let got = *count as f64 / total as f64;
        assert!((got - share).abs() <= tolerance, "host {at}: {got} is not {share}: {counts:?}");
    }
}

const LEAST: LbPolicy = LbPolicy::LeastRequest { choices: 2, full_scan: false, active_bias: 1.0 };

#[test]
fn round_robin_is_even_and_follows_weights() {
    let same = [(1, 0, UP, ("", 0)); 10];
    assert_eq!(spread(&cluster(LbPolicy::RoundRobin, &same), 100_000), vec![10_000; 10]);
    let weighted = [(1, 0, UP, ("", 0)), (99, 0, UP, ("", 0))];
    let counts = spread(&cluster(LbPolicy::RoundRobin, &weighted), 100_000);
    assert_near(&counts, &[0.01, 0.99], 0.0001);
    let three = [(1, 0, UP, ("", 0)), (2, 0, UP, ("", 0)), (3, 0, UP, ("", 0))];
    let counts = spread(&cluster(LbPolicy::RoundRobin, &three), 60_000);
    assert_near(&counts, &[1.0 / 6.0, 2.0 / 6.0, 3.0 / 6.0], 0.0001);
}

#[test]
fn weighted_round_robin_mixes_within_a_round() {
    let specs = [(2, 0, UP, ("", 0)), (1, 0, UP, ("", 0))];
    let cluster = cluster(LbPolicy::RoundRobin, &specs);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, now);
    let mut rng = test_rng(1);
    let mut longest = 0;
    let mut run = 0;
    for _ in 0..300 {
        let picked = balancer.pick(&PickInput::plain(now), &mut rng).unwrap();
        run = if position(&cluster, &picked) == 0 { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    assert!(longest <= 3, "{longest} picks of the heavier host in a row");
}

#[test]
fn extreme_weights_do_not_stick() {
    let specs = [(1, 0, UP, ("", 0)), (u32::MAX, 0, UP, ("", 0)), (u32::MAX, 0, UP, ("", 0))];
    let counts = spread(&cluster(LbPolicy::RoundRobin, &specs), 10_000);
    assert!(counts[1] > 4_900 && counts[2] > 4_900, "{counts:?}");
}

#[test]
fn random_and_least_request_are_even_when_idle() {
    let same = [(1, 0, UP, ("", 0)); 10];
    for policy in [LbPolicy::Random, LEAST] {
        assert_near(&spread(&cluster(policy, &same), 100_000), &[0.1; 10], 0.01);
    }
}

#[test]
fn least_request_avoids_the_busy() {
    for full_scan in [false, true] {
        let policy = LbPolicy::LeastRequest { choices: 2, full_scan, active_bias: 1.0 };
        let cluster = cluster(policy, &[(1, 0, UP, ("", 0)); 4]);
        let now = Instant::now();
        let mut balancer = Balancer::new(&cluster, 0, now);
        let mut rng = test_rng(2);
        let busy = balancer.hosts[0].clone();
        let _held: Vec<_> = (0..100).map(|_| busy.begin()).collect();
        let mut hits = 0;
        for _ in 0..10_000 {
            let picked = balancer.pick(&PickInput::plain(now), &mut rng).unwrap();
            hits += usize::from(Rc::ptr_eq(&picked.host, &busy));
        }
        // Drawn twice in a row: 1 in 16. Never with a full scan.
        let most = if full_scan { 0 } else { 800 };
        assert!(hits <= most, "{hits} with full_scan {full_scan}");
    }
}

#[test]
fn weighted_least_request_counts_load() {
    let specs = [(1, 0, UP, ("", 0)), (3, 0, UP, ("", 0))];
    let cluster = cluster(LEAST, &specs);
    assert_near(&spread(&cluster, 40_000), &[0.25, 0.75], 0.001);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, now);
    let heavy = balancer.hosts[1].clone();
    let _held: Vec<_> = (0..9).map(|_| heavy.begin()).collect();
    let mut rng = test_rng(1);
    let hits = (0..1300)
        .filter(|_| {
            let picked = balancer.pick(&PickInput::plain(now), &mut rng).unwrap();
            Rc::ptr_eq(&picked.host, &heavy)
        })
        .count();
    // Effective weights are 1 and 3/10.
    assert!((280..=330).contains(&hits), "{hits}");
}

#[test]
fn active_counts_survive_a_new_set() {
    let before = cluster(LEAST, &[(1, 0, UP, ("", 0)); 2]);
    let after = cluster(LEAST, &[(5, 0, UP, ("", 0)); 3]);
    let now = Instant::now();
    let mut balancer = Balancer::new(&before, 0, now);
    let request = balancer.pick(&PickInput::plain(now), &mut test_rng(1)).unwrap().host.begin();
    balancer.update(&after, now);
    let kept = balancer.hosts.iter().find(|host| Rc::ptr_eq(host, request.host())).unwrap();
    assert_eq!(kept.active(), 1);
    let kept = kept.clone();
    drop(request);
    assert_eq!((kept.active(), kept.total()), (0, 1));
    balancer.update(&cluster(LEAST, &[]), now);
    assert!(kept.is_removed());
    assert!(balancer.pick(&PickInput::plain(now), &mut test_rng(1)).is_none());
}

#[test]
fn retries_go_elsewhere() {
    let cluster = cluster(LbPolicy::Random, &[(1, 0, UP, ("", 0)); 3]);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, now);
    let mut rng = test_rng(5);
    let mut again = 0;
    for _ in 0..10_000 {
        let first = balancer.pick(&PickInput::plain(now), &mut rng).unwrap().host;
        let tried = [first];
        let input = PickInput { avoid: &tried, avoid_attempts: 5, ..PickInput::plain(now) };
        let second = balancer.pick(&input, &mut rng).unwrap().host;
        again += usize::from(Rc::ptr_eq(&second, &tried[0]));
    }
    // Six draws of one in three.
    assert!(again < 50, "{again}");
}

#[test]
fn hashes_stick_and_move_little() {
    for policy in [
        LbPolicy::RingHash { ring_min: 1024, ring_max: 8 << 20 },
        LbPolicy::Maglev { table_size: 65_537 },
    ] {
        let specs = [(1, 0, UP, ("", 0)); 10];
        let (ten, nine) = (cluster(policy, &specs), cluster(policy, &specs[..9]));
        let now = Instant::now();
        let mut balancer = Balancer::new(&ten, 0, now);
        let mut other = Balancer::new(&nine, 9, now);
        let mut rng = test_rng(4);
        let (mut counts, mut moved) = ([0usize; 10], 0);
        let mut keys = test_rng(11);
        for _ in 0..20_000 {
            let input = PickInput { hash: Some(keys()), ..PickInput::plain(now) };
            let first = balancer.pick(&input, &mut rng).unwrap();
            assert!(Rc::ptr_eq(&first.host, &balancer.pick(&input, &mut rng).unwrap().host));
            let at = position(&ten, &first);
            counts[at] += 1;
            let second = other.pick(&input, &mut rng).unwrap();
            moved += usize::from(at < 9 && second.endpoint.address != first.endpoint.address);
        }
        // The ring keeps its size, so with fewer hosts each gets more points and takes some keys over.
        let (even, most) = match policy {
            LbPolicy::Maglev { .. } => (0.01, 1_000),
            _ => (0.05, 1_800),
        };
        assert_near(&counts, &[0.1; 10], even);
        assert!(moved < most, "{policy:?} moved {moved} keys of hosts that stayed");
    }
}

#[test]
fn hash_weights_hold() {
    let specs = [(1, 0, UP, ("", 0)), (3, 0, UP, ("", 0))];
    let maglev = cluster(LbPolicy::Maglev { table_size: 65_537 }, &specs);
    assert_near(&spread(&maglev, 50_000), &[0.25, 0.75], 0.01);
    let ring = cluster(LbPolicy::RingHash { ring_min: 4096, ring_max: 8 << 20 }, &specs);
    assert_near(&spread(&ring, 50_000), &[0.25, 0.75], 0.05);
}

#[test]
fn unhealthy_hosts_are_left_out_until_panic() {
    let mostly_up = [(1, 0, UP, ("", 0)), (1, 0, UP, ("", 0)), (1, 0, DOWN, ("", 0))];
    assert_near(&spread(&cluster(LbPolicy::RoundRobin, &mostly_up), 1000), &[0.5, 0.5, 0.0], 0.0);
    let mostly_down = [(1, 0, UP, ("", 0)), (1, 0, DOWN, ("", 0)), (1, 0, DOWN, ("", 0))];
    let panic = cluster(LbPolicy::RoundRobin, &mostly_down);
    assert_near(&spread(&panic, 3000), &[1.0 / 3.0; 3], 0.001);
    let calm = with_config(panic, |config| config.lb.panic_threshold = 0.0);
    assert_near(&spread(&calm, 1000), &[1.0, 0.0, 0.0], 0.0);
    let all_down =
        with_config(cluster(LbPolicy::RoundRobin, &[(1, 0, DOWN, ("", 0)); 2]), |config| {
            config.lb.panic_threshold = 0.0;
        });
    assert_eq!(spread(&all_down, 10), vec![0, 0]);
}

#[test]
fn the_next_priority_takes_over() {
    let healthy = [(1, 0, UP, ("", 0)), (1, 1, UP, ("", 0))];
    assert_eq!(spread(&cluster(LbPolicy::RoundRobin, &healthy), 100), vec![100, 0]);
    let failed = [(1, 0, DOWN, ("", 0)), (1, 1, UP, ("", 0))];
    assert_eq!(spread(&cluster(LbPolicy::RoundRobin, &failed), 100), vec![0, 100]);
    // Half of priority 0 is up: 70 % of the traffic with overprovisioning 1.4, the rest fails over.
    let half = [(1, 0, UP, ("", 0)), (1, 0, DOWN, ("", 0)), (1, 1, UP, ("", 0))];
    let counts = spread(&cluster(LbPolicy::RoundRobin, &half), 20_000);
    assert_near(&counts, &[0.7, 0.0, 0.3], 0.01);
    // A gap in the numbers is no priority of its own.
    let gap = [(1, 2, UP, ("", 0)), (1, 5, UP, ("", 0))];
    assert_eq!(spread(&cluster(LbPolicy::RoundRobin, &gap), 100), vec![100, 0]);
}

#[test]
fn localities_take_their_weight() {
    let specs = [(1, 0, UP, ("a", 80)), (1, 0, UP, ("b", 20)), (1, 0, UP, ("b", 20))];
    let weighted = with_config(cluster(LbPolicy::RoundRobin, &specs), |config| {
        config.lb.locality_weighted = true;
    });
    assert_near(&spread(&weighted, 50_000), &[0.8, 0.1, 0.1], 0.01);
}

#[test]
fn original_destinations_need_no_endpoints() {
    let cluster = with_config(cluster(LbPolicy::ClusterProvided, &[]), |config| {
        config.kind = ClusterKind::OriginalDst { header: None, port: Some(8080) };
    });
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, now);
    let original_dst = Some("10.9.9.9:80".parse().unwrap());
    let input = PickInput { destination: original_dst, ..PickInput::plain(now) };
    let picked = balancer.pick(&input, &mut test_rng(1)).unwrap();
    assert_eq!(picked.endpoint.address.to_string(), "10.9.9.9:8080");
    assert!(balancer.pick(&PickInput::plain(now), &mut test_rng(1)).is_none());
}

fn ejecting(hosts: usize, percent: u32) -> Cluster {
    let specs = vec![(1, 0, UP, ("", 0)); hosts];
    with_config(cluster(LbPolicy::RoundRobin, &specs), |config| {
        config.lb.panic_threshold = 0.0;
        config.outlier = Some(OutlierConfig {
            consecutive_5xx: Trigger { count: 5, enforcing: 100 },
            consecutive_gateway: Trigger { count: 0, enforcing: 0 },
            consecutive_local: Trigger { count: 5, enforcing: 100 },
            split_local: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            ejection_max: Duration::from_secs(300),
            ejection_percent_max: percent,
            error_statuses: Box::default(),
        });
    })
}

#[test]
fn a_bad_host_is_ejected_and_comes_back() {
    let cluster = ejecting(5, 10);
    let start = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, start);
    let mut rng = test_rng(1);
    let bad = balancer.hosts[2].clone();
    let mut errors = 0;
    for request in 0..100 {
        let picked = balancer.pick(&PickInput::plain(start), &mut rng).unwrap();
        let is_bad = Rc::ptr_eq(&picked.host, &bad);
        errors += u32::from(is_bad);
        let status = if is_bad { 500 } else { 200 };
        balancer.report(&picked.host, HostOutcome::Response(status), start, request);
    }
    assert_eq!((errors, bad.is_ejected(), balancer.healthy_count()), (5, true, 4));
    let at = |secs| start + Duration::from_secs(secs);
    for secs in [10, 20, 29] {
        balancer.pick(&PickInput::plain(at(secs)), &mut rng).unwrap();
        assert!(bad.is_ejected(), "{secs}");
    }
    balancer.pick(&PickInput::plain(at(40)), &mut rng).unwrap();
    assert!(!bad.is_ejected());
    // A second ejection lasts twice as long.
    for _ in 0..5 {
        balancer.report(&bad, HostOutcome::ConnectFailure, at(40), 0);
    }
    balancer.pick(&PickInput::plain(at(80)), &mut rng).unwrap();
    assert!(bad.is_ejected());
    balancer.pick(&PickInput::plain(at(101)), &mut rng).unwrap();
    assert!(!bad.is_ejected());
}

#[test]
fn ejection_never_empties_the_pool() {
    for (hosts, percent, left) in [(5, 100, 1), (1, 100, 1), (10, 10, 9), (10, 30, 7), (2, 0, 2)] {
        let cluster = ejecting(hosts, percent);
        let now = Instant::now();
        let mut balancer = Balancer::new(&cluster, 0, now);
        for host in balancer.hosts.clone() {
            for _ in 0..20 {
                balancer.report(&host, HostOutcome::Response(503), now, 0);
            }
        }
        assert_eq!(balancer.healthy_count(), left, "{hosts} hosts, {percent} %");
    }
}

#[test]
fn success_resets_the_row() {
    let cluster = ejecting(3, 100);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 0, now);
    let host = balancer.hosts[0].clone();
    for _ in 0..10 {
        for _ in 0..4 {
            balancer.report(&host, HostOutcome::Response(500), now, 0);
        }
        balancer.report(&host, HostOutcome::Response(404), now, 0);
    }
    assert!(!host.is_ejected());
}

#[test]
fn new_endpoints_are_used_at_once() {
    let specs = [(1, 0, UP, ("", 0)); 12];
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster(LbPolicy::RoundRobin, &specs[..10]), 0, now);
    let after = cluster(LbPolicy::RoundRobin, &specs);
    balancer.update(&after, now);
    let mut rng = test_rng(1);
    let mut counts = vec![0; 12];
    for _ in 0..12_000 {
        let picked = balancer.pick(&PickInput::plain(now), &mut rng).unwrap();
        counts[position(&after, &picked)] += 1;
    }
    assert_eq!(counts, vec![1000; 12]);
}

#[test]
fn overload_drops_are_drawn() {
    let mut shedding = cluster(LbPolicy::RoundRobin, &[(1, 0, UP, ("", 0)); 2]);
    let drops = vec![crate::matcher::Fraction { numerator: 25, denominator: 100 }];
    let endpoints = shedding.endpoints.endpoints.clone();
    shedding.endpoints = Arc::new(EndpointSet { endpoints, drops, ..Default::default() });
    let picked: usize = spread(&shedding, 10_000).iter().sum();
    assert!((7_350..7_650).contains(&picked), "{picked}");
}
