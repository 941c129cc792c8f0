//! Splitting names loses nothing and makes a tree.

use crate::safetensors::{join_names, split_names};
use proptest::{collection::hash_set, prelude::*};

fn split(names: &[&str]) -> Vec<Vec<String>> {
    split_names(names, ".").unwrap()
}

#[test]
fn dotted_names_become_key_paths() {
    assert_eq!(
        split(&["h.0.attn.bias", "wte", "h.10.attn.bias"]),
        [vec!["h", "0", "attn", "bias"], vec!["wte"], vec!["h", "10", "attn", "bias"]]
    );
}

#[test]
fn beside_its_dotted_prefix_a_name_keeps_its_tail_as_one_key() {
    assert_eq!(split(&["a.b", "a.b.c"]), [vec!["a", "b"], vec!["a", "b.c"]]);
    assert_eq!(split(&["a.b.c", "a.b"]), [vec!["a", "b.c"], vec!["a", "b"]], "in any order");
    assert_eq!(
        split(&["a.b.c.d", "a.b.c", "a.b", "a.bc", "a.c.d"]),
        [
            vec!["a", "b.c.d"],
            vec!["a", "b.c"],
            vec!["a", "b"],
            vec!["a", "bc"],
            vec!["a", "c", "d"]
        ]
    );
    assert_eq!(split(&["a", "a.b.c"]), [vec!["a"], vec!["a.b.c"]]);
}

#[test]
fn from_an_empty_part_on_the_rest_is_one_key() {
    assert_eq!(
        split(&["a..b.c", ".x.y", "z.", "", "."]),
        [vec!["a", ".b.c"], vec![".x.y"], vec!["z", ""], vec![""], vec!["."]]
    );
}

#[test]
fn very_deep_names_keep_their_tail_as_one_key() {
    let name = vec!["k"; 600].join(".");
    let keys = &split(&[&name])[0];
    assert_eq!(keys.len(), 129);
    assert_eq!(keys.join("."), name);
}

#[test]
fn names_there_twice_and_empty_separators_are_refused() {
    assert!(split_names(&["a", "b", "a"], ".").is_err());
    assert!(split_names(&["a"], "").is_err());
    let error = join_names(&[vec!["a.b", "c"], vec!["a", "b.c"]], ".").unwrap_err().to_string();
    assert!(error.contains(r#"["a.b", "c"]"#) && error.contains(r#"["a", "b.c"]"#), "{error}");
}

proptest! {
    #[test]
    fn splitting_loses_nothing_and_no_leaf_sits_in_anothers_way(
        names in hash_set("[ab.]{0,9}", 0..30),
        separator in prop_oneof![Just("."), Just(".."), Just("a.")],
    ) {
        let names: Vec<_> = names.into_iter().collect();
        let paths = split_names(&names, separator).unwrap();
        prop_assert_eq!(&join_names(&paths, separator).unwrap(), &names);
        for (i, a) in paths.iter().enumerate() {
            for (j, b) in paths.iter().enumerate() {
                prop_assert!(i == j || !b.starts_with(a), "{:?} and {:?}", a, b);
            }
        }
    }
}
