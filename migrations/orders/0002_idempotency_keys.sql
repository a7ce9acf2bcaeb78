CREATE TABLE IF NOT EXISTS `idempotency_keys` (
  `idempotency_key` VARBINARY(128) NOT NULL,
  `request_sha256` BINARY(32) NOT NULL,
  `response` TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'the body of the 201, returned again as it was',
  `created_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (`idempotency_key`),
  KEY `idempotency_keys_created_at` (`created_at`)
) ENGINE = InnoDB
