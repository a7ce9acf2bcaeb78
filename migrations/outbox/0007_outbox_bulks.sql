CREATE TABLE IF NOT EXISTS `outbox_bulks` (
  `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `state` VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'filling' COMMENT 'filling, running, paused, stopped, cancelled',
  `actor` VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  `reason` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `filter` TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'JSON',
  `canary` INT UNSIGNED NOT NULL COMMENT 'rows that go first',
  `canary_wait_us` BIGINT UNSIGNED NOT NULL COMMENT 'from the canary to the rest',
  `interval_us` BIGINT UNSIGNED NOT NULL COMMENT 'between two rows of the rest',
  `stopped_by` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL COMMENT 'the failure that stopped it',
  `started_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  `changed_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (`id`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
