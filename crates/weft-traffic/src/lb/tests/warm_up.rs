//! Slow start against Envoy's formula, and retries that leave a priority.

use std::time::Duration;

use super::*;
use crate::cluster::SlowStart;

const WINDOW: Duration = Duration::from_secs(100);

fn warming(policy: LbPolicy, aggression: f64, hosts: usize) -> Cluster {
    let specs = vec![(1, 0, UP, ("", 0)); hosts];
    with_config(cluster(policy, &specs), |config| {
        config.lb.slow_start = Some(SlowStart { window: WINDOW, aggression, weight_min: 0.1 });
    })
}

/// The share of the last host, in `picks` picks at `now`.
fn share_of_last(balancer: &mut Balancer, cluster: &Cluster, now: Instant, picks: usize) -> f64 {
    let mut rng = test_rng(1);
    let last = cluster.endpoints.endpoints.len() - 1;
    let hits = (0..picks).filter(|_| {
        let picked = balancer.pick(&PickInput::plain(now), &mut rng).unwrap();
        position(cluster, &picked) == last
    });
    hits.count() as f64 / picks as f64
}

#[test]
fn a_new_host_takes_its_share_as_envoys_formula_says() {
    for policy in [LbPolicy::RoundRobin, LEAST] {
        for aggression in [1.0, 2.0, 0.5] {
            let start = Instant::now();
            let old = warming(policy, aggression, 4);
            let mut balancer = Balancer::new(&old, 7, start);
            let new = warming(policy, aggression, 5);
            // The four others have been there for longer than the window.
            let mut dated = EndpointSet::clone(&new.endpoints).dated(&old.endpoints, start);
            dated.since[..4].fill(start - WINDOW * 2);
            let new = new.with_endpoints(Arc::new(dated));
            balancer.update(&new, start);
            for percent in [1u32, 5, 10, 30, 50, 90, 99] {
                let now = start + WINDOW * percent / 100;
                let factor = (f64::from(percent) / 100.0).powf(1.0 / aggression).max(0.1);
                let expect = factor / (4.0 + factor);
                // The schedule made at the last look is used up first.
                share_of_last(&mut balancer, &new, now, 1_000);
                let share = share_of_last(&mut balancer, &new, now, 20_000);
                assert!(
                    (share - expect).abs() < 0.003,
                    "{policy:?}, aggression {aggression}, {percent} %: {share} is not {expect}"
                );
            }
            let share = share_of_last(&mut balancer, &new, start + WINDOW, 50_000);
            assert!((share - 0.2).abs() < 0.01, "warmed up: {share}");
        }
    }
}

#[test]
fn an_endpoint_is_as_old_as_it_has_been_healthy() {
    let start = Instant::now();
    let later = start + Duration::from_secs(7);
    let with = |specs: &[Spec<'_>]| EndpointSet::clone(&cluster(LEAST, specs).endpoints);
    let (up, down) = ((1, 0, UP, ("", 0)), (1, 0, DOWN, ("", 0)));
    let first = with(&[up, down]).dated(&EndpointSet::default(), start);
    assert_eq!(first.since, [start, start]);
    let second = with(&[up, up, up]).dated(&first, later);
    assert_eq!(second.since, [start, later, later], "kept, got healthy, came");
}

#[test]
fn a_retry_leaves_the_priorities_it_has_tried() {
    let specs = [(1, 0, UP, ("", 0)), (1, 1, UP, ("", 0)), (1, 2, UP, ("", 0))];
    let cluster = cluster(LbPolicy::RoundRobin, &specs);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 3, now);
    let mut rng = test_rng(1);
    let mut pick = |avoid_priorities: &[u32]| {
        let input = PickInput { avoid_priorities, ..PickInput::plain(now) };
        position(&cluster, &balancer.pick(&input, &mut rng).unwrap())
    };
    assert_eq!(pick(&[]), 0);
    assert_eq!(pick(&[0, 0]), 1);
    assert_eq!(pick(&[0, 0, 1, 1]), 2);
    assert_eq!(pick(&[]), 0, "other requests are not concerned");
    assert_eq!(pick(&[0, 1, 2]), 0, "nothing is left: as if nothing had been tried");
}
