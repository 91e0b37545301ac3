//! Balancing policies, from the old fields or the typed list.

use super::super::{Result, Within, decode, error, refuse, value};
use crate::cluster::{ClusterKind, LbConfig, SlowStart};
use crate::lb::LbPolicy;
use crate::pb::envoy::config::cluster::v3 as pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
    locality_lb_config::LocalityConfigSpecifier,
};
use crate::pb::envoy::extensions::load_balancing_policies::{
    least_request::v3 as least_pb, maglev::v3 as maglev_pb, random::v3 as random_pb,
    ring_hash::v3 as ring_pb, round_robin::v3 as round_pb, wrr_locality::v3 as wrr_pb,
};
use crate::pb::envoy::r#type::v3::Percent;
use crate::pb::google::protobuf::{Any, Duration as PbDuration, UInt64Value};

/// Envoy's bounds on the tables of consistent-hash policies.
const RING_MAX: u64 = 8 * 1024 * 1024;
const MAGLEV_MAX: u64 = 5_000_011;

pub(super) fn lower(message: &pb::Cluster, kind: &ClusterKind) -> Result<LbConfig> {
    let common = message.common_lb_config.clone().unwrap_or_default();
    let threshold = value::percent(&common.healthy_panic_threshold, 50.0);
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
    let mut lb = LbConfig {
        policy: LbPolicy::RoundRobin,
        panic_threshold: threshold.at("common_lb_config.healthy_panic_threshold")?,
        // Zone-aware routing needs the proxy's own cluster, which we do not have: as without.
        locality_weighted: matches!(
            common.locality_config_specifier,
            Some(Locality::LocalityWeightedLbConfig(_))
        ),
        hash_by_hostname: common
            .consistent_hashing_lb_config
            .as_ref()
            .is_some_and(|config| config.use_hostname_for_hashing),
        slow_start: None,
    };
    match &message.load_balancing_policy {
        _ if matches!(kind, ClusterKind::OriginalDst { .. } | ClusterKind::Dynamic(_)) => {
            lb.policy = LbPolicy::ClusterProvided;
        }
        Some(policy) => typed_list(&mut lb, policy, 0).at("load_balancing_policy")?,
        None => {
            lb.policy = old_policy(message)?;
            lb.slow_start = old_slow_start(message)?;
        }
    }
    Ok(lb)
}

fn old_policy(message: &pb::Cluster) -> Result<LbPolicy> {
    use pb::cluster::{LbConfig as Config, LbPolicy as Policy};
    Ok(match Policy::try_from(message.lb_policy) {
        Ok(Policy::RoundRobin) => LbPolicy::RoundRobin,
        Ok(Policy::Random) => LbPolicy::Random,
        Ok(Policy::LeastRequest) => match &message.lb_config {
            Some(Config::LeastRequestLbConfig(config)) => least_request(
                value::uint(&config.choice_count),
                config.active_request_bias.as_ref().map(|bias| bias.default_value),
                false,
            )?,
            _ => least_request(None, None, false)?,
        },
        Ok(Policy::RingHash) => match &message.lb_config {
            Some(Config::RingHashLbConfig(config)) => {
                refuse(config.hash_function == 1, "ring_hash_lb_config.hash_function")?;
                ring(&config.minimum_ring_size, &config.maximum_ring_size)?
            }
            _ => ring(&None, &None)?,
        },
        Ok(Policy::Maglev) => match &message.lb_config {
            Some(Config::MaglevLbConfig(config)) => maglev(&config.table_size)?,
            _ => maglev(&None)?,
        },
        Ok(Policy::ClusterProvided) => {
            return error("lb_policy", "CLUSTER_PROVIDED is only for ORIGINAL_DST clusters");
        }
        Ok(Policy::LoadBalancingPolicyConfig) => {
            return error("load_balancing_policy", "is required by lb_policy");
        }
        Err(_) => return error("lb_policy", format!("{} is not known", message.lb_policy)),
    })
}

fn old_slow_start(message: &pb::Cluster) -> Result<Option<SlowStart>> {
    use pb::cluster::{LbConfig as Config, LbPolicy as Policy};
    let given = match (Policy::try_from(message.lb_policy), &message.lb_config) {
        (Ok(Policy::RoundRobin), Some(Config::RoundRobinLbConfig(config))) => {
            config.slow_start_config.as_ref()
        }
        (Ok(Policy::LeastRequest), Some(Config::LeastRequestLbConfig(config))) => {
            config.slow_start_config.as_ref()
        }
        _ => None,
    };
    let Some(pb::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent }) =
        given
    else {
        return Ok(None);
    };
    slow_start(slow_start_window, aggression, min_weight_percent)
}

/// None: a window of nothing switches it off.
fn slow_start(
    window: &Option<PbDuration>,
    aggression: &Option<core::RuntimeDouble>,
    weight_min: &Option<Percent>,
) -> Result<Option<SlowStart>> {
    let window = value::duration_opt(window).at("slow_start_config.slow_start_window")?;
    let aggression = aggression.as_ref().map_or(1.0, |value| value.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        return error("slow_start_config.aggression", format!("{aggression} is not above 0"));
    }
    let percent = value::percent(weight_min, 10.0).at("slow_start_config.min_weight_percent")?;
    let window = window.filter(|window| !window.is_zero());
    Ok(window.map(|window| SlowStart { window, aggression, weight_min: percent / 100.0 }))
}

/// Bound on policies inside policies.
const DEPTH_MAX: usize = 4;

/// The first policy of the list that we know, as gRPC and Envoy choose.
fn typed_list(lb: &mut LbConfig, message: &pb::LoadBalancingPolicy, depth: usize) -> Result<()> {
    for (index, policy) in message.policies.iter().enumerate() {
        let config = policy.typed_extension_config.as_ref();
        let Some(any) = config.and_then(|config| config.typed_config.as_ref()) else { continue };
        if typed(lb, any, depth).item("policies", index)? {
            return Ok(());
        }
    }
    error("policies", "none of the policies is supported")
}

/// False: not known.
fn typed(lb: &mut LbConfig, any: &Any, depth: usize) -> Result<bool> {
    match value::message_name(any) {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let config: round_pb::RoundRobin = decode(any)?;
            set_locality(lb, &config.locality_lb_config);
            lb.slow_start = typed_slow_start(&config.slow_start_config)?;
            lb.policy = LbPolicy::RoundRobin;
        }
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            let config: least_pb::LeastRequest = decode(any)?;
            set_locality(lb, &config.locality_lb_config);
            lb.slow_start = typed_slow_start(&config.slow_start_config)?;
            let bias = config.active_request_bias.as_ref().map(|bias| bias.default_value);
            lb.policy = least_request(
                value::uint(&config.choice_count),
                bias,
                config.selection_method == 1,
            )?;
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => {
            let config: random_pb::Random = decode(any)?;
            set_locality(lb, &config.locality_lb_config);
            lb.policy = LbPolicy::Random;
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            let config: ring_pb::RingHash = decode(any)?;
            refuse(config.hash_function == 2, "hash_function")?;
            set_hashing(lb, &config.consistent_hashing_lb_config)?;
            lb.policy = ring(&config.minimum_ring_size, &config.maximum_ring_size)?;
        }
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
            let config: maglev_pb::Maglev = decode(any)?;
            set_hashing(lb, &config.consistent_hashing_lb_config)?;
            lb.policy = maglev(&config.table_size)?;
        }
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality" => {
            let config: wrr_pb::WrrLocality = decode(any)?;
            lb.locality_weighted = true;
            match &config.endpoint_picking_policy {
                Some(inner) if depth < DEPTH_MAX => typed_list(lb, inner, depth + 1)?,
                _ => return error("endpoint_picking_policy", "is required"),
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn typed_slow_start(config: &Option<SlowStartConfig>) -> Result<Option<SlowStart>> {
    match config {
        None => Ok(None),
        Some(SlowStartConfig { slow_start_window, aggression, min_weight_percent }) => {
            slow_start(slow_start_window, aggression, min_weight_percent)
        }
    }
}

fn set_locality(lb: &mut LbConfig, config: &Option<LocalityLbConfig>) {
    let specifier = config.as_ref().and_then(|config| config.locality_config_specifier.as_ref());
    if matches!(specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))) {
        lb.locality_weighted = true;
    }
}

fn set_hashing(lb: &mut LbConfig, config: &Option<ConsistentHashingLbConfig>) -> Result<()> {
    let Some(config) = config else { return Ok(()) };
    refuse(!config.hash_policy.is_empty(), "consistent_hashing_lb_config.hash_policy")?;
    lb.hash_by_hostname |= config.use_hostname_for_hashing;
    Ok(())
}

fn least_request(choices: Option<u32>, bias: Option<f64>, full_scan: bool) -> Result<LbPolicy> {
    let active_bias = bias.unwrap_or(1.0);
    if !(0.0..=100.0).contains(&active_bias) {
        return error("active_request_bias", format!("{active_bias} is out of range"));
    }
    // More draws than this say "all", which full scan does better.
    let choices = choices.unwrap_or(2).clamp(1, 64);
    Ok(LbPolicy::LeastRequest { choices, full_scan, active_bias })
}

fn ring(min: &Option<UInt64Value>, max: &Option<UInt64Value>) -> Result<LbPolicy> {
    let ring_min = min.as_ref().map_or(1024, |value| value.value);
    let ring_max = max.as_ref().map_or(RING_MAX, |value| value.value);
    match ring_min > 0 && ring_min <= ring_max && ring_max <= RING_MAX {
        true => Ok(LbPolicy::RingHash { ring_min, ring_max }),
        false => {
            error("ring_size", format!("must be 1 to {RING_MAX}, the least not above the most"))
        }
    }
}

fn maglev(size: &Option<UInt64Value>) -> Result<LbPolicy> {
    let table_size = size.as_ref().map_or(65_537, |value| value.value);
    match table_size > 2 && table_size <= MAGLEV_MAX && is_prime(table_size) {
        true => Ok(LbPolicy::Maglev { table_size }),
        false => error("table_size", format!("{table_size} is not a prime of 3 to {MAGLEV_MAX}")),
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}
