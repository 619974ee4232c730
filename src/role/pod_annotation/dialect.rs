//! Which expressions mean here what they mean to Go.
//!
//! kube2iam and kiam match with Go's `regexp`, we with `regex-lite`. Of one text they can make two expressions: `\>` is a bracket to
//! Go and the end of a word here, `(?x)` nothing to Go. An expression that is not surely one and the same is refused, and named.

use std::iter::Peekable;
use std::str::Chars;

/// Go's largest repetition.
const MOST: u32 = 1000;

/// Does the expression mean the same to both, if it is one at all? Whether it is, the compiler says.
///
/// # Errors
/// The part that does not.
pub(crate) fn common(expression: &str) -> Result<(), String> {
    // Go knows the cases of all letters, we those of ASCII.
    if let Some(beyond) = expression.chars().find(|read| !read.is_ascii()) {
        return Err(format!("{beyond:?}"));
    }
    let mut rest = expression.chars().peekable();
    // A repetition was read, of which there is no repetition.
    let mut repeated = false;
    while let Some(read) = rest.next() {
        let again = repeated;
        repeated = false;
        match read {
            '\\' => escape(&mut rest)?,
            '[' => class(&mut rest)?,
            // Flags alone are nothing to repeat: what stands before them would be.
            '(' if rest.next_if_eq(&'?').is_some() => repeated = group(&mut rest)?,
            '*' | '+' | '?' | '{' => {
                if again {
                    return Err(format!("{read:?} after a repetition"));
                }
                if read == '{' {
                    counted(&mut rest)?;
                }
                // Lazy or not, it matches the same texts.
                rest.next_if_eq(&'?');
                repeated = true;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What follows a backslash.
fn escape(rest: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    match rest.next() {
        // Both refuse it.
        None => Ok(()),
        Some(
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'A' | 'z' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'b' | 'B',
        ) => Ok(()),
        Some(sign) if sign.is_ascii_punctuation() && !matches!(sign, '<' | '>') => Ok(()),
        Some(other) => Err(format!("\\{other}")),
    }
}

/// What follows `(?`. Is it flags alone, and no group?
fn group(rest: &mut Peekable<Chars<'_>>) -> Result<bool, String> {
    let mut flags = String::new();
    for read in rest.by_ref() {
        match read {
            'i' | 'm' | 's' | 'U' | '-' => flags.push(read),
            ':' => return Ok(false),
            ')' if !flags.is_empty() => return Ok(true),
            other => return Err(format!("(?{flags}{other}")),
        }
    }
    Ok(false)
}

/// What follows `{`.
fn counted(rest: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    let mut bounds = String::new();
    for read in rest.by_ref() {
        if read == '}' {
            break;
        }
        bounds.push(read);
    }
    // As it is written, so without zeros before it.
    let number = |text: &str| text.parse().is_ok_and(|count: u32| count <= MOST && count.to_string() == text);
    let (least, most) = bounds.split_once(',').unwrap_or((&bounds, ""));
    if number(least) && (most.is_empty() || number(most)) {
        return Ok(());
    }
    Err(format!("{{{bounds:.20}}}"))
}

/// What follows `[`.
fn class(rest: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    rest.next_if_eq(&'^');
    // As the first it stands for itself.
    let mut last = rest.next_if_eq(&']');
    while let Some(read) = rest.next() {
        match read {
            ']' => return Ok(()),
            // To Go it may be the end of a range.
            '[' if last == Some('-') => return Err("-[ in a class".into()),
            '[' => {
                named(rest)?;
                last = None;
                continue;
            }
            '&' | '-' | '~' if last == Some(read) => return Err(format!("{read}{read} in a class")),
            '\\' => {
                let escaped = rest.peek().copied();
                escape(rest)?;
                if escaped.is_some_and(|escaped| escaped.is_ascii_alphabetic()) {
                    no_range(rest)?;
                }
                last = None;
                continue;
            }
            _ => {}
        }
        last = Some(read);
    }
    Ok(())
}

/// What follows `[` in a class: `:alpha:]`, and nothing else.
fn named(rest: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    let mut name = String::new();
    for read in rest.by_ref() {
        name.push(read);
        if read == ']' {
            break;
        }
    }
    let letters = name.strip_prefix(':').and_then(|name| name.strip_suffix(":]"));
    if letters
        .is_some_and(|letters| letters.trim_start_matches('^').bytes().all(|byte| byte.is_ascii_lowercase()))
    {
        return no_range(rest);
    }
    Err(format!("[{name:.20} in a class"))
}

/// A class is no end of a range: here that is a mistake. A last `-` is one by itself.
fn no_range(rest: &Peekable<Chars<'_>>) -> Result<(), String> {
    let mut next = rest.clone();
    if next.next() == Some('-') && next.next() != Some(']') {
        return Err("a range of classes".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use regex_lite::Regex;

    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/team/app-1";

    /// Measured with Go 1.26.8: does `regexp.MatchString` find it in the role? `None` is an error. Hundreds of thousands of random
    /// expressions were compared in the same way, and none that is taken here differs but for Go's limit on repetitions in
    /// repetitions.
    #[test]
    fn what_is_common_matches_as_gos_regexp_does() {
        for (expression, go) in [
            (".*", Some(true)),
            ("^.*$", Some(true)),
            (".*/app-1", Some(true)),
            ("team", Some(true)),
            ("^team", Some(false)),
            (r"arn:aws:iam::\d{12}:role/[\w./-]+", Some(true)),
            ("arn:aws:iam::[[:digit:]]+:role/team/app-[0-9]", Some(true)),
            ("(?i)ARN:.*APP-1", Some(true)),
            ("(?:a|b)pp-1$", Some(true)),
            (r"[^\s]+", Some(true)),
            (r"^\S+\z", Some(true)),
            (r"app\-1", Some(true)),
            (r"team\/app", Some(true)),
            ("a{1,2}p{2}", Some(true)),
            ("ap+?-", Some(true)),
            (r"\bapp\b", Some(true)),
            (r"[\w-]+$", Some(true)),
            ("(?m)^arn", Some(true)),
            ("(?U).*", Some(true)),
            ("[]a]pp", Some(true)),
            ("^*", Some(true)),
            ("[", None),
            ("(app", None),
            ("app)", None),
            ("*", None),
            (r"app\", None),
        ] {
            assert_eq!(common(expression), Ok(()), "{expression}");
            let here = Regex::new(expression).ok().map(|expression| expression.is_match(ROLE));
            assert_eq!(here, go, "{expression}");
        }
    }

    /// Measured likewise; none of them is the same here.
    #[test]
    fn what_go_reads_otherwise_is_refused_and_named() {
        for (expression, part, go) in [
            (r"app-1\>", r"\>", Some(false)),
            (r"\<app", r"\<", Some(false)),
            ("(?x)app", "(?x", None),
            ("(?i)^[^ſ]*$", "'ſ'", Some(false)),
            ("app{1001}", "{1001}", None),
            ("a**", "'*' after a repetition", None),
            ("ap*+", "'+' after a repetition", None),
            ("(?i)*app", "'*' after a repetition", None),
            ("a{01}", "{01}", Some(false)),
            ("ap{,3}-", "{,3}", Some(false)),
            (r"\u0061pp", r"\u", None),
            (r"\b{start}app", "{start}", Some(false)),
            (r"\pL+", r"\p", Some(true)),
            (r"\p{Ll}+", r"\p", Some(true)),
            (r"\Qapp-1\E", r"\Q", Some(true)),
            (r"\141pp", r"\1", Some(true)),
            ("[a&&b]pp", "&& in a class", Some(true)),
            ("[[a]pp", "[a] in a class", Some(true)),
            (r"[\d-z]pp", "a range of classes", Some(false)),
            ("(?)app", "(?)", Some(true)),
            ("(?=app)", "(?=", None),
        ] {
            assert_eq!(common(expression), Err(part.to_owned()), "{expression}");
            let here = Regex::new(expression).ok().map(|expression| expression.is_match(ROLE));
            assert!(here != go || here.is_none(), "{expression}");
        }
    }

    #[test]
    fn no_text_is_too_odd_to_be_read() {
        for end in 0..7 {
            for text in [r"[[:alpha:]-\d]", "(?imsU-x:a)", "a{1000,99999999999}", r"\\[\]&&", "[^]é-[]"] {
                let cut: String = text.chars().take(end).collect();
                let _ = common(&cut);
            }
        }
    }
}
