//! What a message is, by its row in the outbox and its row in the inbox. No IO, no clock.

use std::time::Duration;

use outbox::row::{InboxStatus, OutboxStatus};

use super::inbox::InboxRow;
use super::outbox::OutboxRow;

/// Where waiting ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// `--late`.
    pub(super) late: Duration,
    /// `--grace`.
    pub(super) grace: Duration,
}

/// What does not balance, and what is reported beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Sent, and the inbox does not know it.
    Missing,
    /// On its way: not sent, not received, or not processed yet.
    Waiting,
    /// A person must look, at either end.
    Parked,
    /// A person decided that it goes no further; it balances.
    Discarded,
    /// The inbox has it, the outbox does not (any more); it balances.
    InboxOnly,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [
        Self::Missing,
        Self::Waiting,
        Self::Parked,
        Self::Discarded,
        Self::InboxOnly,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Waiting => "waiting",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::InboxOnly => "inbox_only",
        }
    }

    /// It may have become something else meanwhile, so it is looked at again.
    pub(super) const fn may_pass(self) -> bool {
        matches!(self, Self::Missing | Self::Waiting | Self::Parked)
    }
}

/// What a message is, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    pub(super) why: &'static str,
    pub(super) late: bool,
}

/// `None` when it was sent and is processed.
pub(super) fn judge(
    outbox: Option<&OutboxRow>,
    inbox: Option<&InboxRow>,
    bounds: Bounds,
) -> Option<Verdict> {
    let (kind, why) = match (outbox.map(|row| row.status), inbox.map(|row| row.status)) {
        (None, None) => return None,
        (None, Some(status)) => without_outbox(status),
        (Some(OutboxStatus::Pending), _) => (Kind::Waiting, "not sent yet"),
        (Some(OutboxStatus::Parked), _) => (Kind::Parked, "parked in the outbox"),
        (Some(OutboxStatus::Discarded), _) => (Kind::Discarded, "discarded in the outbox"),
        (Some(OutboxStatus::Sent), None) if is_young(outbox, bounds) => {
            (Kind::Waiting, "sent a moment ago, not in the inbox yet")
        }
        (Some(OutboxStatus::Sent), None) => (Kind::Missing, "sent, not in the inbox"),
        (Some(OutboxStatus::Sent), Some(InboxStatus::Processed)) => return None,
        (Some(OutboxStatus::Sent), Some(InboxStatus::Received)) => {
            (Kind::Waiting, "received, not processed yet")
        }
        (Some(OutboxStatus::Sent), Some(InboxStatus::Parked)) => {
            (Kind::Parked, "parked in the inbox")
        }
        (Some(OutboxStatus::Sent), Some(InboxStatus::Discarded)) => {
            (Kind::Discarded, "discarded in the inbox")
        }
    };
    let age = outbox.map_or(inbox.map_or(Duration::ZERO, |row| row.age), |row| row.age);
    let waits = matches!(kind, Kind::Missing | Kind::Waiting);
    let delayed = outbox.is_some_and(|row| row.delayed);
    Some(Verdict {
        kind,
        why,
        late: waits && !delayed && age > bounds.late,
    })
}

fn is_young(outbox: Option<&OutboxRow>, bounds: Bounds) -> bool {
    outbox.is_some_and(|row| row.sent_age.is_some_and(|age| age <= bounds.grace))
}

/// Deleted after its retention, put in another way, or another producer's.
fn without_outbox(status: InboxStatus) -> (Kind, &'static str) {
    match status {
        InboxStatus::Received => (
            Kind::Waiting,
            "received, not processed yet; not in the outbox",
        ),
        InboxStatus::Parked => (Kind::Parked, "parked in the inbox; not in the outbox"),
        InboxStatus::Processed => (Kind::InboxOnly, "processed; not in the outbox"),
        InboxStatus::Discarded => (Kind::InboxOnly, "discarded; not in the outbox"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        late: Duration::from_mins(5),
        grace: Duration::from_secs(30),
    };
    const MINUTE: Duration = Duration::from_mins(1);

    fn sent(age: Duration) -> OutboxRow {
        OutboxRow {
            id: 1,
            message_id: "m".into(),
            status: OutboxStatus::Sent,
            event_type: "t".into(),
            key: "k".into(),
            age,
            sent_age: Some(age),
            delayed: false,
        }
    }

    fn with(status: OutboxStatus) -> OutboxRow {
        OutboxRow {
            status,
            ..sent(MINUTE)
        }
    }

    fn received(status: InboxStatus) -> InboxRow {
        InboxRow {
            message_id: "m".into(),
            status,
            event_type: None,
            key: None,
            age: MINUTE,
        }
    }

    #[track_caller]
    fn is(outbox: Option<&OutboxRow>, inbox: Option<InboxStatus>, kind: Option<Kind>) {
        let verdict = judge(outbox, inbox.map(received).as_ref(), BOUNDS);
        assert_eq!(verdict.map(|verdict| verdict.kind), kind);
    }

    #[test]
    fn every_pair_of_states_has_its_kind() {
        use InboxStatus as In;
        use OutboxStatus as Out;
        let all = [
            None,
            Some(In::Received),
            Some(In::Processed),
            Some(In::Parked),
            Some(In::Discarded),
        ];
        for inbox in all {
            is(Some(&with(Out::Pending)), inbox, Some(Kind::Waiting));
            is(Some(&with(Out::Parked)), inbox, Some(Kind::Parked));
            is(Some(&with(Out::Discarded)), inbox, Some(Kind::Discarded));
        }
        let sent_kinds = [
            Some(Kind::Missing),
            Some(Kind::Waiting),
            None,
            Some(Kind::Parked),
            Some(Kind::Discarded),
        ];
        let alone_kinds = [
            None,
            Some(Kind::Waiting),
            Some(Kind::InboxOnly),
            Some(Kind::Parked),
            Some(Kind::InboxOnly),
        ];
        for ((inbox, of_sent), of_alone) in all.into_iter().zip(sent_kinds).zip(alone_kinds) {
            is(Some(&with(Out::Sent)), inbox, of_sent);
            is(None, inbox, of_alone);
        }
    }

    #[test]
    fn a_row_sent_a_moment_ago_waits_and_is_not_missing() {
        is(Some(&sent(BOUNDS.grace)), None, Some(Kind::Waiting));
        let later = BOUNDS.grace + Duration::from_millis(1);
        is(Some(&sent(later)), None, Some(Kind::Missing));
    }

    #[test]
    fn what_waits_for_longer_than_the_bound_is_late_unless_it_is_delayed() {
        let late = |row: &OutboxRow, inbox: Option<InboxStatus>| {
            judge(Some(row), inbox.map(received).as_ref(), BOUNDS).is_some_and(|v| v.late)
        };
        let old = sent(BOUNDS.late + MINUTE);
        assert!(late(&old, None));
        assert!(late(&old, Some(InboxStatus::Received)));
        assert!(!late(&old, Some(InboxStatus::Parked)));
        assert!(!late(&sent(BOUNDS.late), None));
        let pending = OutboxRow {
            status: OutboxStatus::Pending,
            ..old
        };
        assert!(late(&pending, None));
        let delayed = OutboxRow {
            delayed: true,
            ..pending
        };
        assert!(!late(&delayed, None));
    }
}
