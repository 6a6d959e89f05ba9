//! Resource quantities (`128Mi`, `0.5`, `100m`, `1e3`), exactly, and what the kubelet computes from them.

use crate::workload::LinuxResources;

/// A quantity that is not negative: `digits * 10^ten * 2^two`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantity {
    digits: u128,
    ten: i32,
    two: u32,
}

/// Digits that count in a quantity: enough for every number that Kubernetes can hold.
const DIGIT_LIMIT: usize = 21;
/// The largest exponent written out.
const EXPONENT_LIMIT: i32 = 24;

impl Quantity {
    pub(super) const ZERO: Self = Self { digits: 0, ten: 0, two: 0 };

    /// Reads a quantity; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "is no quantity: write a number such as 2, 0.5, 100m, 128Mi or 1e3";
        let unsigned = match text.as_bytes().first() {
            Some(b'-') => return Err("must not be negative"),
            Some(b'+') => &text[1..],
            _ => text,
        };
        let end = unsigned
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(FORM);
        }
        let (ten, two) = scale(suffix).ok_or(FORM)?;
        let fraction = fraction.trim_end_matches('0');
        let significant = format!("{whole}{fraction}");
        let significant = significant.trim_start_matches('0');
        if significant.len() > DIGIT_LIMIT || ten.abs() > EXPONENT_LIMIT {
            return Err("has more digits than Kubernetes can hold");
        }
        let digits =
            if significant.is_empty() { 0 } else { significant.parse().map_err(|_| FORM)? };
        // Leading zeros of the fraction count here too, so this is bounded by itself.
        let shift = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
        if shift > EXPONENT_LIMIT {
            return Err("has more digits than Kubernetes can hold");
        }
        let quantity = Self { digits, ten: ten - shift, two };
        quantity.scaled(0).ok_or("is larger than Kubernetes can hold")?;
        Ok(quantity)
    }

    /// Whole units, rounded up.
    pub(super) fn units(self) -> u64 {
        self.scaled(0).unwrap_or(u64::MAX)
    }

    /// Thousandths, rounded up; at most `i64::MAX`, as in Kubernetes.
    pub(super) fn thousandths(self) -> u64 {
        self.scaled(3).unwrap_or(i64::MAX.unsigned_abs())
    }

    /// Whether there is something behind the decimal point.
    pub(super) fn is_fractional(self) -> bool {
        self.scaled(3).is_some_and(|value| value % 1000 != 0)
    }

    /// `self * 10^places`, rounded up; none if it is above `i64::MAX`.
    fn scaled(self, places: i32) -> Option<u64> {
        let exponent = self.ten + places;
        let power = 10_u128.checked_pow(exponent.unsigned_abs());
        let value = self.digits.checked_mul(1_u128.checked_shl(self.two)?)?;
        let value = match power {
            _ if value == 0 => 0,
            Some(power) if exponent >= 0 => value.checked_mul(power)?,
            Some(power) => value.div_ceil(power),
            None if exponent < 0 => 1,
            None => return None,
        };
        u64::try_from(value).ok().filter(|&value| value <= i64::MAX.unsigned_abs())
    }
}

fn scale(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (exponent.parse().unwrap_or(i32::MAX / 2), 0)
        }
    })
}

/// The control group's settings that the kubelet derives from a container's resources, in thousandths and bytes.
pub(super) fn linux_resources(
    cpu_request: Option<u64>,
    cpu_limit: Option<u64>,
    memory_limit: Option<u64>,
) -> LinuxResources {
    const PERIOD: u64 = 100_000;
    let shares = cpu_request.or(cpu_limit).unwrap_or(0);
    let quota = match cpu_limit.unwrap_or(0) {
        0 => 0,
        limit => (limit.saturating_mul(PERIOD) / 1000).max(1000),
    };
    LinuxResources {
        cpu_shares: (shares.saturating_mul(1024) / 1000).clamp(2, 262_144),
        cpu_quota: i64::try_from(quota).unwrap_or(i64::MAX),
        cpu_period: PERIOD,
        memory_limit: memory_limit.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        for (text, units, thousandths) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("+2", 2, 2000),
            ("0.5", 1, 500),
            (".5", 1, 500),
            ("1.", 1, 1000),
            ("100m", 1, 100),
            ("1500m", 2, 1500),
            ("100u", 1, 1),
            ("1n", 1, 1),
            ("128Mi", 134_217_728, 134_217_728_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("0.1Ki", 103, 102_400),
            ("1e3", 1000, 1_000_000),
            ("1E3", 1000, 1_000_000),
            ("12e-1", 2, 1200),
            ("1E", 1_000_000_000_000_000_000, 9_223_372_036_854_775_807),
            ("7Ei", 8_070_450_532_247_928_832, 9_223_372_036_854_775_807),
            ("128M", 128_000_000, 128_000_000_000),
            ("64k", 64_000, 64_000_000),
            ("0.000000000000000000000001", 1, 1),
            ("000000000000000000000000000001", 1, 1000),
            ("9223372036854775807", i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs()),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!(quantity.units(), units, "{text}");
            assert_eq!(quantity.thousandths(), thousandths, "{text}");
        }
        assert!(Quantity::parse("128m").unwrap().is_fractional());
        assert!(!Quantity::parse("128.0").unwrap().is_fractional());
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "-1",
            "Mi",
            "1mi",
            "1 Mi",
            "1.2.3",
            "1e",
            "1e+",
            "1e1.5",
            "0x10",
            "1K",
            "1_000",
            "8Ei",
            "1e25",
            "1e999999999999",
            "9223372036854775808",
            ".",
            "infinity",
            "1Mi1",
            "ä",
            "1e-99",
            "12345678901234567890123",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn control_groups_are_the_kubelets() {
        let shares = |request, limit| linux_resources(request, limit, None).cpu_shares;
        assert_eq!(shares(None, None), 2);
        assert_eq!(shares(Some(1), None), 2);
        assert_eq!(shares(Some(250), Some(1000)), 256);
        assert_eq!(shares(None, Some(500)), 512);
        assert_eq!(shares(Some(0), Some(500)), 2);
        assert_eq!(shares(Some(1_000_000), None), 262_144);
        let quota = |limit| linux_resources(None, limit, None).cpu_quota;
        assert_eq!(quota(None), 0);
        assert_eq!(quota(Some(1)), 1000);
        assert_eq!(quota(Some(500)), 50_000);
        assert_eq!(quota(Some(2000)), 200_000);
        assert_eq!(linux_resources(None, None, Some(7)).memory_limit, 7);
        assert_eq!(linux_resources(None, None, None).cpu_period, 100_000);
    }
}
