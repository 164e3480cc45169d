"""All SQL of the server, read out of its source, so that no test of statements can forget a new one.

SQL stands in constants and string literals, put together by `concat!` and by macros whose bodies are strings, too. That much
of Rust is understood here; a constant or a `Statement::new` that is put together otherwise is an error.
"""

import re
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[2] / "src"

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<raw>r(?P<hashes>\#*)".*?"(?P=hashes))
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<other>b?'(?:\\.[^']*|[^'\\])'|'\w+|b"(?:[^"\\]|\\.)*")
    |(?P<word>\$?\w+)
    |(?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|REPLACE)\b")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "\\": "\\", "'": "'"}


class Text(str):
    """The value of a string literal, told from words and marks."""


class Macro(NamedTuple):
    parameters: list
    body: list


class NotUnderstood(Exception):
    """Source that is put together in a way that this file does not know."""


def statements(source=SOURCE):
    """Each statement's text, with the places where it stands: `store/events.rs BY_ID`."""
    paths = [path for path in sorted(source.rglob("*.rs")) if path.name != "tests.rs"]
    files = [_File(path, path.relative_to(source).as_posix()) for path in paths]
    shared = {}
    for file in files:
        for name, macro in file.macros.items():
            shared.setdefault(name, []).append(macro)
    found = {}
    for file in files:
        for name, sql in file.statements(shared):
            found.setdefault(sql, []).append(f"{file.name} {name}")
    return found


class _File:
    """One source file: the macros and constants that it defines, and what is left of its tokens."""

    def __init__(self, path, name):
        self.name = name
        self.macros, self.constants, self.rest = {}, [], []
        tokens = _without_tests(_tokens(path.read_text()))
        at = 0
        while at < len(tokens):
            match tokens[at : at + 4]:
                case ["macro_rules", "!", macro, "{"]:
                    end = _close(tokens, at + 3)
                    self.macros[macro] = _macro(tokens[at + 4 : end])
                    at = end + 1
                case ["const", constant, ":", "&"] if "str" in tokens[at + 4 : at + 6]:
                    start = tokens.index("=", at) + 1
                    end = _end_of_item(tokens, start)
                    self.constants.append((constant, tokens[start:end]))
                    at = end
                case _:
                    self.rest.append(tokens[at])
                    at += 1

    def statements(self, shared):
        for name, tokens in self.constants:
            if not any(isinstance(token, Text) and _SQL.match(token) for token in tokens) and not _calls_macro(tokens):
                continue
            sql = self._text(tokens, shared, {})
            if _SQL.match(sql):
                yield name, sql
        for at, token in enumerate(self.rest):
            # What is composed when it is known of which table is no statement yet.
            is_composed = self.rest[max(at - 3, 0) : at] == ["format", "!", "("]
            if isinstance(token, Text) and _SQL.match(token) and len(token.split()) > 2 and not is_composed:
                yield "(inline)", str(token)
        for at in range(len(self.rest) - 4):
            if self.rest[at : at + 5] == ["Statement", ":", ":", "new", "("]:
                tokens = self.rest[at + 5 : _end_of_item(self.rest, at + 5)]
                if _calls_macro(tokens):
                    yield "(inline)", self._text(tokens, shared, {})

    def _text(self, tokens, shared, bound):
        """The text that an expression of strings and macros makes."""
        if len(tokens) == 1:
            (token,) = tokens
            if isinstance(token, Text):
                return str(token)
            if token in bound:
                return bound[token]
            known = [value for name, value in self.constants if name == token]
            if len(known) == 1:
                return self._text(known[0], shared, bound)
        elif "!" in tokens:
            start = tokens.index("!") + 1
            if _close(tokens, start) == len(tokens) - 1:
                arguments = [self._text(part, shared, bound) for part in _split(tokens[start + 1 : -1])]
                name = tokens[start - 2]
                # What the build's environment says is no SQL; its name stands for it.
                if name in ("concat", "env"):
                    return "".join(arguments)
                macros = [self.macros[name]] if name in self.macros else shared.get(name, [])
                if len(macros) == 1 and len(macros[0].parameters) == len(arguments):
                    return self._text(macros[0].body, shared, dict(zip(macros[0].parameters, arguments)))
        raise NotUnderstood(f"{self.name}: {' '.join(map(repr, tokens[:12]))}")


def _tokens(source):
    tokens = []
    for token in _TOKEN.finditer(source):
        if token["string"]:
            tokens.append(Text(_unescape(token["string"][1:-1])))
        elif token["raw"]:
            text = token["raw"].lstrip("r").strip("#")
            tokens.append(Text(text[1:-1]))
        elif not token["space"]:
            tokens.append(token[0])
    return tokens


def _unescape(text):
    text = re.sub(r"\\\n\s*", "", text)
    text = re.sub(r"\\u\{([0-9a-fA-F_]+)\}", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text)


def _without_tests(tokens):
    """Without modules that only tests compile."""
    kept, at = [], 0
    while at < len(tokens):
        if tokens[at : at + 8] == ["#", "[", "cfg", "(", "test", ")", "]", "mod"] and "{" in tokens[at + 8 : at + 10]:
            at = _close(tokens, tokens.index("{", at)) + 1
        else:
            kept.append(tokens[at])
            at += 1
    return kept


def _macro(tokens):
    """A macro of one rule, `(parameters) => { body }`."""
    end = _close(tokens, 0)
    parameters = [part[0] for part in _split(tokens[1:end])]
    start = tokens.index("=", end) + 2
    return Macro(parameters, tokens[start + 1 : _close(tokens, start)])


def _calls_macro(tokens):
    return "!" in tokens[:8] and not isinstance(tokens[0], Text)


def _split(tokens):
    """The arguments between top-level commas."""
    parts, depth = [[]], 0
    for token in tokens:
        is_mark = not isinstance(token, Text)
        if is_mark and token == "," and depth == 0:
            parts.append([])
            continue
        if is_mark and token in ("(", "[", "{"):
            depth += 1
        elif is_mark and token in (")", "]", "}"):
            depth -= 1
        parts[-1].append(token)
    return [part for part in parts if part]


def _close(tokens, start):
    """Where the bracket at `start` is closed."""
    depth = 0
    for at in range(start, len(tokens)):
        if isinstance(tokens[at], Text):
            continue
        if tokens[at] in ("(", "[", "{"):
            depth += 1
        elif tokens[at] in (")", "]", "}"):
            depth -= 1
            if depth == 0:
                return at
    raise NotUnderstood("a bracket that is never closed")


def _end_of_item(tokens, start):
    """The first top-level `;` or `,`, or closing bracket, from `start` on."""
    depth = 0
    for at in range(start, len(tokens)):
        if isinstance(tokens[at], Text):
            continue
        if tokens[at] in ("(", "[", "{"):
            depth += 1
        elif tokens[at] in (")", "]", "}"):
            if depth == 0:
                return at
            depth -= 1
        elif tokens[at] in (";", ",") and depth == 0:
            return at
    raise NotUnderstood("an item that never ends")
