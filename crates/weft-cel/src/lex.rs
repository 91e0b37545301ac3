//! Characters to tokens.

use crate::CelError;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Name(String),
    Int(i64),
    Double(f64),
    Text(String),
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

/// Longer signs first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "!", "<",
    ">", "+", "-", "*", "/", "%",
];

/// Tokens with their positions; the last is the end.
pub(crate) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, CelError> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let first = rest.as_bytes()[0];
        let (token, taken) = match first {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'"' | b'\'' => quoted(rest, at, false)?,
            b'r' | b'R' if rest[1..].starts_with(['"', '\'']) => {
                let (token, taken) = quoted(&rest[1..], at + 1, true)?;
                (token, taken + 1)
            }
            b'0'..=b'9' => number(rest, at)?,
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let end = rest
                    .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
                    .unwrap_or(rest.len());
                (Token::Name(rest[..end].to_owned()), end)
            }
            _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
                Some(sign) => (Token::Sign(sign), sign.len()),
                None => {
                    let char = rest.chars().next().unwrap_or_default();
                    return Err(CelError { at, reason: format!("unexpected {char:?}") });
                }
            },
        };
        found.push((at, token));
        at += taken;
    }
    found.push((text.len(), Token::End));
    Ok(found)
}

fn number(rest: &str, at: usize) -> Result<(Token, usize), CelError> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut end = digits(rest);
    let fraction = rest[end..].strip_prefix('.').map_or(0, digits);
    if fraction > 0 {
        end += 1 + fraction;
        return match rest[..end].parse() {
            Ok(value) => Ok((Token::Double(value), end)),
            Err(_) => Err(CelError { at, reason: "not a number".into() }),
        };
    }
    match rest[..end].parse() {
        // `200u` is an unsigned 200: the same to us.
        Ok(value) => {
            Ok((Token::Int(value), end + usize::from(rest[end..].starts_with(['u', 'U']))))
        }
        Err(_) => Err(CelError { at, reason: "the number is too large".into() }),
    }
}

fn quoted(rest: &str, at: usize, raw: bool) -> Result<(Token, usize), CelError> {
    let mut chars = rest.char_indices();
    let quote = chars.next().map(|(_, quote)| quote);
    let mut text = String::new();
    while let Some((index, char)) = chars.next() {
        match char {
            char if Some(char) == quote => return Ok((Token::Text(text), index + 1)),
            '\\' if !raw => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, 'r')) => text.push('\r'),
                Some((_, same @ ('\\' | '\'' | '"' | '`' | '?'))) => text.push(same),
                _ => {
                    return Err(CelError {
                        at: at + index,
                        reason: "this escape is not supported".into(),
                    });
                }
            },
            char => text.push(char),
        }
    }
    Err(CelError { at, reason: "the text is not closed".into() })
}
