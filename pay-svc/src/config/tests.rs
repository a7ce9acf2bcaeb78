//! What is refused, and how it is told.

use super::*;

fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
    let url = "mysql://pay:secret@db/payments";
    let mut all = vec!["pay-svc", "run", "--database-url", url];
    all.extend(["--amqp-url", "amqp://pay:secret@mq/%2F"]);
    all.extend(args);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => args.resolve(),
        Command::Migrate(_) => panic!("run was asked for"),
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
fn each_setting_that_cannot_work_is_named_with_its_mend() {
    for (args, field) in [
        (["--provider", "http"], "PAY_PROVIDER"),
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
        (["--workers", "0"], "PAY_WORKERS"),
        (["--max-attempts", "0"], "PAY_MAX_ATTEMPTS"),
        (["--backoff-min", "10m"], "PAY_BACKOFF_MIN"),
        (["--backoff-min", "0s"], "PAY_BACKOFF_MIN"),
        (["--provider-timeout", "0s"], "PAY_PROVIDER_TIMEOUT"),
        (["--ops-tokens", "ann"], "OPS_TOKENS"),
        (["--ignore-types", "order.*"], "PAY_IGNORE_TYPES"),
        (["--retention", "14d"], "PAY_RETENTION"),
        (["--replay-window", "23d"], "PAY_RETENTION"),
        (["--max-age", "17d"], "PAY_RETENTION"),
    ] {
        let err = resolve(&args).unwrap_err();
        assert_eq!(err.field, field, "{args:?}");
        assert!(!err.mend.is_empty() && !err.problem.is_empty());
    }
}
