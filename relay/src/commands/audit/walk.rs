//! The walk through both tables: a page of one, its counterparts in the other. What does not balance
//! is put aside, in bounded memory, and looked at once more before it is reported: on a living system
//! rows change while they are read.

use std::collections::HashMap;

use outbox::row::OutboxStatus;
use tokio::time::Instant;

use super::Audit;
use super::PAGE;
use super::inbox::{Inbox, InboxRow};
use super::judge::judge;
use super::ledger::Ledger;
use super::outbox::{Outbox, OutboxRow};
use crate::commands::progress::Progress;

/// Messages put aside; then these are looked at again before the walk goes on.
const ASIDE_MAX: usize = 50_000;

/// A message that did not balance at first sight.
struct Aside {
    outbox: Option<OutboxRow>,
    inbox: Option<InboxRow>,
}

struct Walk<'a> {
    audit: &'a Audit,
    outbox: Outbox,
    inbox: Inbox,
    aside: Vec<Aside>,
    ledger: Ledger,
}

/// Through the outbox by id, then through the inbox for what the outbox does not have.
pub(super) async fn walk(audit: &Audit, outbox: Outbox, inbox: Inbox) -> anyhow::Result<Ledger> {
    let mut walk = Walk {
        audit,
        outbox,
        inbox,
        aside: Vec::new(),
        ledger: Ledger::new(audit),
    };
    walk.through_outbox().await?;
    walk.through_inbox().await?;
    walk.look_again().await?;
    walk.ledger.close();
    Ok(walk.ledger)
}

impl Walk<'_> {
    async fn through_outbox(&mut self) -> anyhow::Result<()> {
        let upto = self.outbox.upto().await?;
        let chosen = &self.audit.chosen;
        let mut progress = Progress::new("outbox", upto);
        let (mut page, mut next) = self.outbox.page((0, upto), chosen).await?;
        loop {
            let ids: Vec<&str> = page.iter().map(|row| row.message_id.as_str()).collect();
            // The next page of one server is read while the other one looks for this one's.
            let (found, following) = futures::try_join!(self.inbox.find(&ids), async {
                match next {
                    Some(after) => self.outbox.page((after, upto), chosen).await.map(Some),
                    None => Ok(None),
                }
            })?;
            self.take(page, found);
            if self.aside.len() >= ASIDE_MAX {
                self.look_again().await?;
            }
            let Some((following, behind)) = following else {
                return Ok(());
            };
            progress.at(next.unwrap_or(upto));
            (page, next) = (following, behind);
        }
    }

    fn take(&mut self, page: Vec<OutboxRow>, found: Vec<InboxRow>) {
        let mut found = by_message(found);
        for outbox in page {
            self.ledger.counts.outbox_rows += 1;
            let inbox = found.remove(&outbox.message_id);
            self.first_sight(Some(outbox), inbox);
        }
    }

    fn first_sight(&mut self, outbox: Option<OutboxRow>, inbox: Option<InboxRow>) {
        let verdict = judge(outbox.as_ref(), inbox.as_ref(), self.audit.bounds);
        if verdict.is_some_and(|verdict| verdict.kind.may_pass()) {
            self.aside.push(Aside { outbox, inbox });
        } else {
            self.ledger.enter(outbox.as_ref(), inbox.as_ref(), verdict);
        }
    }

    /// Only rows that the outbox does not have; the others were met already, or came later.
    async fn through_inbox(&mut self) -> anyhow::Result<()> {
        let mut progress = Progress::new("inbox", self.ledger.counts.outbox_rows);
        let chosen = &self.audit.chosen;
        let (mut page, mut next) = self.inbox.page(&[], chosen).await?;
        loop {
            let ids: Vec<&str> = page.iter().map(|row| row.message_id.as_str()).collect();
            let (known, following) = futures::try_join!(self.outbox.known(&ids), async {
                match &next {
                    Some(after) => self.inbox.page(after, chosen).await.map(Some),
                    None => Ok(None),
                }
            })?;
            for row in page {
                self.ledger.counts.inbox_rows += 1;
                if !known.contains(&row.message_id) {
                    self.first_sight(None, Some(row));
                }
            }
            if self.aside.len() >= ASIDE_MAX {
                self.look_again().await?;
            }
            progress.at(self.ledger.counts.inbox_rows);
            let Some((following, behind)) = following else {
                return Ok(());
            };
            (page, next) = (following, behind);
        }
    }

    /// Everything that was put aside, as it is now; then it is reported.
    async fn look_again(&mut self) -> anyhow::Result<()> {
        if self.aside.is_empty() {
            return Ok(());
        }
        // The last one was put aside just now.
        tokio::time::sleep_until(Instant::now() + self.audit.recheck_after).await;
        let aside = std::mem::take(&mut self.aside);
        for part in aside.chunks(PAGE) {
            let ids: Vec<u64> = part
                .iter()
                .filter_map(|aside| Some(aside.outbox.as_ref()?.id))
                .collect();
            let outbox = match ids.is_empty() {
                true => Vec::new(),
                false => self.outbox.again(&ids).await?,
            };
            let messages: Vec<&str> = part.iter().filter_map(Aside::message_id).collect();
            let inbox = by_message(self.inbox.find(&messages).await?);
            self.compare(part, outbox, &inbox);
        }
        Ok(())
    }

    fn compare(
        &mut self,
        part: &[Aside],
        outbox: Vec<OutboxRow>,
        inbox: &HashMap<String, InboxRow>,
    ) {
        let outbox: HashMap<u64, OutboxRow> = outbox.into_iter().map(|row| (row.id, row)).collect();
        for aside in part {
            let received = aside.message_id().and_then(|id| inbox.get(id));
            let now = match &aside.outbox {
                None => None,
                Some(before) => match outbox.get(&before.id) {
                    Some(row) if row.message_id == before.message_id => Some(row),
                    // Deleted: by the clean-up after its retention, or by hand. What had been sent is
                    // judged by the inbox all the same: a lost message stays lost.
                    _ => {
                        self.ledger.counts.gone += 1;
                        if before.status != OutboxStatus::Sent {
                            continue;
                        }
                        Some(before)
                    }
                },
            };
            let verdict = judge(now, received, self.audit.bounds);
            self.ledger.enter(now, received, verdict);
        }
    }
}

impl Aside {
    fn message_id(&self) -> Option<&str> {
        let outbox = self.outbox.as_ref().map(|row| row.message_id.as_str());
        outbox.or(self.inbox.as_ref().map(|row| row.message_id.as_str()))
    }
}

fn by_message(rows: Vec<InboxRow>) -> HashMap<String, InboxRow> {
    rows.into_iter()
        .map(|row| (row.message_id.clone(), row))
        .collect()
}
