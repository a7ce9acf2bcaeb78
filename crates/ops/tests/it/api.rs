//! The JSON API: who may come in, what is refused, and the answers' codes.

use axum::Router;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use svc_kit::tasks;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{OPERATOR, VIEWER, World, worlds};

struct Api {
    url: String,
    client: Client,
}

impl Api {
    async fn serve(router: Router) -> Self {
        svc_kit::boot::install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = svc_kit::http::serve(
            listener,
            router,
            CancellationToken::new(),
            std::time::Duration::from_secs(1),
        );
        drop(tasks::unit(serve));
        let client = Client::builder().no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none());
        let client = client.build().unwrap();
        Self { url, client }
    }

    async fn of(world: &World) -> Self {
        Self::serve(ops::router(&world.console)).await
    }

    fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        request.bearer_auth(token)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::GET, path, VIEWER)).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request(Method::POST, path, OPERATOR).json(&body)).await
    }
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or(Value::Null))
}

#[tokio::test]
async fn nothing_is_anonymous_and_viewers_do_not_act() {
    let world = worlds().await.remove(0);
    let api = Api::of(&world).await;
    for path in [
        "/ops/api/rows",
        "/ops/api/nothing",
        "/ops/openapi.json",
        "/ops/api/me",
    ] {
        let url = format!("{}{path}", api.url);
        for request in [
            api.client.get(&url),
            api.client.get(&url).bearer_auth("wrong"),
            api.client.get(&url).basic_auth("ann", Some(OPERATOR)),
        ] {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 401, "{path}");
            assert_eq!(answer.headers()["www-authenticate"], "Bearer");
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
        }
    }
    for path in [
        "/ops/api/rows/1/retry",
        "/ops/api/bulks",
        "/ops/api/discard",
    ] {
        let (status, body) = answer(api.request(Method::POST, path, VIEWER).json(&json!({}))).await;
        assert_eq!(
            (status, &body["code"]),
            (403, &json!("not_an_operator")),
            "{path}"
        );
    }
    let (status, me) = api.get("/ops/api/me").await;
    assert_eq!(
        (status, &me["name"], &me["role"]),
        (200, &json!("bob"), &json!("viewer"))
    );
}

#[tokio::test]
async fn without_tokens_it_is_off() {
    let world = worlds().await.remove(0);
    let url = svc_kit::database::DatabaseUrl::parse("mysql://u@127.0.0.1:1/d").unwrap();
    let off = ops::Console::new(world.console.table().clone(), url, ops::Settings::default());
    let api = Api::serve(ops::router(&off)).await;
    for path in ["/ops", "/ops/api/rows", "/ops/openapi.json"] {
        let (status, body) = api.get(path).await;
        assert_eq!((status, &body["code"]), (404, &json!("ops_off")), "{path}");
    }
}

#[tokio::test]
async fn a_database_that_is_down_is_a_503_with_retry_after() {
    let world = worlds().await.remove(0);
    let url = svc_kit::database::DatabaseUrl::parse("mysql://u@127.0.0.1:1/d").unwrap();
    let settings = ops::Settings {
        tokens: world.console.tokens().clone(),
        ..ops::Settings::default()
    };
    let down = ops::Console::new(world.console.table().clone(), url, settings);
    let api = Api::serve(ops::router(&down)).await;
    let request = api.request(Method::GET, "/ops/api/rows", VIEWER);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["retry-after"], "2");
}

#[tokio::test]
async fn rows_are_listed_shown_and_acted_on() {
    for world in worlds().await {
        let api = Api::of(&world).await;
        let keys = world.park("m", 3, "too_large").await;
        let (status, page) = api.get("/ops/api/rows?class=too_large&limit=2").await;
        assert_eq!((status, page["rows"].as_array().unwrap().len()), (200, 2));
        let next = page["next"].as_str().unwrap();
        let (_, page) = api
            .get(&format!("/ops/api/rows?limit=2&after={next}"))
            .await;
        assert_eq!(
            (page["rows"][0]["key"].as_str(), &page["next"]),
            (Some(&*keys[0]), &Value::Null)
        );
        let (_, groups) = api.get("/ops/api/groups").await;
        assert_eq!(groups["groups"][0]["rows"], 3);
        let path = format!("/ops/api/rows/{}", keys[0]);
        let (status, detail) = api.get(&path).await;
        assert_eq!((status, &detail["payload"]["form"]), (200, &json!("json")));

        let (status, body) = api.post(&format!("{path}/discard"), json!({})).await;
        assert_eq!(
            (status, &body["errors"][0]["field"]),
            (422, &json!("reason"))
        );
        let (status, _) = api
            .post(&format!("{path}/discard"), json!({"reason": "no use"}))
            .await;
        assert_eq!(status, 200);
        let (status, body) = api.post(&format!("{path}/retry"), json!({})).await;
        assert_eq!((status, &body["code"]), (409, &json!("conflict")));
        assert_eq!(
            body["errors"][0],
            json!({"field": "state", "detail": "discarded"})
        );
        assert_eq!(
            body["errors"][1],
            json!({"field": "actor", "detail": "ann"})
        );
        let (status, body) = api.post("/ops/api/retry", json!({"keys": keys})).await;
        assert_eq!((status, &body["done"]), (200, &json!(2)));
        assert_eq!(body["outcomes"][0]["outcome"], "conflict");
        let (status, _) = api.post("/ops/api/rows/4711/retry", json!({})).await;
        assert_eq!(status, 404);
        let edit = json!({"edit": {"payload": "[]"}, "reason": "fixed"});
        let (status, _) = api.post(&format!("{path}/restore"), json!({})).await;
        assert_eq!(status, 200);
        let (status, body) = api.post(&format!("{path}/edit"), edit).await;
        assert_eq!(status, 200, "{body}");

        let (_, actions) = api.get("/ops/api/actions?action=discard").await;
        assert_eq!(actions["actions"][0]["reason"], "no use");
        let csv = api.request(Method::GET, "/ops/api/actions.csv?limit=1", VIEWER);
        let csv = csv.send().await.unwrap();
        assert!(csv.headers()["link"].to_str().unwrap().contains("before="));
        let csv = csv.text().await.unwrap();
        assert!(
            csv.starts_with("id,at,actor") && csv.matches("\r\n").count() == 2,
            "{csv}"
        );
    }
}

#[tokio::test]
async fn a_bulk_is_begun_shown_and_paused() {
    let world = worlds().await.remove(0);
    let api = Api::of(&world).await;
    world.park("m", 3, "too_large").await;
    let plan = json!({"plan": {"canary": 1, "rate": 0.5, "filter": {"class": "too_large"}}});
    let (status, refused) = api.post("/ops/api/bulks", json!({})).await;
    assert_eq!((status, &refused["code"]), (422, &json!("invalid_request")));
    let (status, begun) = api.post("/ops/api/bulks", plan).await;
    assert_eq!(status, 202, "{begun}");
    let path = format!("/ops/api/bulks/{}", begun["id"]);
    e2e::wait::until("the bulk", std::time::Duration::from_secs(20), async || {
        api.get(&path).await.1["state"] == "running"
    })
    .await;
    let (_, bulk) = api.get(&path).await;
    assert_eq!(bulk["progress"]["waiting"], 2, "{bulk}");
    let (status, _) = api.post(&format!("{path}/pause"), json!({})).await;
    assert_eq!(status, 200);
    let (status, body) = api.post(&format!("{path}/pause"), json!({})).await;
    assert_eq!((status, &body["code"]), (409, &json!("conflict")));
    e2e::wait::until("its rows", std::time::Duration::from_secs(20), async || {
        api.get(&path).await.1["followed"] == true
    })
    .await;
    // As a failure leaves it: what is not held back yet would go before the canary.
    world
        .sql("UPDATE TABLE_bulks SET state = 'stopped', held = 0")
        .await;
    let (status, body) = api.post(&format!("{path}/resume"), json!({})).await;
    assert_eq!((status, &body["code"]), (409, &json!("conflict")));
    assert!(body["title"].as_str().unwrap().contains("held back"));
    world
        .sql("UPDATE TABLE_bulks SET state = 'paused', held = 1")
        .await;
    assert_eq!(api.get("/ops/api/bulks/9").await.0, 404);
    assert_eq!(api.get("/ops/api/bulks/x").await.0, 404);
    assert_eq!(api.get("/ops/api/bulks").await.1[0]["state"], "paused");
}

#[tokio::test]
async fn requests_that_are_wrong_are_reported_why() {
    let world = worlds().await.remove(0);
    let api = Api::of(&world).await;
    for (path, status) in [
        ("/ops/api/rows?limit=0", 422),
        ("/ops/api/rows?limit=many", 400),
        ("/ops/api/rows?colour=red", 400),
        ("/ops/api/rows?state=lost", 400),
        ("/ops/api/rows?older_than=-1", 400),
        ("/ops/api/rows?older_than=18446744073709551615", 422),
        ("/ops/api/rows?after=x", 422),
        ("/ops/api/rows?text=%FF%00%27", 200),
        ("/ops/api/rows?state=pending", 200),
        ("/ops/api/rows/%FF", 400),
        ("/ops/api/rows/0", 404),
        ("/ops/api/actions?limit=0", 422),
        ("/ops/api/none", 404),
        ("/ops/api/retry", 405),
    ] {
        assert_eq!(api.get(path).await.0, status, "{path}");
    }
    let post = |body: &'static str, mime: &'static str| {
        let request = api.request(Method::POST, "/ops/api/retry", OPERATOR);
        answer(request.header("content-type", mime).body(body))
    };
    assert_eq!(post("{", "application/json").await.0, 400);
    assert_eq!(post("{}", "text/plain").await.0, 415);
    assert_eq!(post("{}", "application/json").await.0, 422);
    assert_eq!(post(r#"{"keys":[1]}"#, "application/json").await.0, 422);
    assert_eq!(post(r#"{"colour":1}"#, "application/json").await.0, 422);
    let long: &'static str = Box::leak("x".repeat(70_000).into_boxed_str());
    assert_eq!(post(long, "application/json").await.0, 413);
    let (status, document) = api.get("/ops/openapi.json").await;
    assert_eq!(status, 200);
    assert!(document["paths"]["/ops/api/rows/{key}/edit"]["post"].is_object());
}

#[tokio::test]
async fn wrong_tokens_make_an_address_wait_at_both_doors_and_right_ones_never_wait() {
    let world = worlds().await.remove(0);
    let api = Api::of(&world).await;
    let url = format!("{}/ops/api/me", api.url);
    for _ in 0..30 {
        // Without a token nothing is guessed.
        let answer = api.client.get(&url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401);
    }
    for _ in 0..10 {
        let answer = api
            .client
            .get(&url)
            .bearer_auth("wrong")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), 401);
    }
    let guess = api.client.get(&url).bearer_auth("wrong");
    let answer = guess.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 429);
    let wait = answer.headers()["retry-after"].to_str().unwrap();
    let wait: u64 = wait.parse().unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
    let answer = log_in(&api, "wrong").await;
    assert_eq!(answer.status().as_u16(), 429);
    assert!(answer.headers().contains_key("retry-after"));
    // The right one works all the same, and does not buy the guesses a new start.
    let right = api.client.get(&url).bearer_auth(OPERATOR);
    assert_eq!(right.send().await.unwrap().status().as_u16(), 200);
    assert_eq!(log_in(&api, OPERATOR).await.status().as_u16(), 303);
    assert_eq!(log_in(&api, "wrong").await.status().as_u16(), 429);
}

/// The page's login, with a form's secret of our own.
async fn log_in(api: &Api, token: &str) -> reqwest::Response {
    let login = api.client.post(format!("{}/ops/login", api.url));
    let login = login
        .header("cookie", "ops-login=x")
        .header("origin", &api.url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("csrf=x&token={token}"));
    login.send().await.unwrap()
}

#[tokio::test]
async fn the_audit_as_a_file_is_whole_however_long_it_is() {
    for world in worlds().await {
        let fill = "INSERT INTO operator_actions (actor, action, target) \
                    WITH RECURSIVE seq (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM seq WHERE i < 199) \
                    SELECT 'ann', IF(MOD(a.i + b.i, 2), 'note', 'retry'), CONCAT(a.i, '-', b.i) \
                    FROM seq a JOIN seq b";
        world.sql(fill).await;
        let api = Api::serve(ops::router(&world.console)).await;
        let answer = log_in(&api, OPERATOR).await;
        assert_eq!(answer.status().as_u16(), 303);
        let cookies = answer.headers().get_all("set-cookie").iter();
        let cookies = cookies.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        for (query, rows) in [("", 40_000), ("?action=note", 20_000)] {
            let file = api.client.get(format!("{}/ops/audit.csv{query}", api.url));
            let file = file.header("cookie", &cookies).send().await.unwrap();
            let text = file.text().await.unwrap();
            assert_eq!(text.lines().count(), 1 + rows, "{query}");
            assert_eq!(text.matches("id,at,actor").count(), 1);
        }
    }
}
