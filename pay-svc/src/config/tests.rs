//! What is refused, and how it is reported.

use super::*;

fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
    let url = "mysql://pay:secret@db/payments";
    let mut all = vec!["pay-svc", "run", "--database-url", url];
    all.extend(["--amqp-url", "amqp://pay:secret@mq/%2F"]);
    all.extend(args);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => args.resolve(),
        Command::Migrate(_) | Command::Parked(_) => panic!("run was requested"),
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = resolve(&[]).unwrap();
    assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8762");
    assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9762");
    assert_eq!(
        usize::from(config.intake.prefetch),
        2 * config.intake.batch_max
    );
    assert_eq!(config.work.policy.attempts_max, 10);
    assert_eq!(config.work.policy.age_max, Duration::from_secs(24 * 3600));
    assert_eq!(config.work.provider_timeout, Duration::from_secs(10));
    let days = |days: u64| Duration::from_hours(24 * days);
    assert_eq!(config.retention, Some(days(30)));
    assert_eq!(
        retention::least(days(7), config.work.policy.age_max),
        days(15)
    );
    assert!(!config.work.ignored.contains(Some("order.cancelled.v1")));
}

#[test]
fn each_setting_that_cannot_work_is_named_with_its_fix() {
    for (args, field) in [
        (["--provider", "http"], "PAY_PROVIDER_URL"),
        (["--provider-url", "http://h"], "PAY_PROVIDER_URL"),
        (["--provider-concurrency", "0"], "PAY_PROVIDER_CONCURRENCY"),
        (
            ["--simulated-failure-rate", "1.5"],
            "PAY_SIMULATED_FAILURE_RATE",
        ),
        (
            ["--simulated-failure-rate", "NaN"],
            "PAY_SIMULATED_FAILURE_RATE",
        ),
        (["--prefetch", "0"], "PAY_PREFETCH"),
        (["--batch-max", "0"], "PAY_BATCH_MAX"),
        (["--buffer-bytes", "1000"], "PAY_BUFFER_BYTES"),
        (["--idle-renewal", "0s"], "PAY_IDLE_RENEWAL"),
        (["--workers", "0"], "PAY_WORKERS"),
        (["--max-attempts", "0"], "PAY_MAX_ATTEMPTS"),
        (["--backoff-min", "10m"], "PAY_BACKOFF_MIN"),
        (["--backoff-min", "0s"], "PAY_BACKOFF_MIN"),
        (["--max-age", "0s"], "PAY_MAX_AGE"),
        (["--provider-timeout", "0s"], "PAY_PROVIDER_TIMEOUT"),
        (["--ops-tokens", "ann"], "OPS_TOKENS"),
        (["--ignore-types", "order.*"], "PAY_IGNORE_TYPES"),
        (["--retention", "14d"], "PAY_RETENTION"),
        (["--replay-window", "23d"], "PAY_RETENTION"),
        (["--max-age", "17d"], "PAY_RETENTION"),
    ] {
        let err = resolve(&args).unwrap_err();
        assert_eq!(err.field, field, "{args:?}");
        assert!(!err.fix.is_empty() && !err.problem.is_empty());
    }
}

#[test]
fn an_http_provider_that_cannot_work_is_named_with_its_fix() {
    let ok = "https://provider.example/charges";
    for (url, more, field) in [
        ("provider.example", [""; 2], "PAY_PROVIDER_URL"),
        ("/charges", [""; 2], "PAY_PROVIDER_URL"),
        ("ftp://provider.example", [""; 2], "PAY_PROVIDER_URL"),
        ("http://", [""; 2], "PAY_PROVIDER_URL"),
        (
            "https://me:secret@provider.example",
            [""; 2],
            "PAY_PROVIDER_URL",
        ),
        (
            "http://h/",
            ["--provider-ca-file", "/etc/hosts"],
            "PAY_PROVIDER_URL",
        ),
        (
            ok,
            ["--provider-ca-file", "/no/such"],
            "PAY_PROVIDER_CA_FILE",
        ),
        (
            ok,
            ["--provider-ca-file", "/etc/hosts"],
            "PAY_PROVIDER_CA_FILE",
        ),
        (ok, ["--provider-token", "a\nb"], "PAY_PROVIDER_TOKEN"),
        (
            ok,
            ["--provider-token-file", "/no/such"],
            "PAY_PROVIDER_TOKEN_FILE",
        ),
        (ok, ["--provider-timeout", "6m"], "PAY_PROVIDER_TIMEOUT"),
    ] {
        let mut args = vec!["--provider", "http", "--provider-url", url];
        args.extend(more.iter().filter(|arg| !arg.is_empty()));
        let err = resolve(&args).unwrap_err();
        assert_eq!(err.field, field, "{args:?}: {err}");
        assert!(!err.to_string().contains("secret"), "{err}");
    }
}

#[test]
fn charges_under_way_are_shared_out_among_the_workers() {
    let claims = |args: &[&str]| {
        let mut all = vec!["--provider", "http", "--provider-url", "http://h/"];
        all.extend(args);
        let config = resolve(&all).unwrap();
        (config.workers, config.work.claim_max)
    };
    assert_eq!(claims(&[]), (4, 16));
    assert_eq!(claims(&["--provider-concurrency", "3"]), (3, 1));
    assert_eq!(claims(&["--workers", "7"]), (7, 9));
    assert_eq!(claims(&["--batch-max", "5"]), (4, 5));
    assert_eq!(resolve(&[]).unwrap().work.claim_max, 500);
}

#[test]
fn a_token_is_never_shown() {
    let args = ["--provider", "http", "--provider-url", "http://h/"];
    let config = resolve(&[&args[..], &["--provider-token", "hunter2"]].concat()).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_works_but_should_be_known_is_reported() {
    let cautions = |more: &[&str]| {
        let args = [&["--provider", "http", "--provider-token", "t0ken"], more].concat();
        resolve(&args).unwrap().cautions()
    };
    for fine in [
        "https://provider.example/charges",
        "http://localhost:1/charges",
        "http://127.0.0.1:1/charges",
        "http://[::1]:1/charges",
    ] {
        assert_eq!(cautions(&["--provider-url", fine]), Vec::<String>::new());
    }
    let url = "http://provider.example/charges";
    let reported = cautions(&["--provider-url", url, "--provider-timeout", "21s"]);
    assert_eq!(reported.len(), 2, "{reported:?}");
    assert!(
        reported[0].contains("PAY_PROVIDER_TIMEOUT (21s)") && reported[0].contains("after 31s")
    );
    assert!(reported[1].contains("goes to provider.example over http://"));
    assert!(!reported[1].contains("t0ken"));
}
