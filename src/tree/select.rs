//! Selection of a part of a tree by key path and glob.
//!
//! A pattern names nodes, by exact path (`params/h_0`) or by glob over the escaped node path (`params/h_*/kernel`,
//! `opt/**`, `**/bias`, `{params,opt}/wte`). Naming a container names everything below it. A leading `!`
//! excludes, whatever the order; with excludes alone, the rest is selected. `*` and `?` do not cross a
//! slash, `**` does. Escaped paths hold none of the glob characters, so a pattern is never ambiguous.
//!
//! What is selected keeps its containers and keys: a list of which the positions 3 and 7 are selected is a list
//! with the keys 3 and 7, and the paths of its leaves are those in the checkpoint. A container of which
//! nothing is left is dropped; one that was saved empty counts as itself.
//!
//! **Invariant:** a pattern that matches nothing is an error, excludes too: a typo never selects silently.

use super::{
    layout::join,
    nearest::{hint, nearest},
    path::segment,
    tree::Tree,
};
use crate::error::{Error, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::collections::HashMap;

/// Which leaves of a tree are wanted.
#[derive(Clone, Debug, Default)]
pub struct Select {
    patterns: Vec<Pattern>,
    /// Node path to patterns that are exactly it.
    exact: HashMap<String, Vec<usize>>,
    globs: GlobSet,
    /// Pattern of each glob in `globs`.
    glob_patterns: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    exclude: bool,
}

/// What the patterns say about a node and all above it.
#[derive(Clone, Copy)]
struct Verdict {
    included: bool,
    excluded: bool,
}

impl Select {
    /// Selects everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Selects by patterns; none selects everything.
    ///
    /// # Errors
    /// `Invalid` where a pattern is no glob.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut select = Self::default();
        let mut globs = GlobSetBuilder::new();
        for (i, text) in patterns.into_iter().enumerate() {
            let text = text.as_ref();
            let (exclude, path) = match text.strip_prefix('!') {
                Some("") => return Err(Error::invalid("an exclude names nothing")),
                Some(path) => (true, path),
                None => (false, text),
            };
            // `params/` and `/params` are how people write a directory.
            let path = path.strip_suffix('/').unwrap_or(path);
            let path = path.strip_prefix('/').unwrap_or(path);
            if path.contains(['*', '?', '[', ']', '{', '}']) {
                globs.add(
                    GlobBuilder::new(path)
                        .literal_separator(true)
                        .build()
                        .map_err(|e| bad_glob(text, e))?,
                );
                select.glob_patterns.push(i);
            } else {
                select.exact.entry(path.to_owned()).or_default().push(i);
            }
            select.patterns.push(Pattern { text: text.to_owned(), exclude });
        }
        select.globs = globs.build().map_err(|e| bad_glob("", e))?;
        Ok(select)
    }

    /// Tells whether everything is selected.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Marks the patterns that match a node itself and returns the verdict on it.
    fn judge<L>(&self, tree: &Tree<L>, path: &str, above: Verdict, hits: &mut [bool]) -> Verdict {
        let mut verdict = above;
        let mut hit = |pattern: usize| {
            hits[pattern] = true;
            if self.patterns[pattern].exclude {
                verdict.excluded = true;
            } else {
                verdict.included = true;
            }
        };
        self.exact.get(path).into_iter().flatten().for_each(|pattern| hit(*pattern));
        // `*` matches the empty path of the root, but means the nodes below it, unless it is the only one.
        if !path.is_empty() || !matches!(tree, Tree::Branch { .. }) {
            self.globs.matches(path).into_iter().for_each(|glob| hit(self.glob_patterns[glob]));
        }
        verdict
    }

    fn walk<L: Clone>(
        &self,
        tree: &Tree<L>,
        path: &mut String,
        above: Verdict,
        hits: &mut [bool],
    ) -> Option<Tree<L>> {
        let verdict = self.judge(tree, path, above, hits);
        let selected = verdict.included && !verdict.excluded;
        let (container, children) = match tree {
            Tree::Branch { container, children } => (container, children),
            other => return selected.then(|| other.clone()),
        };
        let bytes = path.len();
        let mut kept = Vec::new();
        for (key, child) in children {
            join(path, &segment(key));
            // Below an exclude, too: whether the other patterns match anything is still to be found out.
            if let Some(child) = self.walk(child, path, verdict, hits) {
                kept.push((key.clone(), child));
            }
            path.truncate(bytes);
        }
        let keep = if children.is_empty() { selected } else { !kept.is_empty() };
        keep.then(|| Tree::Branch { container: container.clone(), children: kept })
    }

    /// Returns the error about patterns without a hit, where there are any.
    fn check_hits<L>(&self, hits: &[bool], tree: &Tree<L>) -> Result<()> {
        let lost: Vec<_> =
            self.patterns.iter().zip(hits).filter(|(_, hit)| !**hit).map(|(p, _)| p).collect();
        let Some(first) = lost.first() else { return Ok(()) };
        let mut paths = Vec::new();
        node_paths(tree, &mut String::new(), &mut paths);
        let wanted = first.text.trim_start_matches('!').trim_matches('/');
        let near = nearest(wanted, paths.iter().map(String::as_str), 3);
        let texts: Vec<_> = lost.iter().take(10).map(|p| p.text.as_str()).collect();
        let error = Error::not_found(match lost.len() {
            1 => "a pattern matches nothing".to_owned(),
            n => format!("{n} patterns match nothing"),
        })
        .with("pattern", texts.join(" "));
        Err(match hint(&near) {
            Some(text) => error.hint(text),
            None => error.hint("`milepost tree` prints the key paths"),
        })
    }
}

impl<L: Clone> Tree<L> {
    /// Returns the part of the tree that `select` names, with its containers and keys.
    ///
    /// Leaves that are dear to clone are selected as references: `tree.as_ref().select(..)`.
    ///
    /// # Errors
    /// `NotFound` where a pattern matches nothing, with the nearest paths; `Invalid` where the excludes
    /// leave nothing.
    pub fn select(&self, select: &Select) -> Result<Self> {
        if select.is_all() {
            return Ok(self.clone());
        }
        let mut hits = vec![false; select.patterns.len()];
        let included = select.patterns.iter().all(|pattern| pattern.exclude);
        let above = Verdict { included, excluded: false };
        let selected = select.walk(self, &mut String::new(), above, &mut hits);
        select.check_hits(&hits, self)?;
        selected.ok_or_else(|| Error::invalid("the patterns leave nothing selected"))
    }
}

fn node_paths<L>(tree: &Tree<L>, path: &mut String, paths: &mut Vec<String>) {
    paths.push(path.clone());
    let Tree::Branch { children, .. } = tree else { return };
    let bytes = path.len();
    for (key, child) in children {
        join(path, &segment(key));
        node_paths(child, path, paths);
        path.truncate(bytes);
    }
}

fn bad_glob(text: &str, error: globset::Error) -> Error {
    Error::invalid("not a glob").with("pattern", text).because(error)
}

#[cfg(test)]
mod tests {
    use super::{super::tree::tests::trees, *};
    use crate::{ErrorKind, KeyPath};
    use proptest::prelude::*;

    fn state() -> Tree<u32> {
        let layer = || Tree::dict([("kernel", Tree::leaf(1)), ("bias", Tree::leaf(2))]);
        Tree::dict([
            ("params", Tree::dict([("h_0", layer()), ("h_1", layer()), ("wte", Tree::leaf(3))])),
            ("opt", Tree::tuple([Tree::None, Tree::list([]), layer(), Tree::leaf(4)])),
        ])
    }

    fn paths(patterns: &[&str]) -> Vec<String> {
        let selected = state().select(&Select::new(patterns).unwrap()).unwrap();
        selected.leaves().map(|(path, _)| path.to_string()).collect()
    }

    #[test]
    fn exact_paths_name_leaves_and_whole_subtrees() {
        assert_eq!(paths(&["params/wte"]), ["params/wte"]);
        assert_eq!(paths(&["params/h_1"]), ["params/h_1/kernel", "params/h_1/bias"]);
        assert_eq!(paths(&["params/h_1/"]), paths(&["/params/h_1"]));
        assert_eq!(paths(&["opt/3", "params/wte"]), ["params/wte", "opt/3"], "tree order");
        assert_eq!(paths(&[""]).len(), 8);
        assert_eq!(paths(&[]).len(), 8);
    }

    #[test]
    fn globs_cross_slashes_only_with_two_stars() {
        assert_eq!(paths(&["params/h_*/kernel"]), ["params/h_0/kernel", "params/h_1/kernel"]);
        assert_eq!(paths(&["**/bias"]), ["params/h_0/bias", "params/h_1/bias", "opt/2/bias"]);
        assert_eq!(paths(&["opt/**"]), ["opt/2/kernel", "opt/2/bias", "opt/3"]);
        assert_eq!(paths(&["{params,opt}/[w3]*"]), ["params/wte", "opt/3"]);
        let select = Select::new(["*/kernel"]).unwrap();
        assert_eq!(state().select(&select).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_glob_that_names_a_container_names_all_below_it() {
        assert_eq!(paths(&["params/h_?"]), paths(&["params/h_?/**"]));
        assert_eq!(paths(&["*"]).len(), 8);
    }

    #[test]
    fn excludes_win_whatever_the_order_and_alone_leave_the_rest() {
        assert_eq!(paths(&["!**/bias", "params"]), paths(&["params", "!**/bias"]));
        assert_eq!(paths(&["params", "!params/h_0"]).len(), 3);
        assert_eq!(paths(&["!params"]), ["opt/2/kernel", "opt/2/bias", "opt/3"]);
        let error = state().select(&Select::new(["opt", "!opt"]).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_partial_list_keeps_its_positions_and_cannot_be_saved_as_a_list() {
        let selected = state().select(&Select::new(["opt/3", "opt/1"]).unwrap()).unwrap();
        let Some(Tree::Branch { container, children }) = selected.get(&KeyPath::from(["opt"]))
        else {
            panic!("opt is a container")
        };
        assert_eq!(*container, crate::Container::Tuple);
        let keys: Vec<_> = children.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, [crate::Key::Index(1), crate::Key::Index(3)]);
        assert_eq!(children[0].1, Tree::list([]), "what was saved empty counts");
        assert_eq!(selected.validate().unwrap_err().kind(), ErrorKind::Invalid);
        assert!(selected.get(&KeyPath::from(["params"])).is_none());
    }

    #[test]
    fn a_pattern_without_a_match_is_an_error_with_near_names_even_as_an_exclude() {
        for pattern in ["params/h_0/kernle", "!params/h_0/kernle", "params/h_0/kernle*"] {
            let select = Select::new(["opt", pattern]).unwrap();
            let error = state().select(&select).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert_eq!(error.get("pattern"), Some(pattern));
            assert!(error.hint_text().unwrap().contains("params/h_0/kernel"), "{error:?}");
        }
        // A pattern that only matches what an exclude takes away does match.
        let select = Select::new(["opt", "params/wte", "!params"]).unwrap();
        assert_eq!(state().select(&select).unwrap().leaf_count(), 3);
    }

    #[test]
    fn patterns_that_are_no_globs_are_refused() {
        for pattern in ["!", "params/[", "a{b", "a]["] {
            let error = Select::new([pattern]).map(|_| ()).expect_err(pattern);
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn an_item_that_is_one_leaf_is_selected_by_the_root_and_by_stars() {
        for pattern in ["", "**", "*"] {
            let selected = Tree::leaf(1).select(&Select::new([pattern]).unwrap()).unwrap();
            assert_eq!(selected, Tree::Leaf(1));
        }
    }

    proptest! {
        #[test]
        fn any_one_leaf_is_selected_by_its_path_alone(tree in trees(), pick in any::<prop::sample::Index>()) {
            let leaves: Vec<_> = tree.leaves().collect();
            prop_assume!(!leaves.is_empty());
            let (path, leaf) = pick.get(&leaves);
            let text = path.to_string();
            let selected = tree.select(&Select::new([&text]).unwrap()).unwrap();
            prop_assert_eq!(selected.leaves().collect::<Vec<_>>(), vec![(path.clone(), *leaf)]);
            let rest = Select::new([format!("!{text}")]).and_then(|rest| tree.select(&rest));
            if let Ok(rest) = rest {
                prop_assert_eq!(rest.leaf_count(), leaves.len() - 1);
            } else {
                prop_assert!(leaves.len() == 1, "only an exclude of the last leaf leaves nothing");
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(text in "[a-c*?{}!,/\\\\\\[\\]^-]{0,10}", tree in trees()) {
            if let Ok(select) = Select::new([text]) {
                drop(tree.select(&select));
            }
        }
    }
}
