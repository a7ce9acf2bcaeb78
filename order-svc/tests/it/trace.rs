//! W3C Trace Context, from the request to the headers of its message.

use e2e::Flavor;
use reqwest::StatusCode;
use serde_json::Value;

use crate::app::{App, order};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The headers of the message of an order that was requested with these.
async fn headers_after(app: &App, requested: &[(&str, &str)]) -> Value {
    let mut request = app
        .client
        .post(format!("{}/orders", app.url))
        .json(&order());
    for (name, value) in requested {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let receipt: Value = answer.json().await.unwrap();
    let sql = "SELECT headers FROM outbox WHERE message_id = ?";
    let headers: String = sqlx::query_scalar(sql)
        .bind(receipt["message_id"].as_str().unwrap())
        .fetch_one(&app.pool)
        .await
        .unwrap();
    serde_json::from_str(&headers).unwrap()
}

e2e::on_each_server!(a_request_s_trace_goes_on_in_its_message);
async fn a_request_s_trace_goes_on_in_its_message(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let app = App::start(db).await;
    let with_state = [("traceparent", PARENT), ("tracestate", "vendor=1")];
    let headers = headers_after(&app, &with_state).await;
    let expected = serde_json::json!({"traceparent": PARENT, "tracestate": "vendor=1"});
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn without_a_valid_trace_a_new_one_is_started() {
    let app = App::start(e2e::shared::mariadb().await).await;
    let zeros = PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
    let mut seen = Vec::new();
    for requested in [
        vec![],
        vec![("traceparent", "nonsense"), ("tracestate", "vendor=1")],
        vec![("traceparent", zeros.as_str())],
        vec![("traceparent", PARENT), ("traceparent", PARENT)],
        vec![("tracestate", "vendor=1")],
    ] {
        let headers = headers_after(&app, &requested).await;
        assert_eq!(headers.as_object().unwrap().len(), 1, "{headers}");
        let parent = headers["traceparent"].as_str().unwrap().to_owned();
        let lengths: Vec<usize> = parent.split('-').map(str::len).collect();
        assert_eq!(lengths, [2, 32, 16, 2], "{parent}");
        assert!(parent != PARENT && !seen.contains(&parent), "{parent}");
        seen.push(parent);
    }
}
