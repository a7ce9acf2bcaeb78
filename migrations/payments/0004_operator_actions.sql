CREATE TABLE IF NOT EXISTS `operator_actions` (
  `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  `actor` VARCHAR(64) NOT NULL,
  `action` VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  `target` VARCHAR(1000) NOT NULL COMMENT 'an id, or the filter the action was applied to',
  `reason` VARCHAR(1000) NULL,
  `before_state` TEXT NULL,
  `after_state` TEXT NULL,
  PRIMARY KEY (`id`),
  KEY `operator_actions_at` (`at`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
