//! Bounded fuzzing on stable Rust: inputs that are made from real ones. `ROLECALL_FUZZ_ROUNDS` says how many of each, `ROLECALL_SEED` which.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

/// Makes inputs from `corpus`, with pieces of `words` in between.
pub struct Fuzzer<'a> {
    corpus: Vec<&'a [u8]>,
    words: Vec<&'a [u8]>,
    random: fastrand::Rng,
}

/// Says which input it was when the test fails on it.
struct Culprit<'a>(u64, &'a [u8]);

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ROLECALL_SEED={} {:?}", self.0, String::from_utf8_lossy(self.1));
        }
    }
}

/// How many rounds: as asked for, or `usual`.
pub fn rounds(usual: u64) -> u64 {
    number("ROLECALL_FUZZ_ROUNDS").unwrap_or(usual)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Tries `check` on `usual` inputs. The corpus itself comes first.
pub fn fuzz(usual: u64, corpus: &[impl AsRef<[u8]>], words: &[&str], mut check: impl FnMut(&[u8])) {
    let first = number("ROLECALL_SEED").unwrap_or_else(|| fastrand::u64(..));
    for (seed, input) in inputs(first, rounds(usual), corpus, words) {
        let culprit = Culprit(seed, &input);
        check(&input);
        drop(culprit);
    }
}

/// The inputs themselves, each with the seed that makes it alone.
pub fn inputs<'a, T: AsRef<[u8]>>(
    first: u64,
    rounds: u64,
    corpus: &'a [T],
    words: &'a [&'a str],
) -> impl Iterator<Item = (u64, Vec<u8>)> + use<'a, T> {
    let corpus: Vec<&[u8]> = corpus.iter().map(AsRef::as_ref).collect();
    let mut fuzzer = Fuzzer {
        corpus,
        words: words.iter().map(|word| word.as_bytes()).collect(),
        random: fastrand::Rng::new(),
    };
    let known: Vec<_> = fuzzer.corpus.iter().map(|input| (first, input.to_vec())).collect();
    let made = (0..rounds).map(move |round| {
        let seed = first.wrapping_add(round);
        fuzzer.random = fastrand::Rng::with_seed(seed);
        (seed, fuzzer.input())
    });
    known.into_iter().chain(made)
}

impl Fuzzer<'_> {
    fn input(&mut self) -> Vec<u8> {
        if self.random.u8(..20) == 0 {
            let length = self.random.usize(..200);
            return std::iter::repeat_with(|| self.random.u8(..)).take(length).collect();
        }
        let mut input = self.piece().to_vec();
        for _ in 0..1 + self.random.usize(..4) {
            self.change(&mut input);
        }
        input.truncate(64 * 1024);
        input
    }

    fn piece(&mut self) -> &[u8] {
        self.corpus[self.random.usize(..self.corpus.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let (from, to) = (self.random.usize(..=input.len()), self.random.usize(..=input.len()));
        let (from, to) = (from.min(to), from.max(to));
        match self.random.u8(..9) {
            0 if from < input.len() => input[from] ^= 1 << self.random.u8(..8),
            1 if from < input.len() => input[from] = self.random.u8(..),
            2 => drop(input.drain(from..to.min(from + 8))),
            3 => input.truncate(to),
            4 => {
                let twice = input[from..to].to_vec();
                input.splice(to..to, twice);
            }
            5 => {
                let other = self.piece().to_vec();
                let at = self.random.usize(..=other.len());
                input.splice(from.., other[at..].iter().copied());
            }
            6 if from < input.len() => {
                input[from] = *self.random.choice(b"\0\t\n\r !-./:;@[]_\x7f\xff").unwrap()
            }
            _ if !self.words.is_empty() => {
                let word = self.words[self.random.usize(..self.words.len())];
                let end = if self.random.bool() { from } else { to.min(from + word.len()) };
                input.splice(from..end, word.iter().copied());
            }
            _ => {}
        }
    }
}
