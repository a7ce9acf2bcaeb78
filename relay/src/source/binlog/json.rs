//! MySQL's binary JSON as the server's own text. No IO.
//!
//! A payload is published as its bytes, and a consumer tells two messages of one id apart by them: what
//! the tail renders and what a SELECT brings must be the same to the byte.

use mysql_async::binlog::jsonb::{
    Array, ComplexValue, JsonDom, JsonNumber, JsonScalar, Object, StorageFormat, Value,
};

/// The server's own limit.
const DEPTH_MAX: usize = 100;
/// Bytes of one text. Binary JSON that is damaged can name the same part again and again.
const TEXT_MAX: usize = 64 << 20;

/// The text of a document.
///
/// # Errors
/// What it has that can't be rendered as the server does: a pass reads the row then.
pub(super) fn text(value: &Value<'_>) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    render(value, 0, &mut out)?;
    Ok(out)
}

fn render(value: &Value<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
    if depth > DEPTH_MAX || out.len() > TEXT_MAX {
        return Err(format!("JSON over {DEPTH_MAX} levels or {TEXT_MAX} bytes"));
    }
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(value) => out.extend(value.to_string().bytes()),
        Value::I16(value) => out.extend(value.to_string().bytes()),
        Value::U16(value) => out.extend(value.to_string().bytes()),
        Value::I32(value) => out.extend(value.to_string().bytes()),
        Value::U32(value) => out.extend(value.to_string().bytes()),
        Value::I64(value) => out.extend(value.to_string().bytes()),
        Value::U64(value) => out.extend(value.to_string().bytes()),
        Value::F64(value) => out.extend(double(*value).bytes()),
        Value::String(text) => quote(text.str_raw(), out),
        Value::SmallArray(array) => elements(array, depth, out)?,
        Value::LargeArray(array) => elements(array, depth, out)?,
        Value::SmallObject(object) => members(object, depth, out)?,
        Value::LargeObject(object) => members(object, depth, out)?,
        Value::Opaque(_) => out.extend(opaque(value)?.bytes()),
    }
    Ok(())
}

fn elements<T: StorageFormat>(
    array: &ComplexValue<'_, T, Array>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    out.push(b'[');
    for at in 0..array.element_count() {
        if at > 0 {
            out.extend(b", ");
        }
        let element = array.elem_at(at).map_err(|err| err.to_string())?;
        let element = element.ok_or("a JSON array ends early")?;
        render(&element, depth + 1, out)?;
    }
    out.push(b']');
    Ok(())
}

fn members<T: StorageFormat>(
    object: &ComplexValue<'_, T, Object>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    out.push(b'{');
    for (at, member) in object.iter().enumerate() {
        if at > 0 {
            out.extend(b", ");
        }
        let (key, value) = member.map_err(|err| err.to_string())?;
        quote(key.value_raw(), out);
        out.extend(b": ");
        render(&value, depth + 1, out)?;
    }
    out.push(b'}');
    Ok(())
}

/// Decimals as they are; other SQL types, dates among them, are left to a SELECT.
fn opaque(value: &Value<'_>) -> Result<String, String> {
    match value.clone().parse() {
        Ok(JsonDom::Scalar(JsonScalar::Number(JsonNumber::Decimal(value)))) => {
            Ok(value.to_string())
        }
        Ok(_) => Err("JSON with a value of an SQL type".into()),
        Err(err) => Err(format!("JSON with a value that can't be read: {err}")),
    }
}

fn quote(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend(b"\\\""),
            b'\\' => out.extend(b"\\\\"),
            0x08 => out.extend(b"\\b"),
            0x0c => out.extend(b"\\f"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            0..0x20 => out.extend(format!("\\u{byte:04x}").bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// As the servers' `my_gcvt`: the shortest digits that read back as the number, with an exponent where
/// the point would be behind them, over 15 to the right of the first, or over 14 to its left.
fn double(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    let point = exponent + 1;
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let is_within = usize::try_from(point).is_ok_and(|point| point < digits.len());
    if !is_within && !(-14..=15).contains(&point) {
        return scientific;
    }
    match usize::try_from(point) {
        Ok(point @ 1..) if point < digits.len() => {
            let (whole, part) = digits.split_at(point);
            format!("{sign}{whole}.{part}")
        }
        Ok(point @ 1..) => format!("{sign}{digits:0<point$}.0"),
        _ => {
            let zeros = usize::try_from(-point).unwrap_or(0);
            if digits == "0" {
                return format!("{sign}0.0");
            }
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_written_as_the_server_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (100.0, "100.0"),
            (0.1, "0.1"),
            (0.001, "0.001"),
            (1e15, "1e15"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1e-15, "0.000000000000001"),
            (1.5e-16, "1.5e-16"),
            (-3_259_366_767_722_523.5, "-3259366767722523.5"),
            (1_234_567_890_123_456.0, "1.234567890123456e15"),
            (1e14, "100000000000000.0"),
            (1.5e300, "1.5e300"),
        ] {
            assert_eq!(double(value), text);
        }
    }

    #[test]
    fn texts_are_escaped_as_the_server_escapes_them() {
        let mut out = Vec::new();
        quote("a\"\\\u{8}\u{c}\n\r\t\u{1}/é".as_bytes(), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#""a\"\\\b\f\n\r\t\u0001/é""#
        );
    }
}
