//! Glob patterns of push rules (appendices, "Glob-style matching"), compared whatever the case of letters.
//!
//! Users write the patterns and others the texts, of any length. All places of the pattern up to which it may have been matched
//! so far are kept in one set of bits, which each character of the text moves: the time is the product of both lengths, divided
//! by 64, whatever is in them.

/// A pattern, ready to be compared with texts.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// At which places each character stands, sorted by character.
    literals: Vec<(char, Places)>,
    /// At which places `?` stands.
    any: Places,
    /// At which places `*` stands; never at two in a row.
    stars: Places,
    /// How many places there are; the one behind them is reached by a match.
    length: usize,
}

/// A set of places in a pattern, its end included.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Places(Vec<u64>);

impl Pattern {
    /// Reads `*` as any characters and `?` as exactly one.
    pub(super) fn glob(text: &str) -> Self {
        Self::new(text, true)
    }

    /// A pattern that stands for itself alone.
    pub(super) fn literal(text: &str) -> Self {
        Self::new(text, false)
    }

    fn new(text: &str, has_wildcards: bool) -> Self {
        let mut characters: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
        if has_wildcards {
            characters.dedup_by(|one, before| *one == '*' && *before == '*');
        }
        let none = Places(vec![0; words(characters.len())]);
        let mut pattern =
            Self { literals: Vec::new(), any: none.clone(), stars: none.clone(), length: characters.len() };
        for (place, character) in characters.into_iter().enumerate() {
            match character {
                '*' if has_wildcards => pattern.stars.insert(place),
                '?' if has_wildcards => pattern.any.insert(place),
                _ => {
                    let at = match pattern.literals.binary_search_by_key(&character, |(literal, _)| *literal) {
                        Ok(at) => at,
                        Err(at) => {
                            pattern.literals.insert(at, (character, none.clone()));
                            at
                        }
                    };
                    if let Some((_, places)) = pattern.literals.get_mut(at) {
                        places.insert(place);
                    }
                }
            }
        }
        pattern
    }

    /// What comparing it costs for each character of a text: how many words its set of places has.
    pub(super) fn cost(text: &str) -> usize {
        words(text.chars().count())
    }

    /// Whether it stands for the whole of `text`.
    pub(super) fn matches(&self, text: &str) -> bool {
        let mut reached = Places(vec![0; words(self.length)]);
        self.begin(&mut reached);
        for character in text.chars().flat_map(char::to_lowercase) {
            self.step(&mut reached, character);
            if reached.is_empty() {
                return false;
            }
        }
        reached.contains(self.length)
    }

    /// Whether it stands for a part of `text` that begins and ends at a boundary of words: nowhere between two letters, digits or
    /// underscores. An empty pattern stands for none.
    pub(super) fn matches_words(&self, text: &str) -> bool {
        if self.length == 0 {
            return false;
        }
        let mut reached = Places(vec![0; words(self.length)]);
        let mut is_behind_word = false;
        for character in text.chars().flat_map(char::to_lowercase) {
            let is_word = character.is_ascii_alphanumeric() || character == '_';
            if !(is_behind_word && is_word) {
                self.begin(&mut reached);
                if reached.contains(self.length) {
                    return true;
                }
            }
            self.step(&mut reached, character);
            is_behind_word = is_word;
        }
        self.begin(&mut reached);
        reached.contains(self.length)
    }

    /// A match may begin here.
    fn begin(&self, reached: &mut Places) {
        reached.insert(0);
        self.pass_stars(reached);
    }

    /// Moves on over `character`.
    fn step(&self, reached: &mut Places, character: char) {
        let literal = self.literals.binary_search_by_key(&character, |(literal, _)| *literal).ok();
        let literal = literal.and_then(|at| self.literals.get(at)).map(|(_, places)| places);
        let mut carried = 0;
        for (index, word) in reached.0.iter_mut().enumerate() {
            let taken = *word & (self.any.word(index) | literal.map_or(0, |places| places.word(index)));
            let held = *word & self.stars.word(index);
            *word = taken << 1 | carried | held;
            carried = taken >> 63;
        }
        self.pass_stars(reached);
    }

    /// Who stands before a `*` stands behind it, too.
    fn pass_stars(&self, reached: &mut Places) {
        let mut carried = 0;
        for (index, word) in reached.0.iter_mut().enumerate() {
            let before = *word & self.stars.word(index);
            *word |= before << 1 | carried;
            carried = before >> 63;
        }
    }
}

/// How many words hold a bit for each place of a pattern, and for its end.
fn words(length: usize) -> usize {
    length / 64 + 1
}

impl Places {
    fn insert(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    fn contains(&self, place: usize) -> bool {
        self.word(place / 64) >> (place % 64) & 1 == 1
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::glob::tests::{all, means};

    /// What it means among words, word for word.
    fn means_words(pattern: &[u8], text: &[u8]) -> bool {
        let is_word = |at: usize| text.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric());
        let is_boundary = |at: usize| at == 0 || !(is_word(at - 1) && is_word(at));
        let places: Vec<usize> = (0..=text.len()).filter(|at| is_boundary(*at)).collect();
        let parts = places.iter().flat_map(|from| places.iter().map(move |to| (*from, *to)));
        !pattern.is_empty() && parts.filter(|(from, to)| from <= to).any(|(from, to)| means(pattern, &text[from..to]))
    }

    #[test]
    fn all_short_patterns_match_what_they_mean() {
        let texts = all(b"ab ", 4);
        for pattern in all(b"ab*?", 4) {
            let compiled = Pattern::glob(&pattern);
            for text in &texts {
                let (wanted, bytes) = (means(pattern.as_bytes(), text.as_bytes()), text.as_bytes());
                assert_eq!(compiled.matches(text), wanted, "{pattern:?} {text:?}");
                let wanted = means_words(pattern.as_bytes(), bytes);
                assert_eq!(compiled.matches_words(text), wanted, "words of {pattern:?} {text:?}");
            }
        }
    }

    #[test]
    fn places_beyond_a_word_count() {
        for length in [62, 63, 64, 65, 127, 128, 129, 500] {
            let text = "a".repeat(length);
            assert!(Pattern::glob(&text).matches(&text) && Pattern::glob(&"?".repeat(length)).matches(&text));
            assert!(Pattern::glob(&"*?".repeat(length)).matches(&text));
            assert!(!Pattern::glob(&"?".repeat(length + 1)).matches(&text));
            assert!(!Pattern::glob(&"*?".repeat(length + 1)).matches(&text));
            assert!(Pattern::glob(&text).matches_words(&format!("b {text}!")));
            assert!(!Pattern::glob(&text).matches_words(&format!("b{text}!")));
        }
    }

    #[test]
    fn case_and_literals() {
        assert!(Pattern::glob("ÄRGER").matches("ärger") && Pattern::literal("A*").matches("a*"));
        assert!(!Pattern::literal("A*").matches("ab") && Pattern::literal("a?").matches_words("so A? b"));
    }
}
