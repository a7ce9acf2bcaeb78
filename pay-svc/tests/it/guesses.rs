//! Guesses of the operators' tokens at every door of a real process.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use e2e::product::Process;
use e2e::wait::until;
use reqwest::header::{CONTENT_TYPE, COOKIE, ORIGIN, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder};
use uuid::Uuid;

use crate::app::{OPERATOR, SOON, database, vhost};
use crate::messages::{ORDER_PLACED, order_payload};
use crate::process::start;

const GUESSES: usize = 300;

/// Where a token is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Login,
    Api,
    Pay,
}

const DOORS: [Door; 3] = [Door::Login, Door::Api, Door::Pay];

struct Target {
    _process: Process,
    listen: String,
    admin: String,
    message: String,
}

fn client() -> ClientBuilder {
    Client::builder().no_proxy().redirect(Policy::none())
}

impl Target {
    async fn start() -> Self {
        let tables = database(e2e::shared::mariadb().await).await;
        let vhost = vhost(e2e::shared::rabbit().await).await;
        let address = || format!("127.0.0.1:{}", e2e::port::free().unwrap());
        let (listen, admin) = (address(), address());
        let tokens = format!("ann:operator:{OPERATOR}");
        let process = start(
            &["run"],
            &[
                ("DATABASE_URL", tables.url.as_str()),
                ("AMQP_URL", &vhost.amqp_url),
                ("OPS_TOKENS", &tokens),
                ("LISTEN_ADDR", &listen),
                ("ADMIN_ADDR", &admin),
            ],
        );
        let target = Self {
            _process: process,
            listen,
            admin,
            message: format!(
                r#"{{"message_id":"by-hand","type":"{ORDER_PLACED}","payload":{}}}"#,
                order_payload(Uuid::now_v7())
            ),
        };
        let (client, ready) = (client().build().unwrap(), target.url("/readyz"));
        until("readiness", SOON, async || {
            let answer = client.get(&ready).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        target
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    fn show(&self, door: Door, client: &Client, token: &str) -> RequestBuilder {
        match door {
            Door::Login => client
                .post(self.url("/ops/login"))
                .header(COOKIE, "ops-login=x")
                .header(ORIGIN, self.url(""))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(format!("csrf=x&token={token}")),
            Door::Api => client.get(self.url("/ops/api/me")).bearer_auth(token),
            Door::Pay => client
                .post(format!("http://{}/pay", self.listen))
                .header(CONTENT_TYPE, "application/json")
                .body(self.message.clone())
                .bearer_auth(token),
        }
    }

    /// Shows a token; a refusal for too many has to say when the next one is looked at.
    async fn try_at(&self, door: Door, client: &Client, token: &str) -> u16 {
        let answer = self.show(door, client, token).send().await.unwrap();
        if answer.status().as_u16() == 429 {
            let wait = answer.headers()[RETRY_AFTER].to_str().unwrap();
            let wait: u64 = wait.parse().unwrap();
            assert!((1..=61).contains(&wait), "{door:?}: {wait}");
        }
        answer.status().as_u16()
    }

    /// The right token, at every door.
    async fn let_in(&self, client: &Client) {
        for door in DOORS {
            let status = self.try_at(door, client, OPERATOR).await;
            assert!([200, 202, 303].contains(&status), "{door:?}: {status}");
        }
    }

    /// Guesses from these addresses in turn, with the right token shown between them at every door;
    /// how many were answered with each status.
    async fn guess(&self, door: Door, from: &[Client]) -> BTreeMap<u16, usize> {
        let mut answers = BTreeMap::new();
        let all = (0..GUESSES).collect::<Vec<_>>();
        for some in all.chunks(30) {
            let guesses = some.iter().map(|n| {
                let client = &from[n % from.len()];
                async move { self.try_at(door, client, &format!("guess-{n:012}")).await }
            });
            let right = self.let_in(&from[0]);
            let (statuses, ()) = futures::join!(futures::future::join_all(guesses), right);
            for status in statuses {
                *answers.entry(status).or_default() += 1;
            }
        }
        answers
    }
}

/// One address from which 10 are looked at, and one more every 6 s; 60 from all, and one a second.
#[track_caller]
fn bounded(answers: &BTreeMap<u16, usize>, burst: usize, refill: u64, took: Duration) {
    let seen = GUESSES - answers.get(&429).copied().unwrap_or_default();
    let most = burst + usize::try_from(took.as_secs() / refill).unwrap() + 1;
    assert!((burst..=most).contains(&seen), "{answers:?} in {took:?}");
}

#[tokio::test]
async fn three_hundred_guesses_at_any_door_are_throttled_and_the_right_token_always_works() {
    for door in DOORS {
        let target = Target::start().await;
        let here = [client().build().unwrap()];
        let begun = Instant::now();
        let answers = target.guess(door, &here).await;
        bounded(&answers, 10, 6, begun.elapsed());
        // What was guessed at one door counts at the others; what was right forgives nothing.
        let others = DOORS.map(|door| target.try_at(door, &here[0], "another-wrong-one"));
        let statuses = futures::future::join_all(others).await;
        assert!(
            statuses.iter().filter(|status| **status == 429).count() >= 2,
            "{statuses:?}"
        );
        target.let_in(&here[0]).await;
    }
}

#[tokio::test]
async fn a_hundred_addresses_share_one_budget_and_the_right_token_works_from_each() {
    let target = Target::start().await;
    let from = |n| {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 1, n));
        client().local_address(address).build().unwrap()
    };
    let addresses = (1..=100).map(from).collect::<Vec<_>>();
    let begun = Instant::now();
    let answers = target.guess(Door::Pay, &addresses).await;
    bounded(&answers, 60, 1, begun.elapsed());
    for client in &addresses {
        target.let_in(client).await;
    }
}
