//! What `/openapi.json` promises, under schemathesis: no 5xx, and no status, content type or body
//! that the document does not name.

use std::{path::PathBuf, time::Duration};

use e2e::{
    Flavor,
    product::Process,
    stage::{OPERATOR_TOKEN, Stage},
};

use crate::rows::park;

/// Where `crates/e2e/test-ui.sh` has put it.
const PROGRAM: &str = "SCHEMATHESIS";
/// The same requests in every run.
const SEED: &str = "20260";
const PATIENCE: Duration = Duration::from_secs(120);

/// What a service has to keep. `unsupported_method` is among it: 405 for any other method.
/// `ignored_auth` is not: it takes the 429 that follows many wrong tokens for a failure, so that
/// [`nobody_gets_in`] looks at each operation instead.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      negative_data_rejection,unsupported_method";

#[tokio::test]
async fn every_contract_holds_under_a_fuzzer() {
    let stage = Stage::set_up(Flavor::MariaDb).await.unwrap();
    park(&stage.pool).await;
    for (url, path, examples) in [
        (&stage.order.url, "/openapi.json", "60"),
        (&stage.pay.url, "/openapi.json", "60"),
        // A score of operations each.
        (&stage.relay.admin, "/ops/openapi.json", "8"),
        (&stage.pay.admin, "/ops/openapi.json", "8"),
    ] {
        holds(&format!("{url}{path}"), examples, &stage).await;
        nobody_gets_in(url, path).await;
    }
}

/// Every operation that wants a token answers 401 without one, and 401 or 429 with a wrong one.
async fn nobody_gets_in(url: &str, path: &str) {
    let client = reqwest::Client::new();
    let document = client.get(format!("{url}{path}"));
    let document = document.bearer_auth(OPERATOR_TOKEN).send().await.unwrap();
    let document: serde_json::Value = document.json().await.unwrap();
    let mut closed = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "1").replace("{key}", "1");
        for (method, operation) in operations.as_object().unwrap() {
            let security = operation.get("security").unwrap_or(&document["security"]);
            if security.as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = || client.request(method.clone(), format!("{url}{path}"));
            let without = request().send().await.unwrap().status().as_u16();
            assert_eq!(without, 401, "{method} {path} without a token");
            let wrong = request().bearer_auth("a-wrong-0123456789-token");
            let wrong = wrong.send().await.unwrap().status().as_u16();
            assert!(matches!(wrong, 401 | 429), "{method} {path}: {wrong}");
            closed += 1;
        }
    }
    eprintln!("{url}{path}: {closed} operations want a token");
    assert!(closed > 10 || path == "/openapi.json", "{closed}");
}

async fn holds(document: &str, examples: &str, stage: &Stage) {
    let program = PathBuf::from(std::env::var(PROGRAM).expect("run this through `make test-ui`"));
    let authorization = format!("Authorization: Bearer {OPERATOR_TOKEN}");
    let scratch = tempfile::tempdir().unwrap();
    let args = [
        "run",
        document,
        "--checks",
        CHECKS,
        "--max-examples",
        examples,
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--seed",
        SEED,
        "--header",
        &authorization,
        "--request-timeout",
        "20",
        "--continue-on-failure",
        "--no-color",
    ];
    // It keeps a database of what failed before; each run begins without.
    let home = scratch.path().to_str().unwrap();
    let env = [("HOME", home), ("HYPOTHESIS_STORAGE_DIRECTORY", home)];
    let run = Process::spawn(&program, &args, &env).unwrap();
    let ended = run.wait_exit(PATIENCE).await.unwrap();
    let log = run.log();
    assert!(
        ended.success(),
        "{document}: {ended}\n{log}\n{}",
        stage.logs()
    );
    let figures = log.lines().find(|line| line.contains(" generated, "));
    eprintln!("{document}: {}", figures.expect("it says how many").trim());
}
