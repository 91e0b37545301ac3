//! Times in Envoy's formats: `strftime` with fractions of a second.

use std::fmt::Write as _;
use std::time::Duration;

/// How a time is written.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat(Vec<Piece>);

#[derive(Debug, Clone)]
enum Piece {
    Text(Box<str>),
    Year,
    ShortYear,
    Month,
    Day,
    DayBlank,
    Hour,
    Hour12,
    Minute,
    Second,
    /// `AM`, `PM`
    Half,
    Unix,
    UnixMillis,
    Zone,
    MonthName,
    DayName,
    DayOfYear,
    /// This many digits after the second's point.
    Fraction(usize),
    /// Seconds with that many digits after a point.
    SecondFraction(usize),
}

const ISO: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

impl TimeFormat {
    /// Empty: `2026-01-31T23:59:59.123Z`.
    pub(super) fn parse(text: &str) -> Result<TimeFormat, String> {
        let text = if text.is_empty() { ISO } else { text };
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            if at > 0 {
                pieces.push(Piece::Text(rest[..at].into()));
            }
            rest = &rest[at + 1..];
            let (taken, found) = piece(rest, text)?;
            pieces.extend(found);
            rest = &rest[taken..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(TimeFormat(pieces))
    }

    pub(super) fn print(&self, since_1970: Duration) -> String {
        let (secs, nanos) = (since_1970.as_secs(), since_1970.subsec_nanos());
        let (year, month, day) = civil_date(secs / 86_400);
        let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
        let fraction = format!("{nanos:09}");
        let mut out = String::with_capacity(24);
        for piece in &self.0 {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => out.write_str(text),
                Piece::Year => write!(out, "{year:04}"),
                Piece::ShortYear => write!(out, "{:02}", year % 100),
                Piece::Month => write!(out, "{month:02}"),
                Piece::Day => write!(out, "{day:02}"),
                Piece::DayBlank => write!(out, "{day:2}"),
                Piece::Hour => write!(out, "{hour:02}"),
                Piece::Hour12 => write!(out, "{:02}", (hour + 11) % 12 + 1),
                Piece::Minute => write!(out, "{minute:02}"),
                Piece::Second => write!(out, "{second:02}"),
                Piece::Half => out.write_str(if hour < 12 { "AM" } else { "PM" }),
                Piece::Unix => write!(out, "{secs}"),
                Piece::UnixMillis => write!(out, "{}", since_1970.as_millis()),
                Piece::Zone => out.write_str("+0000"),
                Piece::MonthName => {
                    out.write_str(MONTHS.get(month as usize - 1).copied().unwrap_or_default())
                }
                Piece::DayName => out.write_str(DAYS[(secs / 86_400 % 7) as usize]),
                Piece::DayOfYear => {
                    let first = days_before(year);
                    write!(out, "{:03}", secs / 86_400 - first + 1)
                }
                Piece::Fraction(digits) => out.write_str(&fraction[..(*digits).min(9)]),
                Piece::SecondFraction(digits) => {
                    write!(out, "{second:02}.{}", &fraction[..(*digits).min(9)])
                }
            };
        }
        out
    }
}

/// What follows a `%`: how many bytes it takes, and what it stands for.
fn piece(rest: &str, whole: &str) -> Result<(usize, Vec<Piece>), String> {
    let unknown = || format!("time format {whole:?} is not supported at \"%{rest}\"");
    let several = |text: &str| TimeFormat::parse(text).map(|format| format.0);
    let first = rest.as_bytes().first().copied().ok_or_else(unknown)?;
    Ok((
        1,
        match first {
            b'Y' => vec![Piece::Year],
            b'y' => vec![Piece::ShortYear],
            b'm' => vec![Piece::Month],
            b'd' => vec![Piece::Day],
            b'e' => vec![Piece::DayBlank],
            b'H' => vec![Piece::Hour],
            b'I' => vec![Piece::Hour12],
            b'M' => vec![Piece::Minute],
            b'S' => vec![Piece::Second],
            b'p' => vec![Piece::Half],
            b's' => vec![Piece::Unix],
            b'z' => vec![Piece::Zone],
            b'Z' => vec![Piece::Text("UTC".into())],
            b'b' | b'h' => vec![Piece::MonthName],
            b'a' => vec![Piece::DayName],
            b'j' => vec![Piece::DayOfYear],
            b'f' => vec![Piece::Fraction(9)],
            b'n' => vec![Piece::Text("\n".into())],
            b't' => vec![Piece::Text("\t".into())],
            b'%' => vec![Piece::Text("%".into())],
            b'T' => several("%H:%M:%S")?,
            b'R' => several("%H:%M")?,
            b'F' => several("%Y-%m-%d")?,
            b'D' => several("%m/%d/%y")?,
            digit @ b'1'..=b'9' if rest[1..].starts_with('f') => {
                return Ok((2, vec![Piece::Fraction(usize::from(digit - b'0'))]));
            }
            b'3' if rest.starts_with("3s") => return Ok((2, vec![Piece::UnixMillis])),
            b'E' => {
                let digit = rest.as_bytes().get(1).copied().unwrap_or_default();
                match (digit, rest.as_bytes().get(2)) {
                    (b'1'..=b'9', Some(b'S')) => {
                        let digits = usize::from(digit - b'0');
                        return Ok((3, vec![Piece::SecondFraction(digits)]));
                    }
                    (b'1'..=b'9', Some(b'f')) => {
                        return Ok((3, vec![Piece::Fraction(usize::from(digit - b'0'))]));
                    }
                    _ => return Err(unknown()),
                }
            }
            _ => return Err(unknown()),
        },
    ))
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

/// Year, month and day of a day count since 1970-01-01, in the Gregorian calendar. Years are counted
/// from March so that the leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}
