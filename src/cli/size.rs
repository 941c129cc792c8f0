//! Sizes and times as people write and read them.

use std::time::Duration;

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Parses `4MiB`, `1.5GiB`, `2GB` or `123` (bytes); for clap's `value_parser`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size: write 123, 64KiB, 4MiB, 1.5GiB or 2GB");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim();
    let factor = match unit {
        "" => 1,
        _ => UNITS.iter().find(|(u, _)| u.eq_ignore_ascii_case(unit)).ok_or_else(bad)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(bad());
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let bytes = digits.checked_mul(factor.into()).ok_or_else(bad)? / scale;
    u64::try_from(bytes).map_err(|_| bad())
}

/// Parses `90s`, `15m`, `2h`, `1d` or `1h30m`; for clap's `value_parser`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|e| format!("`{text}` is not a duration ({e}): write 90s, 15m, 2h, 1d or 1h30m"))
}

/// Shows bytes with three digits: `9.44 MiB`, `512 B`.
#[expect(clippy::cast_precision_loss, reason = "three digits for people")]
pub(crate) fn show(bytes: u64) -> String {
    for (unit, factor) in &UNITS[..4] {
        if bytes >= *factor {
            let value = bytes as f64 / *factor as f64;
            let digits = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

/// Shows bytes per second.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "three digits for people"
)]
pub(crate) fn rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(1e-9);
    format!("{}/s", show((bytes as f64 / seconds) as u64))
}

/// Shows an age in its largest unit: `42s`, `7m`, `3h`, `12d`.
pub(crate) fn age(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..86_400 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// Counts things: `1 leaf`, `2 leaves`.
pub(crate) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
