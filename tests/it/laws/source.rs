//! Rust sources as tokens: just enough of the language to check laws on.
//!
//! A [`Source`] is one file cut into tokens. Comments are gone, strings are single tokens, and tokens of test
//! code (`#[cfg(test)]` items, `#[test]` functions) are marked. On that stand three views: [`Source::paths`]
//! (every `a::b::c`, `use` trees flattened, `super::` resolved), [`Source::functions`] and
//! [`Source::code_lines`].
//!
//! No `syn`: a law must be readable, and this is all that the laws need.

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word,
    Text,
    Sign,
}

/// One token and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) kind: Kind,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
}

/// A path as written, flattened out of its `use` tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathUse {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

/// A function with a body.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// One file, as the laws see it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Relative to the repository, with slashes.
    pub(crate) path: String,
    pub(crate) tokens: Vec<Token>,
    lines: usize,
    test_lines: usize,
}

impl Source {
    /// Reads `text` as the file `path`.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let mut tokens = tokenize(text);
        let tests = test_ranges(&tokens);
        let mut test_lines = 0;
        for range in &tests {
            let first = tokens[range.start].line;
            let last = tokens[range.end - 1].line;
            test_lines += last - first + 1;
            tokens[range.clone()].iter_mut().for_each(|t| t.in_test = true);
        }
        let lines = text.lines().count();
        Self { path: path.to_owned(), tokens, lines, test_lines: test_lines.min(lines) }
    }

    /// Returns the tokens outside test code.
    pub(crate) fn code(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(|t| !t.in_test)
    }

    /// Returns how many lines the file has outside test code.
    pub(crate) fn code_lines(&self) -> usize {
        self.lines - self.test_lines
    }

    /// Returns the module's path below the crate root: `["store", "local"]` for `src/store/local.rs`.
    pub(crate) fn module(&self) -> Vec<String> {
        let Some((_, inside)) = self.path.split_once("src/") else { return Vec::new() };
        let mut parts: Vec<String> =
            inside.trim_end_matches(".rs").split('/').map(ToOwned::to_owned).collect();
        if parts.last().is_some_and(|l| matches!(l.as_str(), "mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// Returns the room that the file belongs to: the first segment of its module.
    pub(crate) fn room(&self) -> String {
        self.module().first().cloned().unwrap_or_default()
    }

    /// Returns every path of two or more segments outside test code; `super::` is resolved to `crate::`.
    pub(crate) fn paths(&self) -> Vec<PathUse> {
        let code: Vec<&Token> = self.code().collect();
        let mut out = Vec::new();
        let mut at = 0;
        while at < code.len() {
            let starts = code[at].kind == Kind::Word
                && code.get(at + 1).is_some_and(|t| t.text == "::")
                && (at == 0 || code[at - 1].text != "::");
            if starts {
                at = flatten(&code, at, &[], &mut out);
            } else if code[at].text == "use" && code.get(at + 1).is_some_and(|t| t.text == "{") {
                at = flatten(&code, at + 1, &[], &mut out);
            } else {
                at += 1;
            }
        }
        let module = self.module();
        for path in &mut out {
            resolve_super(&module, &mut path.segments);
        }
        out
    }

    /// Returns the functions outside test code, nested ones too.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let code: Vec<&Token> = self.code().collect();
        let mut out = Vec::new();
        for (at, pair) in code.windows(2).enumerate() {
            if pair[0].text != "fn" || pair[1].kind != Kind::Word {
                continue;
            }
            if let Some(end) = body_end(&code, at) {
                let (name, line) = (pair[1].text.clone(), pair[0].line);
                out.push(Function { name, line, lines: code[end].line - line + 1 });
            }
        }
        out
    }

    /// Returns the names of modules that exist under `#[cfg(test)]` only and have a file of their own.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let tests: Vec<&Token> = self.tokens.iter().filter(|t| t.in_test).collect();
        let modules = tests.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
        modules.map(|w| w[1].text.clone()).collect()
    }
}

/// Turns leading `super`s into `crate::…`, where they reach that far; a leading `self` is dropped.
fn resolve_super(module: &[String], segments: &mut Vec<String>) {
    let supers = segments.iter().take_while(|s| *s == "super").count();
    if supers > 0 && supers <= module.len() {
        let mut whole = vec!["crate".to_owned()];
        whole.extend_from_slice(&module[..module.len() - supers]);
        whole.extend(segments.drain(..).skip(supers));
        *segments = whole;
    }
}

/// Reads one path (or brace group) at `at`, pushes its leaves to `out` and returns where it ended.
fn flatten(code: &[&Token], mut at: usize, prefix: &[String], out: &mut Vec<PathUse>) -> usize {
    let mut segments = prefix.to_vec();
    let line = code[at].line;
    loop {
        match code.get(at) {
            Some(t) if t.text == "{" => return flatten_group(code, at + 1, &segments, out),
            Some(t) if t.kind == Kind::Word || t.text == "*" => segments.push(t.text.clone()),
            _ => break,
        }
        at += 1;
        if code.get(at).is_some_and(|t| t.text == "::") {
            at += 1;
        } else {
            break;
        }
    }
    out.push(PathUse { line, segments });
    at
}

fn flatten_group(
    code: &[&Token],
    mut at: usize,
    prefix: &[String],
    out: &mut Vec<PathUse>,
) -> usize {
    while let Some(token) = code.get(at) {
        match token.text.as_str() {
            "}" => return at + 1,
            "as" => at += 2,
            _ if token.kind == Kind::Word || matches!(token.text.as_str(), "{" | "*") => {
                at = flatten(code, at, prefix, out);
            }
            _ => at += 1,
        }
    }
    at
}

/// Returns the token that closes the body of the `fn` at `at`; `None` where it has no body.
fn body_end(code: &[&Token], at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (i, token) in code.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            ";" if depth == 0 => return None,
            "{" if depth == 0 => return Some(close_of(code, i)),
            _ => {}
        }
    }
    None
}

/// Returns the position of the brace that closes the one at `open` (the last token where none does).
fn close_of(code: &[&Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in code.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    code.len() - 1
}

/// Finds the items that only tests compile: attribute to closing brace or semicolon.
fn test_ranges(tokens: &[Token]) -> Vec<Range<usize>> {
    let all: Vec<&Token> = tokens.iter().collect();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < all.len() {
        let inner = all[at].text == "#" && all.get(at + 1).is_some_and(|t| t.text == "!");
        let open = at + 1 + usize::from(inner);
        if all[at].text != "#" || all.get(open).is_none_or(|t| t.text != "[") {
            at += 1;
            continue;
        }
        let close = attribute_end(&all, open);
        if !is_test_attribute(&all[open + 1..close]) {
            at = close + 1;
            continue;
        }
        let end = if inner { all.len() } else { item_end(&all, close + 1) };
        ranges.push(at..end);
        at = end;
    }
    ranges
}

fn attribute_end(all: &[&Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in all.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    all.len() - 1
}

fn is_test_attribute(inside: &[&Token]) -> bool {
    let words: Vec<&str> = inside.iter().map(|t| t.text.as_str()).collect();
    match words.first() {
        Some(&"test") => words.len() == 1,
        Some(&"cfg") => {
            words.contains(&"test") && !words.contains(&"not") && !words.contains(&"any")
        }
        _ => false,
    }
}

/// Returns the end of the item that starts at `at`, attributes included.
fn item_end(all: &[&Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in all.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            ";" if depth == 0 => return i + 1,
            "{" if depth == 0 => return close_of(all, i) + 1,
            _ => {}
        }
    }
    all.len()
}

/// Cuts `text` into tokens; comments and lifetimes are dropped.
fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, line: 1, tokens: Vec::new() };
    while lexer.at < chars.len() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn advance(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        self.line += usize::from(c == '\n');
        c
    }

    fn push(&mut self, text: String, kind: Kind, line: usize) {
        self.tokens.push(Token { text, kind, line, in_test: false });
    }

    fn step(&mut self) {
        let (c, line) = (self.peek(0), self.line);
        match c {
            '/' if self.peek(1) == '/' => {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.advance();
                }
            }
            '/' if self.peek(1) == '*' => self.block_comment(),
            '"' => self.string(),
            '\'' => self.quote(),
            c if c.is_alphabetic() || c == '_' => self.word(),
            c if c.is_ascii_digit() => {
                let mut text = String::new();
                while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                    text.push(self.advance());
                }
                self.push(text, Kind::Sign, line);
            }
            c if c.is_whitespace() => {
                self.advance();
            }
            ':' if self.peek(1) == ':' => {
                self.at += 2;
                self.push("::".to_owned(), Kind::Sign, line);
            }
            _ => {
                self.advance();
                self.push(c.to_string(), Kind::Sign, line);
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.advance();
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        let line = self.line;
        self.advance();
        let mut text = String::new();
        while self.at < self.chars.len() && self.peek(0) != '"' {
            let c = self.advance();
            text.push(c);
            if c == '\\' {
                text.push(self.advance());
            }
        }
        self.advance();
        self.push(text, Kind::Text, line);
    }

    /// Reads what follows `r`, `br` or `cr`, from the hashes or the quote on.
    fn raw_string(&mut self) {
        let line = self.line;
        let mut hashes = 0;
        while self.peek(0) == '#' {
            self.advance();
            hashes += 1;
        }
        self.advance();
        let mut text = String::new();
        while self.at < self.chars.len() {
            let closes = self.peek(0) == '"' && (1..=hashes).all(|i| self.peek(i) == '#');
            if closes {
                self.at += hashes + 1;
                break;
            }
            text.push(self.advance());
        }
        self.push(text, Kind::Text, line);
    }

    /// A character literal is dropped with its quotes, a lifetime with its tick.
    fn quote(&mut self) {
        self.advance();
        if self.peek(0) == '\\' {
            self.at += 2;
            while self.at < self.chars.len() && self.peek(0) != '\'' {
                self.advance();
            }
            self.advance();
        } else if self.peek(1) == '\'' {
            self.advance();
            self.advance();
        } else {
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                self.advance();
            }
        }
    }

    fn word(&mut self) {
        let line = self.line;
        let mut text = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            text.push(self.advance());
        }
        let hashes = (0..256).take_while(|i| self.peek(*i) == '#').count();
        match text.as_str() {
            "r" | "br" | "cr" if self.peek(hashes) == '"' => self.raw_string(),
            "b" | "c" if self.peek(0) == '"' => self.string(),
            "b" if self.peek(0) == '\'' => self.quote(),
            "r" if self.peek(0) == '#' => {
                self.advance();
            }
            _ => self.push(text, Kind::Word, line),
        }
    }
}
