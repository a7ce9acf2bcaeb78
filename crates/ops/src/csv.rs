//! The audit for spreadsheets.

use crate::audit::Actions;

const HEADER: &str = "id,at,actor,action,target,reason,before,after\r\n";

impl Actions {
    /// As RFC 4180, with a header.
    #[must_use]
    pub fn csv(&self) -> String {
        HEADER.to_owned() + &self.csv_rows()
    }

    /// The same without the header.
    pub(crate) fn csv_rows(&self) -> String {
        let mut out = String::new();
        for action in &self.actions {
            out.push_str(&action.id.to_string());
            for text in [
                action.at.as_deref(),
                Some(&action.actor),
                Some(&action.action),
                Some(&action.target),
                action.reason.as_deref(),
                action.before.as_deref(),
                action.after.as_deref(),
            ] {
                out.push(',');
                push_field(&mut out, text.unwrap_or_default());
            }
            out.push_str("\r\n");
        }
        out
    }
}

/// Always quoted. A text that a spreadsheet would take for a formula begins with an apostrophe.
fn push_field(out: &mut String, text: &str) {
    out.push('"');
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        out.push('\'');
    }
    out.push_str(&text.replace('"', "\"\""));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_formulas_are_texts() {
        let field = |text: &str| {
            let mut out = String::new();
            push_field(&mut out, text);
            out
        };
        assert_eq!(field(""), r#""""#);
        assert_eq!(field("a,\"b\"\r\nc"), "\"a,\"\"b\"\"\r\nc\"");
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1", "\n=1"] {
            assert!(field(formula).starts_with("\"'"), "{formula:?}");
        }
        assert_eq!(field("a=1"), "\"a=1\"");
    }
}
