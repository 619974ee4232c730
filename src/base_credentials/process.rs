//! `credential_process`: a program that prints credentials, such as IAM Roles Anywhere's signing helper.
//!
//! No shell runs it, and Landlock lets the agent run nothing else: `crate::harden`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use super::BaseKeys;
use super::source::due;

/// Roles Anywhere's helper asks a server of AWS's, and may be told to retry.
const DEADLINE: Duration = Duration::from_secs(30);
/// Far more than a document of credentials has.
const MAX_OUTPUT: u64 = 64 * 1024;

/// The words of a command. The first is a program's absolute path.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Command(Vec<String>);

/// Not the arguments: nobody should write a secret there, but somebody will.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} arguments", self.0[0], self.0.len() - 1)
    }
}

impl Command {
    /// Takes a command apart as a shell would, and refuses what only a shell could do.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let words = words(text).map_err(|why| format!("credential_process: {why}"))?;
        match words.first() {
            Some(program) if program.starts_with('/') => Ok(Self(words)),
            _ => {
                Err("credential_process: it must begin with a program's absolute path; no shell runs it"
                    .into())
            }
        }
    }

    pub(super) fn program(&self) -> &Path {
        Path::new(&self.0[0])
    }

    /// The files that its arguments name: its certificate and key, which it reads through the agent's own Landlock.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let paths =
            self.0[1..].iter().map(|word| word.split_once('=').map_or(word.as_str(), |(_, value)| value));
        paths.filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
    }

    async fn run(&self) -> Result<BaseKeys, String> {
        // Not Stdio::null(): /dev/null is one of the files that are closed to us.
        let piped = Stdio::piped;
        let mut program = tokio::process::Command::new(self.program());
        program.args(&self.0[1..]).stdin(piped()).stdout(piped()).stderr(piped()).kill_on_drop(true);
        let mut child = program.spawn().map_err(|err| {
            let why = match err.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    " (the agent may run the program that its files named when it started, and no other)"
                }
                _ => "",
            };
            format!("{} cannot be run: {err}{why}", self.program().display())
        })?;
        drop(child.stdin.take());
        let (mut printed, mut said) = (Vec::new(), 0);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let run = async {
            let (stdout, stderr) = (stdout.expect("it is piped"), stderr.expect("it is piped"));
            let (mut stdout, mut stderr) = (stdout.take(MAX_OUTPUT), stderr);
            let mut nowhere = tokio::io::sink();
            (_, said) = tokio::try_join!(
                stdout.read_to_end(&mut printed),
                tokio::io::copy(&mut stderr, &mut nowhere)
            )?;
            child.wait().await
        };
        let program = self.program().display();
        let status = match timeout(DEADLINE, run).await {
            Err(_) => return Err(format!("{program} did not end within {} s", DEADLINE.as_secs())),
            Ok(Err(err)) => return Err(format!("{program}: {err}")),
            Ok(Ok(status)) => status,
        };
        if !status.success() {
            // Nothing that it printed: this is logged, and a helper that debugs can have keys on stderr as well.
            return Err(format!(
                "{program} failed ({status}), with {said} bytes on stderr, which are not logged: run it by hand to see them"
            ));
        }
        let version = serde_json::from_slice::<serde_json::Value>(&printed)
            .ok()
            .and_then(|document| document.get("Version").and_then(serde_json::Value::as_u64));
        if version != Some(1) {
            return Err(format!("{program} did not print JSON with \"Version\": 1"));
        }
        BaseKeys::from_document(&printed).map_err(|why| format!("what {program} prints: {why}"))
    }
}

/// Words as a POSIX shell splits them: blanks, quotes, backslashes; nothing that a shell would have to do.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let current = word.get_or_insert_default();
        match (quote, letter) {
            (Some(mark), letter) if letter == mark => quote = None,
            (Some('\''), letter) => current.push(letter),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(_), '\\') if !matches!(letters.peek(), Some('"' | '\\' | '$' | '`')) => current.push('\\'),
            (_, '\\') => current.push(letters.next().ok_or("it ends with a backslash")?),
            (_, '$' | '`') | (None, '|' | '&' | ';' | '<' | '>' | '(' | ')' | '*' | '?') => {
                return Err("no shell runs it, so it cannot hold $ ` | & ; < > ( ) * ? outside of quotes");
            }
            (None, letter) if letter.is_whitespace() => {
                let ended = word.take().unwrap_or_default();
                if !ended.is_empty() {
                    words.push(ended);
                }
            }
            (_, letter) => current.push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// The last run: the files are looked at every few seconds, the program is run when its keys are half through.
#[derive(Default)]
pub(super) struct Last(Option<(Command, Instant, BaseKeys)>);

impl Last {
    pub(super) async fn keys(&mut self, command: &Command) -> Result<BaseKeys, String> {
        if let Some((last, due, keys)) = &self.0
            && last == command
            && Instant::now() < *due
        {
            return Ok(keys.clone());
        }
        let asked = Instant::now();
        let keys = command.run().await?;
        self.0 = Some((command.clone(), asked + due(&keys), keys.clone()));
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        for (text, expected) in [
            ("/a b  c", vec!["/a", "b", "c"]),
            (r#"/a "b c" 'd "e' f\ g"#, vec!["/a", "b c", "d \"e", "f g"]),
            (r#"/a "x\"y" "C:\z" ''"#, vec!["/a", "x\"y", "C:\\z", ""]),
            (r#"/a --b='c d'"#, vec!["/a", "--b=c d"]),
        ] {
            assert_eq!(Command::parse(text).unwrap().0, expected, "{text}");
        }
    }

    #[test]
    fn what_needs_a_shell_or_a_search_path_is_refused() {
        for text in [
            "",
            "helper x",
            "/a | /b",
            "/a $HOME",
            "/a > /x",
            "/a `b`",
            "/a \"$B\"",
            "/a 'b",
            "/a \\",
            "/a; /b",
        ] {
            assert!(Command::parse(text).is_err(), "{text}");
        }
        Command::parse("/a '$B|;'").unwrap();
    }

    #[test]
    fn the_files_of_a_command_are_those_that_its_arguments_name() {
        let command =
            Command::parse("/helper --certificate /c/tls.crt --private-key=/c/tls.key --region eu").unwrap();
        assert_eq!(command.files(), [Path::new("/c/tls.crt"), Path::new("/c/tls.key")]);
    }
}
