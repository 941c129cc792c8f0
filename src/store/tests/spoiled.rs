use super::{conformance::everything, *};
use crate::error::ErrorKind;

fn spoiled() -> Arc<FaultStore> {
    FaultStore::new(MemoryStore::new())
}

#[test]
fn without_a_rule_nothing_is_spoiled() {
    block_on(everything(&*spoiled()));
}

#[test]
fn operations_and_bytes_are_counted_by_verb() {
    let store = spoiled();
    block_on(async {
        put(&*store, "a", pattern(100)).await;
        put(&*store, "b", pattern(50)).await;
        whole(&*store, "a").await;
        store.get("a", Span::Suffix { len: 7 }, Priority::Restore).await.unwrap();
        store.read("a", 0, regions(&[10, 20]), Priority::Restore).await.unwrap();
        store.head("gone").await.unwrap_err();
    });
    assert_eq!(store.count(Verb::Put), Count { requests: 2, bytes: 150 });
    assert_eq!(store.count(Verb::Get), Count { requests: 2, bytes: 107 });
    assert_eq!(store.count(Verb::Read), Count { requests: 1, bytes: 30 });
    assert_eq!(store.requests(Verb::Head), 1);
    assert_eq!(store.requests(Verb::List), 0);
    store.reset_counts();
    assert!(store.counts().is_empty());
}

#[test]
fn the_nth_operation_fails_once_and_is_not_done() {
    let store = spoiled();
    store.spoil(Verb::Put, 2, Action::Fail(ErrorKind::Unavailable));
    block_on(async {
        put(&*store, "a", "1").await;
        let error = store.put("b", vec![], Priority::Foreground).await.unwrap_err();
        assert_eq!((error.kind(), error.get("object")), (ErrorKind::Unavailable, Some("b")));
        store.head("b").await.unwrap_err();
        put(&*store, "b", "2").await;
    });
}

#[test]
fn a_lost_answer_is_an_error_of_something_done() {
    let store = spoiled();
    store.spoil(Verb::PutNew, 1, Action::Lose(ErrorKind::Unavailable));
    block_on(async {
        store.put_new("a", Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(whole(&*store, "a").await, "x");
    });
}

#[test]
fn damage_is_seen_by_the_reader() {
    let store = spoiled();
    block_on(async {
        put(&*store, "a", pattern(100)).await;
        store.spoil_all(Verb::Get, Action::Flip);
        let flipped = whole(&*store, "a").await;
        assert_eq!(flipped.iter().zip(pattern(100)).filter(|(a, b)| **a != *b).count(), 1);
        store.spoil_all(Verb::Get, Action::Truncate);
        assert_eq!(whole(&*store, "a").await, pattern(100)[..50]);
        let span = Span::Suffix { len: 1 };
        let error = store.get("a", span, Priority::Restore).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        store.spoil_all(Verb::Read, Action::Flip);
        let read = store.read("a", 0, regions(&[0, 100]), Priority::Restore).await.unwrap();
        assert_ne!(read[1][..], pattern(100)[..]);
    });
}

#[test]
fn a_torn_write_leaves_half() {
    let store = spoiled();
    block_on(async {
        store.spoil(Verb::Put, 1, Action::Tear);
        store.put("a", vec![pattern(100).into()], Priority::Foreground).await.unwrap_err();
        assert_eq!(whole(&*store, "a").await, pattern(100)[..50]);
        let writer = store.create("b", 100, Priority::Foreground).await.unwrap();
        store.spoil(Verb::WriteAt, 1, Action::Tear);
        writer.write_at(0, Buffer::from(&pattern(100)[..])).await.unwrap_err();
        writer.finish(60).await.unwrap();
        let torn = whole(&*store, "b").await;
        assert_eq!((&torn[..50], &torn[50..]), (&pattern(100)[..50], &[0; 10][..]));
    });
}

#[test]
fn after_a_crash_nothing_answers() {
    let store = spoiled();
    block_on(async {
        store.crash_at(2, Action::Lose(ErrorKind::Unavailable));
        put(&*store, "a", "1").await;
        store.head("a").await.unwrap();
        store.put("b", vec![], Priority::Foreground).await.unwrap_err();
        store.head("a").await.unwrap_err();
        store.put("c", vec![], Priority::Foreground).await.unwrap_err();
        store.clear_rule();
        store.head("b").await.unwrap();
        store.head("c").await.unwrap_err();
    });
}

#[test]
fn a_delayed_operation_is_overtaken() {
    let store = spoiled();
    store.spoil(Verb::Put, 1, Action::Delay(std::time::Duration::from_millis(30)));
    block_on(async {
        let slow = store.put("a", vec![Bytes::from_static(b"slow")], Priority::Foreground);
        let (slow, ()) = futures::join!(slow, put(&*store, "a", "fast"));
        slow.unwrap();
        assert_eq!(whole(&*store, "a").await, "slow");
    });
}

#[test]
fn the_numbers_of_an_operation_count_its_verb_all_and_the_changes() {
    let store = spoiled();
    let (tell, told) = std::sync::mpsc::channel();
    store.set_rule(move |o| {
        tell.send((o.verb, o.nth, o.nth_of_all, o.nth_change)).unwrap();
        None
    });
    block_on(async {
        put(&*store, "a", "1").await;
        whole(&*store, "a").await;
        put(&*store, "a", "2").await;
    });
    let seen: Vec<_> = told.try_iter().collect();
    assert_eq!(seen, [(Verb::Put, 1, 1, 1), (Verb::Get, 1, 2, 1), (Verb::Put, 2, 3, 2)]);
}
