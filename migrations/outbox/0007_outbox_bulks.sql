CREATE TABLE IF NOT EXISTS `outbox_bulks` (
  `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `state` VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'filling' COMMENT 'filling, running, paused, stopped, cancelled, done',
  `actor` VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  `reason` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `filter` TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'JSON',
  `canary` INT UNSIGNED NOT NULL COMMENT 'rows that go first',
  `canary_wait_us` BIGINT UNSIGNED NOT NULL COMMENT 'from the canary to the rest',
  `interval_us` BIGINT UNSIGNED NOT NULL COMMENT 'between two rows of the rest',
  `rows_max` INT UNSIGNED NOT NULL COMMENT 'rows, at most',
  `base_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)) COMMENT 'when it was started or resumed: times count from here',
  `base_seq` INT UNSIGNED NOT NULL DEFAULT 0 COMMENT 'the row that went first then',
  `filled` TINYINT UNSIGNED NOT NULL DEFAULT 0 COMMENT '1: all its rows are in',
  `held` TINYINT UNSIGNED NOT NULL DEFAULT 0 COMMENT '1: what a paused, stopped or cancelled bulk holds back is parked',
  `stopped_by` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL COMMENT 'the failure that stopped it',
  `started_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  `changed_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (`id`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
