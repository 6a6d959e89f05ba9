//! The canonical form of JSON (RFC 8785, "JCS"): one text for one value, so that both ends of the
//! key-broker protocol hash the same bytes.

use std::fmt::Write as _;

use serde_json::Value;

/// Deepest nesting that is written. `serde_json` reads no deeper.
pub const DEPTH_LIMIT: usize = 128;

/// Why a value has no canonical form here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JcsError {
    /// Nested deeper than [`DEPTH_LIMIT`].
    #[error("JSON is nested deeper than {DEPTH_LIMIT} levels")]
    Depth,
    /// A number that IEEE 754 doubles cannot hold.
    #[error("JSON holds a number that no double can hold")]
    Number,
}

/// The canonical text of `value`: members sorted by UTF-16 code units, no white space, strings and
/// numbers as ECMAScript writes them. Integers beyond 2^53 lose digits, as RFC 8785 has it.
///
/// # Errors
/// If it is nested too deeply, or a number is out of range.
pub fn canonical(value: &Value) -> Result<String, JcsError> {
    let mut text = String::new();
    write_value(&mut text, value, DEPTH_LIMIT)?;
    Ok(text)
}

fn write_value(text: &mut String, value: &Value, depth: usize) -> Result<(), JcsError> {
    let depth = depth.checked_sub(1).ok_or(JcsError::Depth)?;
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(truth) => text.push_str(if *truth { "true" } else { "false" }),
        Value::Number(number) => {
            let double = number.as_f64().filter(|double| double.is_finite());
            write_number(text, double.ok_or(JcsError::Number)?);
        }
        Value::String(string) => write_string(text, string),
        Value::Array(elements) => {
            text.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_value(text, element, depth)?;
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            text.push('{');
            for (index, (name, member)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_string(text, name);
                text.push(':');
                write_value(text, member, depth)?;
            }
            text.push('}');
        }
    }
    Ok(())
}

/// RFC 8785, section 3.2.2.2.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\u{c}' => text.push_str("\\f"),
            '\r' => text.push_str("\\r"),
            c if c < ' ' => write!(text, "\\u{:04x}", u32::from(c)).expect("into memory"),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// ECMAScript's `Number::toString` for base 10 (RFC 8785, section 3.2.2.3): the shortest digits that
/// give the same double, which is what Rust's `{:e}` writes, laid out by the place of the point.
fn write_number(text: &mut String, number: f64) {
    if number == 0.0 {
        // also for -0
        text.push('0');
        return;
    }
    let shortest = format!("{:e}", number.abs());
    let length = shortest.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    // Of two equally near texts ECMAScript takes the even one.
    let nearest = format!("{:.*e}", length - 1, number.abs());
    let scientific = if nearest.parse() == Ok(number.abs()) { nearest } else { shortest };
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a decimal exponent");
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let count = i32::try_from(digits.len()).expect("at most 17 digits");
    if number < 0.0 {
        text.push('-');
    }
    // The value is 0.DIGITS times ten to the power of `point`.
    let point = exponent + 1;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if (count..=21).contains(&point) {
        text.push_str(&digits);
        text.push_str(&zeros(point - count));
    } else if (1..=21).contains(&point) {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        text.push_str(&format!("{whole}.{fraction}"));
    } else if (-5..=0).contains(&point) {
        text.push_str(&format!("0.{}{digits}", zeros(-point)));
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        text.push_str(&format!("{first}{dot}{rest}e{exponent:+}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        canonical(&serde_json::from_str(text).unwrap()).unwrap()
    }

    /// RFC 8785, section 3.2.2 and 3.2.4.
    #[test]
    fn the_sample_of_the_specification() {
        let input = r#"{
          "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
          "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
          "literals": [null, true, false]
        }"#;
        assert_eq!(
            of(input),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
             \"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
    }

    /// RFC 8785, section 3.2.3.
    #[test]
    fn members_are_sorted_by_utf16() {
        let input = r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh",
            "1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#;
        assert_eq!(
            of(input),
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\
             \"\u{f6}\":\"Latin Small Letter O With Diaeresis\",\"\u{20ac}\":\"Euro Sign\",\
             \"\u{1f600}\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
        );
    }

    /// RFC 8785, appendix B: the bits of a double and its text.
    #[test]
    fn the_numbers_of_the_specification() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            let mut text = String::new();
            write_number(&mut text, f64::from_bits(bits));
            assert_eq!(text, expected, "{bits:x}");
        }
    }

    #[test]
    fn integers_keep_their_digits_up_to_the_limit_of_doubles() {
        assert_eq!(
            of("[9007199254740991,-1,100,0,18446744073709551615]"),
            "[9007199254740991,-1,100,0,18446744073709552000]"
        );
    }

    #[test]
    fn deep_values_are_refused() {
        let mut value = Value::Null;
        for _ in 0..DEPTH_LIMIT {
            value = Value::Array(vec![value]);
        }
        assert_eq!(canonical(&value), Err(JcsError::Depth));
    }
}
