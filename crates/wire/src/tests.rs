//! The stream's two state machines against each other, and against garbage.

use crate::convert::resources;
use crate::fixture::{any_snapshot, policy, snapshot};
use crate::{Publication, Subscription, Update, proto};
use model::{Limit, Revision, Snapshot};
use proptest::prelude::*;
use prost::Message;
use proto::config_request::Message as Said;
use proto::resource::Body;

/// Lets a subscription answer an update; true if it accepts.
fn answer(subscription: &mut Subscription, publication: &mut Publication, update: proto::ConfigUpdate, accepts: bool) -> bool {
    let candidate = subscription.receive(Update(update)).expect("readable");
    let said = match accepts {
        true => subscription.accept(candidate),
        false => subscription.refuse(candidate, "no"),
    };
    match said.0.message.expect("a message") {
        Said::Ack(ack) => publication.ack(&ack.nonce).map(|_| true).expect("under way"),
        Said::Nack(nack) => publication.nack(&nack.nonce, &nack.reason).map(|_| false).expect("under way"),
        Said::Hello(_) => panic!("hello"),
        Said::Rehearsed(_) | Said::Issuers(_) | Said::Troubles(_) => panic!("a report"),
    }
}

#[test]
fn only_what_changed_is_sent_and_what_is_gone_is_removed() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let mut desired = snapshot();
    let first = publication.next(&desired, Vec::new).expect("the first is whole");
    assert_eq!(first.changed.len(), 10);
    assert!(publication.next(&desired, Vec::new).is_none(), "one at a time");
    assert!(answer(&mut subscription, &mut publication, first, true));
    assert!(publication.next(&desired, Vec::new).is_none(), "nothing is new");

    desired.revision = Revision(2);
    desired.policies[0].text = "forbid".into();
    desired.upstreams.clear();
    let second = publication.next(&desired, Vec::new).expect("a change");
    assert_eq!(second.changed.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["shop/z"]);
    assert_eq!(second.removed, ["upstream/shop/ledger@127.0.0.1:3"]);
    assert!(answer(&mut subscription, &mut publication, second, true));
    assert_eq!(publication.acked_revision(), Revision(2));

    desired.revision = Revision(3);
    let third = publication.next(&desired, Vec::new).expect("a revision alone is told too");
    assert!(third.changed.is_empty() && third.removed.is_empty());
}

#[test]
fn what_was_refused_is_offered_again_only_when_it_changes() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let mut desired = snapshot();
    let update = publication.next(&desired, Vec::new).expect("first");
    assert!(!answer(&mut subscription, &mut publication, update, false));
    assert_eq!(publication.rejected(), Some((Revision(1), "no")));
    assert!(publication.next(&desired, Vec::new).is_none(), "the same again");
    desired.revision = Revision(2);
    desired.policies.pop();
    let update = publication.next(&desired, Vec::new).expect("changed");
    assert_eq!(update.changed.len(), 9, "nothing was acknowledged, so all of it");
    assert!(answer(&mut subscription, &mut publication, update, true));
    assert_eq!(publication.rejected(), None);
}

#[test]
fn an_answer_to_something_else_is_an_error_and_changes_nothing() {
    let mut publication = Publication::new();
    assert!(publication.ack("1-1").is_err(), "nothing is under way");
    let update = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(publication.ack("other").is_err() && publication.nack("other", "x").is_err());
    assert_eq!(publication.ack(&update.nonce), Ok(Revision(1)));
    assert!(publication.ack(&update.nonce).is_err(), "twice");
}

#[test]
fn a_garbage_update_leaves_the_subscription_as_it_was() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let whole = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole.clone(), true));
    let base = proto::ConfigUpdate { nonce: "n".into(), revision: 2, ..Default::default() };
    let twice = vec![whole.changed[0].clone(), whole.changed[0].clone()];
    for (name, update) in [
        ("no nonce", proto::ConfigUpdate { nonce: String::new(), ..base.clone() }),
        ("long nonce", proto::ConfigUpdate { nonce: "n".repeat(65), ..base.clone() }),
        ("revision back", proto::ConfigUpdate { revision: 0, ..base.clone() }),
        ("unknown kind", proto::ConfigUpdate { changed: vec![proto::Resource { name: "x".into(), body: None }], ..base.clone() }),
        ("a part twice", proto::ConfigUpdate { changed: twice, ..base.clone() }),
        ("removes nothing", proto::ConfigUpdate { removed: vec!["policy/none".into()], ..base.clone() }),
        ("dangling", proto::ConfigUpdate { removed: vec!["policy/shop/a".into()], ..base.clone() }),
        ("no workload", proto::ConfigUpdate { removed: vec!["workload/self".into()], ..base.clone() }),
    ] {
        assert!(subscription.receive(Update(update)).is_err(), "{name}");
    }
    let after = subscription.receive(Update(base)).expect("still sound");
    assert_eq!(after.snapshot.policies, snapshot().policies);
}

/// What an update is refused with after the good snapshot was accepted at revision 1.
fn refusal(update: proto::ConfigUpdate) -> String {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let whole = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole, true));
    subscription.receive(Update(update)).expect_err("must be refused").to_string()
}

#[test]
fn an_update_is_refused_with_the_path_of_what_is_wrong_and_the_nack_names_its_nonce() {
    let base = || proto::ConfigUpdate { nonce: "n".into(), revision: 2, ..Default::default() };
    let mut issuer = resources(&snapshot())["issuer/login"].clone();
    if let Some(Body::Issuer(body)) = &mut issuer.body {
        body.algorithms = vec![77];
    }
    let mut renamed = resources(&snapshot())["policy/shop/a"].clone();
    renamed.name = "shop/b".into();
    for (update, told) in [
        (proto::ConfigUpdate { revision: 0, ..base() }, "`revision`: 0 after 1: a revision never goes back"),
        (proto::ConfigUpdate { removed: vec!["policy/x".into()], ..base() }, "`removed`: no `policy/x` to remove"),
        (proto::ConfigUpdate { removed: vec!["a\n".repeat(99)], ..base() }, "`removed`: no `a\\na\\n"),
        (proto::ConfigUpdate { changed: vec![issuer.clone()], ..base() }, "`issuer/login.algorithms[0]`: unknown value 77"),
        (
            proto::ConfigUpdate { changed: vec![renamed], ..base() },
            "`policy/shop/b.name`: its content is that of `policy/shop/a`",
        ),
    ] {
        let said = refusal(update);
        assert!(said.starts_with(told), "{said}");
    }
    let subscription = Subscription::new();
    let nack = subscription.receive(Update(proto::ConfigUpdate { changed: vec![issuer], ..base() })).expect_err("no workload");
    let answer: crate::Answer = nack.into();
    let Some(Said::Nack(nack)) = answer.0.message else { panic!("a nack") };
    assert_eq!((nack.nonce.as_str(), nack.reason.as_str()), ("n", "`workload/self`: missing"));
}

#[test]
fn a_nonce_is_taken_at_its_bound_and_refused_one_byte_over() {
    let of = |bytes: usize| proto::ConfigUpdate {
        nonce: "n".repeat(bytes),
        revision: 1,
        changed: resources(&snapshot()).into_values().collect(),
        ..Default::default()
    };
    let subscription = Subscription::new();
    assert!(subscription.receive(Update(of(64))).is_ok());
    assert!(subscription.receive(Update(of(65))).is_err());
}

#[test]
fn the_reason_of_a_nack_is_cut_at_its_bound_and_at_a_character() {
    for (text, bytes) in [("x".repeat(4096), 4096), ("x".repeat(4097), 4096), ("€".repeat(4096), 4095)] {
        let mut publication = Publication::new();
        let subscription = Subscription::new();
        let whole = publication.next(&snapshot(), Vec::new).expect("first");
        let candidate = subscription.receive(Update(whole)).expect("readable");
        let Some(Said::Nack(nack)) = subscription.refuse(candidate, &text).0.message else { panic!("a nack") };
        assert_eq!(nack.reason.len(), bytes);
        assert!(text.starts_with(&nack.reason));
    }
}

#[test]
fn a_whole_that_no_later_stream_could_begin_with_is_refused_although_the_difference_is_small() {
    let bytes_max = Limit::ConfigMessageBytes.range().0;
    let mut desired = snapshot();
    desired.limits.set(Limit::ConfigMessageBytes, bytes_max).expect("in range");
    desired.policies[0].text = "x".repeat(20_000);
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let whole = publication.next(&desired, Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole, true));

    // The second text fills the whole to the last byte, and then one more.
    desired.revision = Revision(2);
    desired.policies[1].text = "y".repeat(20_000);
    let measured = bytes_left(&subscription, &desired, usize::try_from(bytes_max).expect("small"));
    desired.policies[1].text.push_str(&"y".repeat(measured));
    let update = |desired: &Snapshot| proto::ConfigUpdate {
        nonce: "n".into(),
        revision: 2,
        changed: vec![resources(desired)["policy/shop/a"].clone()],
        ..Default::default()
    };
    assert!(subscription.receive(Update(update(&desired))).is_ok());
    let whole = Publication::new().next(&desired, || vec![0; 8000]).expect("whole").encoded_len();
    assert!(whole <= usize::try_from(bytes_max).expect("small"), "{whole}");
    desired.policies[1].text.push('y');
    let told = subscription.receive(Update(update(&desired))).expect_err("one over").to_string();
    assert_eq!(told, "`changed`: the whole takes 65537 bytes; limit `configMessageBytes` is 65536");
}

/// How many bytes are left of `bytes_max` with this snapshot: what the refusal of a much smaller limit says.
fn bytes_left(subscription: &Subscription, desired: &Snapshot, bytes_max: usize) -> usize {
    let mut over = desired.clone();
    over.policies[1].text.push_str(&"y".repeat(30_000));
    let changed = vec![resources(&over)["policy/shop/a"].clone()];
    let update = proto::ConfigUpdate { nonce: "n".into(), revision: 2, changed, ..Default::default() };
    let told = subscription.receive(Update(update)).expect_err("far over").to_string();
    let bytes: usize = told.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    bytes_max + 30_000 - bytes
}

#[test]
fn parts_are_counted_before_they_are_read() {
    let of = |count: usize| {
        let part =
            |number| proto::Resource { name: format!("{number}"), body: Some(Body::Issuer(proto::TokenIssuer::default())) };
        let changed = (0..count).map(part).collect();
        let update = proto::ConfigUpdate { nonce: "n".into(), revision: 1, changed, ..Default::default() };
        Subscription::new().receive(Update(update)).expect_err("not a snapshot").to_string()
    };
    assert_eq!(of(100_000), "`workload/self`: missing");
    assert_eq!(of(100_001), "`changed`: 100001 parts, 100000 at most");
}

#[test]
fn a_part_that_is_removed_and_sent_in_one_update_is_the_one_that_was_sent() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let whole = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole, true));
    let mut desired = snapshot();
    desired.policies[1].text = "other".into();
    let changed = vec![resources(&desired)["policy/shop/a"].clone()];
    let removed = vec!["policy/shop/a".to_owned()];
    let update = proto::ConfigUpdate { nonce: "n".into(), revision: 1, changed, removed, ..Default::default() };
    assert_eq!(subscription.receive(Update(update)).expect("readable").snapshot, desired);
}

#[test]
fn what_was_refused_and_is_taken_back_counts_as_good_again() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let good = snapshot();
    let whole = publication.next(&good, Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole, true));
    let mut bad = Snapshot { revision: Revision(2), ..good.clone() };
    bad.policies[0].text = "bad".into();
    let update = publication.next(&bad, Vec::new).expect("changed");
    assert!(!answer(&mut subscription, &mut publication, update, false));
    assert_eq!(publication.acked_revision(), Revision(1));
    assert!(publication.next(&Snapshot { revision: Revision(3), ..bad }, Vec::new).is_none(), "the same under a new number");
    let update = publication.next(&Snapshot { revision: Revision(4), ..good }, Vec::new).expect("taken back");
    assert!(update.changed.is_empty() && update.removed.is_empty(), "what is in force was never given up");
    assert!(answer(&mut subscription, &mut publication, update, true));
    assert_eq!((publication.acked_revision(), publication.rejected()), (Revision(4), None));
}

/// One step of a simulated stream.
#[derive(Clone, Debug)]
enum Step {
    /// Another state is wanted; the sidecar takes it or not.
    Desire(Box<Snapshot>, bool),
    /// One policy's text or the order changes.
    Edit(String, bool),
    /// Before the next update comes one that lost some of its bytes' meaning.
    Garbage(prop::sample::Index, u8),
    /// Both sides begin anew.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any_snapshot(), any::<bool>()).prop_map(|(snapshot, accepts)| Step::Desire(Box::new(snapshot), accepts)),
        3 => ("[a-c]", any::<bool>()).prop_map(|(name, accepts)| Step::Edit(name, accepts)),
        2 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, with)| Step::Garbage(at, with)),
        1 => Just(Step::Reconnect),
    ]
}

/// Both sides of one stream, and what should be so.
struct Pair {
    publication: Publication,
    subscription: Subscription,
    desired: Snapshot,
    acked: Revision,
}

impl Pair {
    /// Publishes what is desired and checks that the sidecar sees exactly that.
    fn settle(&mut self, accepts: bool) {
        let Some(update) = self.publication.next(&self.desired, Vec::new) else { return };
        // What travels is bytes.
        let update = proto::ConfigUpdate::decode(update.encode_to_vec().as_slice()).expect("bytes");
        let candidate = self.subscription.receive(Update(update.clone())).expect("readable");
        assert_eq!(candidate.snapshot, self.desired);
        if answer(&mut self.subscription, &mut self.publication, update, accepts) {
            self.acked = self.desired.revision;
        }
        assert_eq!(self.publication.acked_revision(), self.acked);
        assert_eq!(self.publication.rejected().is_some(), !accepts);
    }

    fn take(&mut self, step: Step) {
        let revision = Revision(self.desired.revision.0 + 1);
        match step {
            Step::Desire(snapshot, accepts) => {
                self.desired = Snapshot { revision, ..*snapshot };
                // A random limit may be smaller than a random snapshot; that refusal has its own test.
                self.desired.limits.set(Limit::ConfigMessageBytes, Limit::ConfigMessageBytes.default_value()).expect("in range");
                self.settle(accepts);
            }
            Step::Edit(name, accepts) => {
                self.desired.revision = revision;
                match self.desired.policies.iter().position(|policy| policy.name == format!("shop/{name}")) {
                    Some(at) if accepts => drop(self.desired.policies.remove(at)),
                    Some(at) => self.desired.policies[at].text.push('x'),
                    None => self.desired.policies.insert(0, policy(&name, "permit")),
                }
                self.settle(accepts);
            }
            Step::Garbage(at, with) => {
                let mut bytes = Publication::new().next(&self.desired, Vec::new).expect("whole").encode_to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= with;
                if let Ok(update) = proto::ConfigUpdate::decode(bytes.as_slice())
                    && let Ok(candidate) = self.subscription.receive(Update(update))
                {
                    let _nack = self.subscription.refuse(candidate, "garbage");
                }
            }
            Step::Reconnect => {
                (self.publication, self.subscription) = (Publication::new(), Subscription::new());
                self.acked = Revision(0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn after_any_edits_refusals_garbage_and_reconnects_both_sides_agree(steps in proptest::collection::vec(step(), 1..20)) {
        let (publication, subscription) = (Publication::new(), Subscription::new());
        let mut pair = Pair { publication, subscription, desired: snapshot(), acked: Revision(0) };
        for step in steps {
            pair.take(step);
        }
        // In the end something is wanted that was never refused.
        pair.desired.revision = Revision(pair.desired.revision.0 + 1);
        pair.desired.policies.insert(0, policy("last", "permit"));
        pair.settle(true);
        prop_assert_eq!(pair.acked, pair.desired.revision);
        prop_assert!(pair.publication.next(&pair.desired, Vec::new).is_none(), "nothing is left to say");
        let quiet = proto::ConfigUpdate { nonce: "n".into(), revision: pair.acked.0, ..Default::default() };
        prop_assert_eq!(pair.subscription.receive(Update(quiet)).expect("sound").snapshot, pair.desired);
    }
}
