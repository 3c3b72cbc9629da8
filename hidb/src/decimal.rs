//! Unscaled decimals in `i128`: powers of ten, rescaling, rounding, text and float forms.
//!
//! Owns the arithmetic that needs to know about scales. A decimal value is `unscaled / 10^scale`.
//!
//! Invariants
//! - Every function is total: what does not fit in 38 digits (or the wanted precision) is `None`.
//! - Rounding is half away from zero, everywhere (docs/semantics.md).
//!
//! Called by `cast`, `plan::build`, `plan::fold`, the engine and the client's printers.

use crate::types::DECIMAL_PRECISION_MAX;

const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// `10^exponent` for exponents up to 38, else `None`.
#[inline]
pub fn power_of_ten(exponent: u8) -> Option<i128> {
    POWERS.get(usize::from(exponent)).copied()
}

/// The greatest unscaled value of `precision` digits: `10^precision - 1`. Precisions above 38 count as 38.
#[inline]
pub fn unscaled_max(precision: u8) -> i128 {
    POWERS[usize::from(precision.min(DECIMAL_PRECISION_MAX))] - 1
}

/// Whether an unscaled value has at most `precision` digits.
#[inline]
pub fn fits(unscaled: i128, precision: u8) -> bool {
    let max = unscaled_max(precision);
    (-max..=max).contains(&unscaled)
}

/// How many decimal digits an unscaled value has; 1 for zero.
pub fn digits(unscaled: i128) -> u8 {
    let magnitude = unscaled.unsigned_abs();
    (1..=38u8).find(|&count| magnitude < POWERS[usize::from(count)].unsigned_abs()).unwrap_or(39)
}

/// `numerator / denominator` rounded half away from zero. `None` for a zero denominator or overflow.
#[inline]
pub fn divide_rounded(numerator: i128, denominator: i128) -> Option<i128> {
    let quotient = numerator.checked_div(denominator)?;
    let remainder = numerator.checked_rem(denominator)?.unsigned_abs();
    let magnitude = denominator.unsigned_abs();
    // remainder >= magnitude / 2 without overflowing the doubling.
    if remainder >= magnitude - remainder {
        let away = if (numerator < 0) == (denominator < 0) { 1 } else { -1 };
        quotient.checked_add(away)
    } else {
        Some(quotient)
    }
}

/// The same number at another scale; digits that are dropped round half away from zero. `None` when the
/// result does not fit in `i128`.
#[inline]
pub fn rescale(unscaled: i128, from_scale: u8, to_scale: u8) -> Option<i128> {
    if to_scale >= from_scale {
        match power_of_ten(to_scale - from_scale) {
            Some(power) => unscaled.checked_mul(power),
            None => (unscaled == 0).then_some(0),
        }
    } else {
        match power_of_ten(from_scale - to_scale) {
            Some(power) => divide_rounded(unscaled, power),
            None => Some(0),
        }
    }
}

/// The same number at another scale, only if nothing is lost.
pub fn rescale_exact(unscaled: i128, from_scale: u8, to_scale: u8) -> Option<i128> {
    match rescale_floor(unscaled, from_scale, to_scale)? {
        (value, true) => Some(value),
        _ => None,
    }
}

/// The greatest number of the wanted scale that is not above the given one, and whether it equals it.
/// `None` when it does not fit in `i128`.
pub fn rescale_floor(unscaled: i128, from_scale: u8, to_scale: u8) -> Option<(i128, bool)> {
    if to_scale >= from_scale {
        return rescale(unscaled, from_scale, to_scale).map(|value| (value, true));
    }
    match power_of_ten(from_scale - to_scale) {
        Some(power) => Some((unscaled.div_euclid(power), unscaled.rem_euclid(power) == 0)),
        None => Some((if unscaled < 0 { -1 } else { 0 }, unscaled == 0)),
    }
}

/// Reads a plain or exponent decimal (`-12.340`, `.5`, `1e3`) with all its digits: unscaled value and
/// scale. `None` when it is not a number or has more than 38 digits or decimal places.
pub fn parse(text: &str) -> Option<(i128, u8)> {
    let (negative, body) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], body[at + 1..].parse::<i32>().ok()?),
        None => (body, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut unscaled = 0i128;
    for byte in whole.bytes().chain(fraction.bytes()) {
        if !byte.is_ascii_digit() {
            return None;
        }
        unscaled = unscaled.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
    }
    let scale = i64::try_from(fraction.len()).ok()? - i64::from(exponent);
    let (unscaled, scale) = if scale < 0 {
        (rescale(unscaled, 0, u8::try_from(-scale).ok()?)?, 0)
    } else if unscaled == 0 && scale > i64::from(DECIMAL_PRECISION_MAX) {
        (0, DECIMAL_PRECISION_MAX)
    } else {
        (unscaled, u8::try_from(scale).ok().filter(|scale| *scale <= DECIMAL_PRECISION_MAX)?)
    };
    fits(unscaled, DECIMAL_PRECISION_MAX).then_some((if negative { -unscaled } else { unscaled }, scale))
}

/// Reads a decimal at a wanted scale; surplus decimal places round half away from zero.
pub fn parse_at_scale(text: &str, scale: u8) -> Option<i128> {
    if let Some((unscaled, from_scale)) = parse(text) {
        return rescale(unscaled, from_scale, scale).filter(|value| fits(*value, DECIMAL_PRECISION_MAX));
    }
    // More digits than fit: drop decimal places one by one beyond the one that decides the rounding.
    let (whole, fraction) = text.split_once('.')?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let kept = usize::from(scale) + 1;
    let (unscaled, from_scale) = parse(&format!("{whole}.{}", fraction.get(..kept)?))?;
    rescale(unscaled, from_scale, scale).filter(|value| fits(*value, DECIMAL_PRECISION_MAX))
}

/// The plain text form with exactly `scale` decimal places.
pub fn format(unscaled: i128, scale: u8) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let magnitude = unscaled.unsigned_abs().to_string();
    let scale = usize::from(scale);
    if scale == 0 {
        return format!("{sign}{magnitude}");
    }
    let padded = format!("{magnitude:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

/// The nearest `f64` (correctly rounded).
#[inline]
pub fn to_f64(unscaled: i128, scale: u8) -> f64 {
    const EXACT: i128 = 1 << 53;
    if scale == 0 {
        unscaled as f64
    } else if (-EXACT..=EXACT).contains(&unscaled) && scale <= 22 {
        // Both are exact in f64, so one division rounds once.
        unscaled as f64 / POWERS[usize::from(scale)] as f64
    } else {
        format(unscaled, scale).parse().unwrap_or(f64::NAN)
    }
}

/// The exact binary value rounded half away from zero to `scale` decimal places. `None` for NaN,
/// infinities and what has more than 38 digits.
pub fn from_f64(value: f64, scale: u8) -> Option<i128> {
    if !value.is_finite() || scale > DECIMAL_PRECISION_MAX {
        return None;
    }
    if value == 0.0 {
        return Some(0);
    }
    let bits = value.to_bits();
    let biased = ((bits >> 52) & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (mantissa, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
    // value * 10^scale = mantissa * 5^scale * 2^(exponent + scale); the product has at most 142 bits.
    let fives = 5u128.pow(u32::from(scale));
    let low_product = u128::from(mantissa) * (fives & u128::from(u64::MAX));
    let high = u128::from(mantissa) * (fives >> 64) + (low_product >> 64);
    let low = low_product as u64;
    let shift = exponent + i32::from(scale);
    let magnitude = if shift >= 0 {
        if high >> 64 != 0 {
            return None;
        }
        let total = (high << 64) | u128::from(low);
        let shift = u32::try_from(shift).ok()?;
        if shift > total.leading_zeros() {
            return None;
        }
        total << shift
    } else {
        let shift = shift.unsigned_abs();
        let bit = |at: u32| match at {
            0..64 => u128::from(low >> at & 1),
            64..192 => high >> (at - 64) & 1,
            _ => 0,
        };
        let floor = match shift {
            0..64 => {
                let kept = high.checked_shl(64 - shift).filter(|shifted| shifted >> (64 - shift) == high)?;
                kept | u128::from(low >> shift)
            }
            64..192 => high >> (shift - 64),
            _ => 0,
        };
        floor + bit(shift - 1)
    };
    let magnitude = i128::try_from(magnitude).ok()?;
    fits(magnitude, DECIMAL_PRECISION_MAX).then_some(if value < 0.0 { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounding_is_half_away_from_zero() {
        for (value, from, to, expected) in [
            (25, 1, 0, 3),
            (-25, 1, 0, -3),
            (24, 1, 0, 2),
            (-24, 1, 0, -2),
            (5, 2, 0, 0),
            (50, 2, 0, 1),
            (7, 0, 2, 700),
        ] {
            assert_eq!(rescale(value, from, to), Some(expected), "{value} {from} {to}");
        }
        assert_eq!(divide_rounded(7, -2), Some(-4));
        assert_eq!(divide_rounded(i128::MIN, -1), None);
        assert_eq!(divide_rounded(1, 0), None);
        assert_eq!(divide_rounded(i128::MAX, i128::MAX), Some(1));
    }

    #[test]
    fn floor_says_whether_it_is_exact() {
        assert_eq!(rescale_floor(55, 3, 2), Some((5, false)));
        assert_eq!(rescale_floor(-55, 3, 2), Some((-6, false)));
        assert_eq!(rescale_floor(50, 3, 2), Some((5, true)));
        assert_eq!(rescale_exact(55, 3, 2), None);
        assert_eq!(rescale_exact(5, 0, 2), Some(500));
        assert_eq!(rescale_floor(i128::MAX, 0, 1), None);
    }

    #[test]
    fn text_forms() {
        for (text, expected) in [
            ("0.05", Some((5, 2))),
            ("-12.340", Some((-12340, 3))),
            (".5", Some((5, 1))),
            ("7.", Some((7, 0))),
            ("1e3", Some((1000, 0))),
            ("1.25e1", Some((125, 1))),
            ("12e-3", Some((12, 3))),
            ("", None),
            (".", None),
            ("-", None),
            ("1.2.3", None),
            ("1e99", None),
            ("12345678901234567890123456789012345678", Some((12345678901234567890123456789012345678, 0))),
            ("123456789012345678901234567890123456789", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(format(5, 2), "0.05");
        assert_eq!(format(-12340, 3), "-12.340");
        assert_eq!(format(7, 0), "7");
        assert_eq!(parse_at_scale("2.675", 2), Some(268));
        assert_eq!(parse_at_scale(&format!("1.{}", "3".repeat(60)), 2), Some(133));
    }

    #[test]
    fn floats_convert_exactly() {
        assert_eq!(from_f64(0.125, 2), Some(13));
        assert_eq!(from_f64(-0.125, 2), Some(-13));
        // 2.675 is below 2.675 in binary.
        assert_eq!(from_f64(2.675, 2), Some(267));
        assert_eq!(from_f64(1e37, 0), Some(9999999999999999538762658202121142272));
        assert_eq!(from_f64(1e38, 1), None);
        assert_eq!(from_f64(5e-324, 38), Some(0));
        assert_eq!(from_f64(f64::NAN, 2), None);
        assert_eq!(to_f64(123456789012345678901234567890, 20).to_string(), "1234567890.1234567");
    }

    proptest! {
        #[test]
        fn parse_reads_what_format_writes(unscaled in any::<i64>(), scale in 0u8..=38) {
            prop_assert_eq!(parse(&format(i128::from(unscaled), scale)), Some((i128::from(unscaled), scale)));
        }

        #[test]
        fn from_f64_agrees_with_the_exact_decimal_expansion(bits in any::<u64>(), scale in 0u8..=10) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite() && value.abs() < 1e25);
            // The standard library prints the exact expansion; 1100 places hold every f64.
            let text = format!("{value:.1100}");
            let (whole, fraction) = text.split_once('.').unwrap();
            let kept: i128 = format!("{}{}", whole, &fraction[..usize::from(scale)]).replace('-', "").parse().unwrap();
            let up = fraction.as_bytes()[usize::from(scale)] >= b'5';
            let magnitude = kept + i128::from(up);
            prop_assert_eq!(from_f64(value, scale), Some(if value < 0.0 { -magnitude } else { magnitude }));
        }

        #[test]
        fn to_f64_is_correctly_rounded(unscaled in any::<i128>(), shift in 0u32..127, scale in 0u8..=38) {
            let unscaled = unscaled >> shift;
            prop_assume!(fits(unscaled, 38));
            let expected: f64 = format!("{unscaled}e-{scale}").parse().unwrap();
            prop_assert_eq!(to_f64(unscaled, scale), expected);
        }
    }
}
