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
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      negative_data_rejection,unsupported_method,ignored_auth";

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
    }
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
