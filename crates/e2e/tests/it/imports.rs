//! No import cycle between the modules of a crate.
//!
//! A module is a file. Modules form a tree, and the rule holds at each level of it: of the children of
//! one parent, each taken together with everything below it, no two import each other, directly or
//! through others. If `http` or a module below it names an item of `page` or below it, then nothing in
//! `page` names an item of `http`.
//!
//! Between a module and its own descendants the rule requires nothing: `mod child` downward and
//! `super::Item` upward are how one module is written in several files. So an item that two siblings
//! share belongs into a module that both import, or into their parent.
//!
//! An item counts where it is defined: a name that a module re-exports is followed to its origin.
//! Comments, strings and `#[cfg(test)]` items are not imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

type Names = Vec<String>;

/// A file of the crate, and what it names.
#[derive(Default)]
struct Module {
    children: BTreeSet<String>,
    /// Names that `use` brings in, and the paths behind them.
    aliases: BTreeMap<String, Names>,
    /// Every path in the file.
    paths: BTreeSet<Names>,
}

/// The modules of one program or library by their paths; the root's is empty.
#[derive(Default)]
struct Modules(BTreeMap<Names, Module>);

impl Modules {
    fn of(root: &Path) -> Self {
        let mut modules = Self::default();
        modules.read(root, root.parent().unwrap(), Vec::new());
        modules
    }

    /// A file, and the files of the modules that it declares; these are in `directory`.
    fn read(&mut self, file: &Path, directory: &Path, name: Names) {
        let text = fs::read_to_string(file).unwrap_or_else(|err| panic!("{file:?}: {err}"));
        let tokens: TokenStream = text.parse().unwrap_or_else(|err| panic!("{file:?}: {err}"));
        let mut module = Module::default();
        module.scan(tokens);
        for child in module.children.clone() {
            let beside = directory.join(format!("{child}.rs"));
            let below = directory.join(&child).join("mod.rs");
            let file = if beside.exists() { beside } else { below };
            let name = [name.clone(), vec![child.clone()]].concat();
            self.read(&file, &directory.join(&child), name);
        }
        self.0.insert(name, module);
    }

    /// The module in which the name at the end of a path is defined; none outside of the crate.
    fn origin(&self, of: &Names, path: &[String], depth: u8) -> Option<Names> {
        let (first, mut rest) = path.split_first()?;
        let module = &self.0[of];
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => of.clone(),
            "super" => of.split_last()?.1.to_vec(),
            name if module.children.contains(name) => [of.as_slice(), &[name.to_owned()]].concat(),
            name => {
                let behind = module.aliases.get(name).filter(|_| depth > 0)?;
                let whole = [behind.as_slice(), rest].concat();
                return self.origin(of, &whole, depth - 1);
            }
        };
        while let Some((next, after)) = rest.split_first() {
            let module = &self.0[&at];
            if next == "super" {
                at.pop();
            } else if module.children.contains(next) {
                at.push(next.clone());
            } else if let Some(behind) = module.aliases.get(next).filter(|_| depth > 0) {
                let whole = [behind.as_slice(), after].concat();
                return self.origin(&at, &whole, depth - 1);
            } else {
                break;
            }
            rest = after;
        }
        Some(at)
    }

    /// Imports between children of one parent: parent, importing child, imported child, and where.
    fn imports(&self) -> BTreeMap<(Names, String), BTreeMap<String, String>> {
        let mut imports: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (of, module) in &self.0 {
            for path in &module.paths {
                let Some(to) = self.origin(of, path, 8) else {
                    continue;
                };
                let same = of.iter().zip(&to).take_while(|(a, b)| a == b).count();
                let (Some(from), Some(into)) = (of.get(same), to.get(same)) else {
                    continue;
                };
                let spot = format!("{} names {}", of.join("::"), path.join("::"));
                let key = (of[..same].to_vec(), from.clone());
                let into_all = imports.entry(key).or_default();
                into_all.entry(into.clone()).or_insert(spot);
            }
        }
        imports
    }

    /// One line for each import that is part of a cycle.
    fn cycles(&self) -> Vec<String> {
        let imports = self.imports();
        let reaches = |parent: &Names, from: &String, goal: &String| {
            let mut seen = BTreeSet::new();
            let mut ahead = vec![from.clone()];
            while let Some(next) = ahead.pop() {
                if next == *goal {
                    return true;
                }
                if seen.insert(next.clone()) {
                    let further = imports.get(&(parent.clone(), next));
                    ahead.extend(further.iter().flat_map(|all| all.keys().cloned()));
                }
            }
            false
        };
        let mut cycles = Vec::new();
        for ((parent, from), all) in &imports {
            let part = all.iter().filter(|(into, _)| reaches(parent, into, from));
            cycles.extend(part.map(|(into, spot)| format!("{from} -> {into}: {spot}")));
        }
        cycles
    }
}

impl Module {
    /// Takes the paths and the declared modules out of a file's or a group's tokens.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if is_of_tests(&tokens[at..]) {
                at = behind_item(&tokens, at + 2);
                continue;
            }
            match &tokens[at] {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(word) if word == "mod" && is_punct(tokens.get(at + 2), ';') => {
                    self.children.insert(tokens[at + 1].to_string());
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = (at..tokens.len()).find(|&end| is_punct(tokens.get(end), ';'));
                    let end = end.expect("a use ends");
                    self.import(&tokens[at + 1..end], &[]);
                    at = end;
                }
                TokenTree::Ident(_) if is_path(&tokens[at + 1..]) => {
                    let mut path = vec![tokens[at].to_string()];
                    while is_path(&tokens[at + 1..]) {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else {
                            break;
                        };
                        path.push(next.to_string());
                        at += 3;
                    }
                    self.paths.insert(path);
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// The tree of a `use`, behind what stands in front of its brace.
    fn import(&mut self, tokens: &[TokenTree], before: &[String]) {
        let is_comma = |token: &TokenTree| is_punct(Some(token), ',');
        for branch in tokens.split(is_comma) {
            let mut path = before.to_vec();
            let mut alias = None;
            let mut is_leaf = !branch.is_empty();
            for (at, token) in branch.iter().enumerate() {
                match token {
                    TokenTree::Group(group) => {
                        let inner: Vec<_> = group.stream().into_iter().collect();
                        self.import(&inner, &path);
                        is_leaf = false;
                    }
                    TokenTree::Ident(word) if word == "as" => {
                        alias = branch.get(at + 1).map(ToString::to_string);
                        break;
                    }
                    // `use a::{self}` names `a`.
                    TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                    TokenTree::Ident(word) => path.push(word.to_string()),
                    TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            if is_leaf && let Some(last) = path.last() {
                let name = alias.unwrap_or_else(|| last.clone());
                // `use serde;` would name itself.
                if path.len() > 1 || name != path[0] {
                    self.aliases.insert(name, path.clone());
                }
                self.paths.insert(path);
            }
        }
    }
}

fn is_punct(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_path(tokens: &[TokenTree]) -> bool {
    is_punct(tokens.first(), ':') && is_punct(tokens.get(1), ':')
}

/// `#[cfg(test)]`, in front of an item.
fn is_of_tests(tokens: &[TokenTree]) -> bool {
    let Some(TokenTree::Group(group)) = tokens.get(1) else {
        return false;
    };
    is_punct(tokens.first(), '#') && group.stream().to_string().replace(' ', "") == "cfg(test)"
}

/// Behind the item that begins here: its block or its semicolon.
fn behind_item(tokens: &[TokenTree], from: usize) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(Some(token), ';'),
    };
    let end = tokens[from..].iter().position(is_end);
    end.map_or(tokens.len(), |end| from + end + 1)
}

/// The roots of a crate's library and programs.
fn roots(of: &Path) -> Vec<PathBuf> {
    let src = of.join("src");
    let mut roots = vec![src.join("lib.rs"), src.join("main.rs")];
    for program in fs::read_dir(src.join("bin")).into_iter().flatten() {
        let path = program.unwrap().path();
        roots.push(if path.is_dir() {
            path.join("main.rs")
        } else {
            path
        });
    }
    roots.retain(|root| root.exists());
    roots
}

/// Writes these files as a crate and gives the cycles in it.
fn cycles_of(files: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join("src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Modules::of(&dir.path().join("src/lib.rs")).cycles()
}

#[test]
fn siblings_that_name_each_other_are_a_cycle_wherever_the_item_is_named_from() {
    let lib = ("lib.rs", "mod a; mod b; mod c; pub use c::C;");
    let c = ("c.rs", "pub struct C; fn c() { crate::a::a() }");
    let below = ("b/below.rs", "use crate::C;");
    let b = ("b.rs", "mod below; pub struct B;");
    let a = ("a.rs", "use crate::b::B; pub fn a() {}");
    assert_eq!(
        cycles_of(&[lib, a, b, below, c]),
        [
            "a -> b: a names crate::b::B",
            "b -> c: b::below names crate::C",
            "c -> a: c names crate::a::a",
        ]
    );
}

#[test]
fn parents_comments_strings_and_tests_make_no_cycle() {
    let lib = ("lib.rs", "mod a; mod b;");
    let a = ("a.rs", "mod below; pub struct A; use below::Below;");
    let below = (
        "a/below.rs",
        "use super::A; use crate::b; pub struct Below;",
    );
    let b = (
        "b.rs",
        "//! [`crate::a::A`]\n// use crate::a::A;\n/* crate::a::A */ \
         const TEXT: &str = \"use crate::a::A;\";\n\
         #[cfg(test)]\nmod tests { use crate::a::A; }\n\
         #[cfg(test)]\nuse crate::a::A as Tested;\n",
    );
    assert_eq!(cycles_of(&[lib, a, below, b]), Vec::<String>::new());
}

#[test]
fn no_two_modules_of_a_crate_import_each_other() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let inner = fs::read_dir(top.join("crates")).unwrap();
    let inner = inner.map(|entry| entry.unwrap().path());
    let outer = ["order-svc", "pay-svc", "relay"].map(|name| top.join(name));
    let mut cycles = Vec::new();
    let mut files = 0;
    for of in inner.chain(outer) {
        for root in roots(&of) {
            let modules = Modules::of(&root);
            files += modules.0.len();
            let lines = modules.cycles();
            cycles.extend(lines.iter().map(|line| format!("{}: {line}", of.display())));
        }
    }
    assert!(files > 200, "only {files} files were read");
    assert!(cycles.is_empty(), "import cycles:\n{}", cycles.join("\n"));
}

/// What the engine may name outside of itself: its vocabulary, the row, and the verdicts of a batch.
const ENGINE_USES: [&str; 8] = [
    "rustc_hash",
    "std::cmp",
    "std::collections",
    "std::fmt",
    "std::hash",
    "std::ops",
    "std::sync::Arc",
    "std::time",
];
const ENGINE_USES_OURS: [&str; 2] = ["outbox::row", "crate::publish::confirms"];
/// It has no clock, no randomness, nothing that waits and nothing that logs or counts by itself.
const ENGINE_NAMES_NOT: [&str; 10] = [
    "Instant::now",
    "SystemTime",
    "async",
    "await",
    "tokio",
    "tracing",
    "prometheus",
    "rand::",
    "sqlx",
    "lapin::",
];

#[test]
fn the_engine_imports_nothing_that_waits() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../relay/src/engine");
    let mut files = 0;
    for entry in fs::read_dir(&engine).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            if let Some(used) = line.trim().strip_prefix("use ") {
                let allowed = ENGINE_USES.iter().chain(&ENGINE_USES_OURS);
                let own = used.starts_with("super::") || used.starts_with("self::");
                let fits = own || allowed.clone().any(|allowed| used.starts_with(allowed));
                assert!(fits, "{path:?}: {line}");
            }
            for name in ENGINE_NAMES_NOT {
                let words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
                let named = words
                    .into_iter()
                    .any(|word| word == name || word.contains(name) && name.contains("::"));
                assert!(!named, "{path:?} names {name}: {line}");
            }
        }
        files += 1;
    }
    assert!(files > 12, "{files} files");
}
