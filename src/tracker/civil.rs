//! Calendar dates from Unix time and back: RFC 3339 for JSON, the HTTP date, and the times that
//! Python writes into a database.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

/// A wall clock reading as milliseconds since 1970, UTC.
pub(super) fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
    }
}

/// `2026-11-21T08:55:37.120+00:00`. The offset is written out because the standard library of
/// Python up to 3.10 does not read `Z`.
pub(super) fn rfc3339(millis: i64) -> String {
    let (year, month, day) = date(millis.div_euclid(1_000).div_euclid(DAY));
    let (hour, minute, second) = time_of_day(millis.div_euclid(1_000));
    let fraction = millis.rem_euclid(1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}+00:00")
}

/// `Sat, 21 Nov 2026 08:55:37 GMT`, the only form of a date that HTTP still writes.
pub(super) fn http_date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds.div_euclid(DAY);
    let (year, month, day) = date(days);
    let (hour, minute, second) = time_of_day(seconds);
    let weekday = DAYS[usize::try_from(days.rem_euclid(7)).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Reads `YYYY-MM-DD`, then optionally `T` or a space and `HH:MM[:SS[.fraction]]`, then optionally
/// `Z` or `±HH:MM`. A time without an offset counts as UTC.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let (date, rest) = (text.get(..10)?, text.get(10..)?);
    let days = parse_date(date)?;
    let rest = rest.strip_prefix(['T', 't', ' ']).unwrap_or(rest);
    let (time, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => (&rest[..at], parse_offset(&rest[at..])?),
        None => (rest, 0),
    };
    let millis = parse_time(time)?;
    Some(days * DAY * 1_000 + millis - offset * 60_000)
}

fn parse_date(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    let fits = parts.next().is_none() && (1..=12).contains(&month) && (1..=31).contains(&day);
    fits.then(|| days(year, month, day))
}

fn parse_time(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second = parts.next().map_or(Some(0), number)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let thousandths: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some(((hour * 60 + minute) * 60 + second) * 1_000 + number(&thousandths)?)
}

/// Minutes east of UTC.
fn parse_offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let digits: String = text[1..].chars().filter(|&c| c != ':').collect();
    let minutes = number(digits.get(..2)?)? * 60 + number(digits.get(2..4)?)?;
    Some(if text.starts_with('-') { -minutes } else { minutes })
}

fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn time_of_day(seconds: i64) -> (i64, i64, i64) {
    let seconds = seconds.rem_euclid(DAY);
    (seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day of a number of days since 1970. A year is counted from March, so that the
/// leap day comes last; 400 years have 146 097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`date`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000+00:00");
        assert_eq!(rfc3339(951_782_400_001), "2000-02-29T00:00:00.001+00:00");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999+00:00");
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn every_day_of_four_centuries_survives() {
        for day in -200_000..200_000 {
            let (year, month, of_month) = date(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn what_python_writes_is_read() {
        for (text, millis) in [
            ("1970-01-01T00:00:01", 1_000),
            ("1970-01-01 00:00:01.5", 1_500),
            ("1970-01-01T00:00:01.123456", 1_123),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:00:00-0100", 0),
            ("1970-01-02", 86_400_000),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(parse(text), Some(millis), "{text}");
        }
        for text in
            ["", "yesterday", "1970-13-01", "1970-01-01T25:00:00", "1970-01-01T00:00:00+1", "é970-01-01é"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&rfc3339(1_795_251_337_120)), Some(1_795_251_337_120));
    }
}
