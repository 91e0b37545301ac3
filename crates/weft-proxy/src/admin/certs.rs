//! `/certs`: Envoy's form, without key material.

use serde_json::{Value, json};

use crate::runtime::Shared;
use crate::tls::secrets::CertificateInfo;

/// All certificates and trust roots by name.
pub fn json(shared: &Shared) -> Value {
    let secrets = shared.secrets.current();
    let mut entries: Vec<(String, Value)> = Vec::new();
    for (name, certificate) in secrets.certificates() {
        let entry = json!({ "name": &**name, "cert_chain": [describe(&certificate.info)] });
        entries.push((name.to_string(), entry));
    }
    for (name, roots) in secrets.all_roots() {
        let described: Vec<Value> = roots.info.iter().map(describe).collect();
        entries.push((name.to_string(), json!({ "name": &**name, "ca_cert": described })));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let entries: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    json!({ "certificates": entries })
}

fn describe(info: &CertificateInfo) -> Value {
    let sans: Vec<Value> = info
        .sans
        .iter()
        .map(|san| match san.contains("://") {
            true => json!({ "uri": san }),
            false => json!({ "dns": san }),
        })
        .collect();
    let days = (info.not_after - crate::state::unix_now()).div_euclid(86_400).max(0);
    json!({
        "serial_number": info.serial.to_ascii_lowercase(),
        "subject_alt_names": sans,
        "days_until_expiration": days.to_string(),
        "valid_from": rfc3339(info.not_before),
        "expiration_time": rfc3339(info.not_after),
    })
}

/// Unix seconds as `2026-01-02T03:04:05Z`.
pub fn rfc3339(unix: i64) -> String {
    let (days, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    // Civil date from a day count, in 400-year eras that begin on 1 March.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_248_000), "2026-11-21T08:00:00Z");
    }
}
