//! What a namespace's annotations permit its pods: kiam's expression, kube2iam's list.

use std::collections::BTreeMap;

use regex_lite::{Regex, RegexBuilder};

use super::{Forbidden, dialect};
use crate::policy::glob;
use crate::role::{RoleArn, quoted};

/// kiam's: one regular expression, over the whole ARN.
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// kube2iam's: a JSON list of ARNs and names, with `*` or as regular expressions.
pub const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";

/// Somebody in the cluster writes the expressions, and they run on the agent's one thread: matching costs at most the
/// program's size times the ARN's length.
const LONGEST_EXPRESSION: usize = 4096;
const LARGEST_PROGRAM: usize = 128 << 10;
/// Of all the expressions of a list, which share it equally, so that what one may take does not hang on what stands before it.
const LARGEST_PROGRAMS: usize = 2 * LARGEST_PROGRAM;
const DEEPEST: u32 = 50;
/// Entries of a list.
const MOST_ENTRIES: usize = 256;

/// `--namespace-restriction-format`: how `allowed-roles` is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `*` stands for any run of characters, `/` among them.
    #[default]
    Glob,
    /// Regular expressions; over the whole ARN, where kube2iam takes a part of it for all.
    Regexp,
}

/// A namespace's two annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    permitted: Option<String>,
    allowed: Option<String>,
}

impl Namespace {
    /// What these annotations have of the two.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| annotations.get(name).cloned();
        Self { permitted: text(PERMITTED), allowed: text(ALLOWED_ROLES) }
    }

    /// Is either of them there?
    pub(super) fn says_something(&self) -> bool {
        self.permitted.is_some() || self.allowed.is_some()
    }

    pub(super) fn permits(
        &self,
        role: &RoleArn,
        base: Option<&str>,
        format: Format,
    ) -> Result<(), Forbidden> {
        let forbidden = |annotation| move |reason| Forbidden { annotation, reason };
        if let Some(expression) = &self.permitted {
            by_expression(expression, role).map_err(forbidden(PERMITTED))?;
        }
        if let Some(list) = &self.allowed {
            by_list(list, role, base, format).map_err(forbidden(ALLOWED_ROLES))?;
        }
        Ok(())
    }
}

fn by_expression(expression: &str, role: &RoleArn) -> Result<(), String> {
    if expression.is_empty() {
        return Err("it is empty, which permits nothing".into());
    }
    match whole(expression, LARGEST_PROGRAM)?.is_match(role.as_str()) {
        true => Ok(()),
        false => Err(format!("{} does not match the whole ARN", quoted(expression))),
    }
}

fn by_list(list: &str, role: &RoleArn, base: Option<&str>, format: Format) -> Result<(), String> {
    let entries: Vec<String> =
        serde_json::from_str(list).map_err(|_| format!("{} is not a JSON list of strings", quoted(list)))?;
    if entries.len() > MOST_ENTRIES {
        return Err(format!("it has more than {MOST_ENTRIES} entries"));
    }
    if format == Format::Regexp && entries.iter().map(String::len).sum::<usize>() > LONGEST_EXPRESSION {
        return Err(format!("its expressions have more than {LONGEST_EXPRESSION} bytes together"));
    }
    let share = LARGEST_PROGRAM.min(LARGEST_PROGRAMS / entries.len().max(1));
    let mut why = "no entry of it matches".to_owned();
    for entry in &entries {
        match by_entry(entry, role, base, format, share) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(reason) => why = format!("{} of it: {reason}", quoted(entry)),
        }
    }
    Err(why)
}

/// `share` is the largest program that its expression may be.
fn by_entry(
    entry: &str,
    role: &RoleArn,
    base: Option<&str>,
    format: Format,
    share: usize,
) -> Result<bool, String> {
    // As kube2iam: what is no ARN stands behind the base ARN.
    let is_arn = entry.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("arn:"));
    let rest = match (is_arn, base) {
        (true, _) => Some(role.as_str()),
        (false, Some(base)) => role.as_str().strip_prefix(base),
        (false, None) => return Err("a name without its ARN needs --base-role-arn".into()),
    };
    let Some(rest) = rest else { return Ok(false) };
    match format {
        Format::Glob => Ok(glob(entry, rest)),
        Format::Regexp => Ok(whole(entry, share)?.is_match(rest)),
    }
}

/// The expression, for whole texts alone. It must be one by itself: `a)|(?:b` would undo what stands around it.
fn whole(expression: &str, largest: usize) -> Result<Regex, String> {
    if expression.len() > LONGEST_EXPRESSION {
        return Err(format!("it is longer than {LONGEST_EXPRESSION} bytes"));
    }
    dialect::common(expression)
        .map_err(|part| format!("{} has {part}, which Go may read otherwise", quoted(expression)))?;
    let compile = |text: &str| {
        RegexBuilder::new(text).size_limit(largest).nest_limit(DEEPEST).build().map_err(|_| {
            format!("{} is not a regular expression, or one that is too large", quoted(expression))
        })
    };
    compile(expression)?;
    compile(&format!("^(?:{expression})$"))
}
