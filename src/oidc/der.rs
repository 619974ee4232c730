//! As much of DER (X.690) as a public key takes: strict, so that what is read is what anybody else would write.

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

/// What is left to read.
pub(super) struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The content of the next element, if it has this tag.
    pub(super) fn next(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(2)?;
        if head[0] != tag {
            return None;
        }
        let (length, rest) = match head[1] {
            short @ 0..=0x7f => (usize::from(short), rest),
            0x81 => {
                let (length, rest) = rest.split_first()?;
                (usize::from(*length), rest)
            }
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            // A key of 64 KiB is none.
            _ => return None,
        };
        // The shortest form is the only one.
        if self.0.len() - rest.len() != head_length(length) {
            return None;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    /// The content of the last element.
    pub(super) fn only(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next(tag).filter(|_| self.0.is_empty())
    }

    /// The next element as an integer above zero, without the octet that keeps it positive.
    pub(super) fn positive(&mut self) -> Option<&'a [u8]> {
        match self.next(INTEGER)? {
            [0, rest @ ..] if rest.first().is_some_and(|first| *first >= 0x80) => Some(rest),
            [0, ..] | [] => None,
            [first, ..] if *first >= 0x80 => None,
            shortest => Some(shortest),
        }
    }
}

/// An element.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match head_length(length) {
        2 => bytes.push(length as u8),
        3 => bytes.extend([0x81, length as u8]),
        _ => bytes.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    bytes.extend(content);
    bytes
}

/// Octets of tag and length, for a content below 64 KiB.
fn head_length(length: usize) -> usize {
    match length {
        0..0x80 => 2,
        0x80..0x100 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_longer() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff] {
            let content = vec![7; length];
            let whole = element(SEQUENCE, &content);
            assert_eq!(Der::new(&whole).only(SEQUENCE), Some(content.as_slice()), "{length}");
            assert_eq!(Der::new(&whole).next(INTEGER), None);
            assert_eq!(Der::new(&[whole.as_slice(), &[0]].concat()).only(SEQUENCE), None);
            for cut in 0..whole.len().min(300) {
                assert_eq!(Der::new(&whole[..cut]).next(SEQUENCE), None, "{cut} of {length}");
            }
        }
    }

    #[test]
    fn lengths_have_one_spelling() {
        for long in [
            &[0x30, 0x81, 1, 7][..],
            &[0x30, 0x82, 0, 1, 7],
            &[0x30, 0x83, 0, 0, 1, 7],
            &[0x30, 0x80, 7, 0, 0],
        ] {
            assert_eq!(Der::new(long).next(SEQUENCE), None, "{long:?}");
        }
    }

    #[test]
    fn integers_are_positive_and_have_one_spelling() {
        for (content, expected) in [
            (&[1][..], Some(&[1][..])),
            (&[0x7f, 0], Some(&[0x7f, 0])),
            (&[0, 0x80], Some(&[0x80])),
            (&[], None),
            (&[0], None),
            (&[0, 1], None),
            (&[0x80], None),
        ] {
            assert_eq!(Der::new(&element(INTEGER, content)).positive(), expected, "{content:?}");
        }
    }
}
