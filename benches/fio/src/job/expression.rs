//! Arithmetic in values: `(4k*2+1)`, with fio's operators `+ - * / % ^` and parentheses.
//!
//! Pure; recursive descent with a limit on depth, so that no text exhausts the stack.

const DEPTH_MAX: u32 = 64;

/// The value, or nothing when the text is not an expression. `number` reads an operand with its suffix.
pub(crate) fn evaluate(text: &str, number: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
    let mut reader = Reader { rest: text, number };
    let value = reader.sum(0)?;
    (reader.rest.trim().is_empty() && value.is_finite()).then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
    number: &'a dyn Fn(&str) -> Option<f64>,
}

impl Reader<'_> {
    fn take(&mut self, operators: &[char]) -> Option<char> {
        let rest = self.rest.trim_start();
        let operator = rest.chars().next().filter(|c| operators.contains(c))?;
        self.rest = &rest[1..];
        Some(operator)
    }

    fn sum(&mut self, depth: u32) -> Option<f64> {
        let mut value = self.product(depth)?;
        while let Some(operator) = self.take(&['+', '-']) {
            let other = self.product(depth)?;
            value = if operator == '+' { value + other } else { value - other };
        }
        Some(value)
    }

    fn product(&mut self, depth: u32) -> Option<f64> {
        let mut value = self.power(depth)?;
        while let Some(operator) = self.take(&['*', '/', '%']) {
            let other = self.power(depth)?;
            value = match operator {
                '*' => value * other,
                _ if other == 0.0 => return None,
                '/' => value / other,
                _ => value % other,
            };
        }
        Some(value)
    }

    fn power(&mut self, depth: u32) -> Option<f64> {
        let base = self.operand(depth)?;
        match self.take(&['^']) {
            Some(_) if depth < DEPTH_MAX => Some(base.powf(self.power(depth + 1)?)),
            Some(_) => None,
            None => Some(base),
        }
    }

    fn operand(&mut self, depth: u32) -> Option<f64> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.take(&['-']).is_some() {
            return Some(-self.operand(depth + 1)?);
        }
        if self.take(&['(']).is_some() {
            let value = self.sum(depth + 1)?;
            return self.take(&[')']).map(|_| value);
        }
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
        self.rest = &rest[end..];
        (self.number)(&rest[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<f64> {
        evaluate(text, &|number| number.parse().ok())
    }

    #[test]
    fn precedence_is_that_of_arithmetic() {
        assert_eq!(of("(1+2*3)"), Some(7.0));
        assert_eq!(of("((1+2)*3)"), Some(9.0));
        assert_eq!(of("(2^3^2)"), Some(512.0));
        assert_eq!(of("(7%4-1)"), Some(2.0));
        assert_eq!(of("8 * 1024"), Some(8192.0));
    }

    #[test]
    fn deep_nesting_and_division_by_zero_are_no_values() {
        assert_eq!(of(&"(".repeat(100_000)), None);
        assert_eq!(of(&format!("1{}", "^1".repeat(100_000))), None);
        assert_eq!(of("(1/0)"), None);
        assert_eq!(of("(1+)"), None);
    }
}
