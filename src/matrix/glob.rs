//! Patterns in which `*` stands for any characters and `?` for exactly one (appendices, "Glob-style matching").
//!
//! Patterns come from other servers. Matching one takes a time that grows with its length alone, whatever is in it: all places
//! of the text at which the pattern may stand so far are kept in one set of bits, and each character of the pattern moves it.

/// The longest text that is matched, in bytes: a server name has no more.
const MAX_TEXT: usize = 255;

/// So many words hold a bit for each place in such a text, its end included.
const WORDS: usize = (MAX_TEXT + 1) / 64;

/// A set of places in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Places([u64; WORDS]);

/// An ASCII text that patterns are compared with, whatever the case of its letters.
#[derive(Debug, Clone)]
pub struct Text {
    length: usize,
    /// Of each ASCII character, in lower case, the places at which it stands.
    places: Vec<Places>,
}

impl Text {
    /// Prepares `text`; `None` where it is not ASCII or longer than 255 bytes.
    pub fn new(text: &str) -> Option<Self> {
        if !text.is_ascii() || text.len() > MAX_TEXT {
            return None;
        }
        let mut places = vec![Places::default(); 128];
        for (place, byte) in text.bytes().enumerate() {
            places.get_mut(usize::from(byte.to_ascii_lowercase()))?.insert(place);
        }
        Some(Self { length: text.len(), places })
    }

    /// Whether the whole text is one that `pattern` stands for.
    pub fn matches(&self, pattern: &str) -> bool {
        let mut reached = Places::default();
        reached.insert(0);
        for character in pattern.chars() {
            reached = match character {
                '*' => reached.and_all_behind(),
                '?' => reached.next(),
                literal => {
                    let standing = usize::try_from(u32::from(literal.to_ascii_lowercase()));
                    let standing = standing.ok().and_then(|index| self.places.get(index)).copied();
                    reached.and(standing.unwrap_or_default()).next()
                }
            };
            if reached == Places::default() {
                return false;
            }
        }
        reached.contains(self.length)
    }
}

impl Places {
    fn insert(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    fn contains(self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    fn and(self, other: Self) -> Self {
        let mut both = self;
        both.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        both
    }

    /// The places behind these by one.
    fn next(self) -> Self {
        let mut carried = 0;
        Self(self.0.map(|word| {
            let moved = word << 1 | carried;
            carried = word >> 63;
            moved
        }))
    }

    /// These and all places behind the first of them.
    fn and_all_behind(self) -> Self {
        let mut is_behind = false;
        Self(self.0.map(|word| {
            if is_behind {
                return u64::MAX;
            }
            is_behind = word != 0;
            // All bits from the lowest one on.
            if word == 0 { 0 } else { u64::MAX << word.trailing_zeros() }
        }))
    }
}

#[cfg(test)]
pub(in crate::matrix) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a pattern means, word for word.
    pub(in crate::matrix) fn means(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skipped| means(rest, &text[skipped..])),
            Some((b'?', rest)) => !text.is_empty() && means(rest, &text[1..]),
            Some((literal, rest)) => text.first() == Some(literal) && means(rest, &text[1..]),
        }
    }

    /// All texts of these characters that are no longer than `longest`.
    pub(in crate::matrix) fn all(alphabet: &[u8], longest: u32) -> Vec<String> {
        let base = alphabet.len();
        let texts = (0..=longest).flat_map(|length| (0..base.pow(length)).map(move |number| (length, number)));
        let text = |(length, number): (u32, usize)| {
            (0..length).map(|digit| char::from(alphabet[number / base.pow(digit) % base])).collect::<String>()
        };
        texts.map(text).collect()
    }

    #[test]
    fn all_short_patterns_match_what_they_mean() {
        let patterns = all(b"ab*?", 5);
        for text in all(b"ab", 5) {
            let prepared = Text::new(&text).unwrap();
            for pattern in &patterns {
                assert_eq!(prepared.matches(pattern), means(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn places_beyond_a_word_count() {
        for length in [63, 64, 65, 127, 128, 129, 254, 255] {
            let text = "a".repeat(length);
            let prepared = Text::new(&text).unwrap();
            assert!(prepared.matches(&text) && prepared.matches(&"?".repeat(length)) && prepared.matches("*A"));
            assert!(!prepared.matches(&"?".repeat(length + 1)) && !prepared.matches(&"a".repeat(length - 1)));
            assert!(prepared.matches(&"*?".repeat(length)) && !prepared.matches(&"*?".repeat(length + 1)));
        }
        assert!(Text::new(&"a".repeat(256)).is_none());
    }
}
