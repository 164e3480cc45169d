//! The paths that a source file names.

use std::collections::BTreeSet;

use super::Module;

/// A path that a file names.
pub(super) struct Import {
    /// The module in which it stands: the file's, or one written out in it.
    pub(super) within: Module,
    pub(super) path: Vec<String>,
    /// The name that a `use` gives it there.
    pub(super) name: Option<String>,
    /// Whether it is there only for others to import.
    pub(super) public: bool,
}

/// Finds the paths in a file.
pub(super) struct Scanner<'t> {
    tokens: Vec<&'t str>,
    at: usize,
    module: Module,
    /// At which depths of braces modules that are written out in the file begin.
    inline: Vec<usize>,
    depth: usize,
    found: Vec<Import>,
    /// The names in code.
    used: BTreeSet<String>,
}

impl<'t> Scanner<'t> {
    pub(super) fn scan(module: Module, text: &str) -> Vec<Import> {
        let text = without_comments_and_texts(text);
        let mut scanner = Scanner::new(module, tokens(&text));
        while scanner.at < scanner.tokens.len() {
            scanner.step();
        }
        let Scanner { mut found, used, .. } = scanner;
        for import in &mut found {
            import.public &= !import.name.as_ref().is_some_and(|name| used.contains(name));
        }
        found
    }

    fn new(module: Module, tokens: Vec<&'t str>) -> Self {
        Self { tokens, at: 0, module, inline: Vec::new(), depth: 0, found: Vec::new(), used: BTreeSet::new() }
    }

    fn step(&mut self) {
        let token = self.tokens[self.at];
        let next = |offset: usize| self.tokens.get(self.at + offset).copied().unwrap_or("");
        match token {
            "#" if self.tokens[self.at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"]) => {
                self.at += 7;
                return self.skip_item();
            }
            "use" if next(1) != "<" => {
                self.at += 1;
                return self.use_tree(Vec::new(), false);
            }
            "pub" => {
                if next(1) == "(" {
                    self.at += self.tokens[self.at..].iter().position(|token| *token == ")").unwrap_or(0);
                }
                self.at += 1;
                if self.tokens.get(self.at) == Some(&"use") {
                    self.at += 1;
                    self.use_tree(Vec::new(), true);
                }
                return;
            }
            "mod" if next(2) == "{" => {
                self.module.push(next(1).to_owned());
                self.inline.push(self.depth);
                self.at += 1;
            }
            "{" => self.depth += 1,
            "}" => {
                self.depth -= 1;
                if self.inline.last() == Some(&self.depth) {
                    self.inline.pop();
                    self.module.pop();
                }
            }
            name if is_name(name) => {
                self.used.insert(name.to_owned());
                let mut path = vec![name.to_owned()];
                while self.tokens.get(self.at + 1) == Some(&"::")
                    && self.tokens.get(self.at + 2).is_some_and(|token| is_name(token))
                {
                    path.push(self.tokens[self.at + 2].to_owned());
                    self.at += 2;
                }
                if path.len() > 1 {
                    self.found.push(Import { within: self.module.clone(), path, name: None, public: false });
                }
            }
            _ => {}
        }
        self.at += 1;
    }

    /// From after `use`, or from within its braces, up to what ends it.
    fn use_tree(&mut self, start: Vec<String>, public: bool) {
        let mut path = start.clone();
        let mut name = None;
        let mut grouped = false;
        while let Some(token) = self.tokens.get(self.at).copied() {
            self.at += 1;
            match token {
                "{" => {
                    self.use_tree(path.clone(), public);
                    grouped = true;
                }
                "as" => {
                    name = self.tokens.get(self.at).map(|name| (*name).to_owned());
                    self.at += 1;
                }
                "," | "}" | ";" => {
                    if !grouped && path.len() > start.len() {
                        let last = path.iter().rev().find(|name| *name != "self" && *name != "*").cloned();
                        let name = name.take().or(last);
                        self.found.push(Import { within: self.module.clone(), path, name, public });
                    }
                    if token != "," {
                        return;
                    }
                    (path, name, grouped) = (start.clone(), None, false);
                }
                "::" => {}
                name => path.push(name.to_owned()),
            }
        }
    }

    /// Over an item up to its semicolon or closing brace.
    fn skip_item(&mut self) {
        let mut depth = 0;
        while let Some(token) = self.tokens.get(self.at).copied() {
            self.at += 1;
            match token {
                "{" => depth += 1,
                "}" if depth == 1 => return,
                "}" => depth -= 1,
                ";" if depth == 0 => return,
                _ => {}
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and all other characters one by one.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_name(rest) {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// The text with a blank for each comment, string and character.
fn without_comments_and_texts(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_name = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = (!after_name).then(|| raw_text(rest)).flatten() {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.push(' ');
        rest = &rest[skipped..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.get(at..at + 2) {
            Some("/*") => (depth, at) = (depth + 1, at + 2),
            Some("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of `r"…"`, `r#"…"#` and so on.
fn raw_text(text: &str) -> Option<usize> {
    let marks = text.strip_prefix('r').or_else(|| text.strip_prefix("br"))?;
    let hashes = marks.find(|c| c != '#')?;
    let start = text.len() - marks.len() + hashes;
    text[start..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len()))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            end if end == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether a quote begins a character and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    characters.next() == Some('\\') || characters.next() == Some('\'')
}
