# shellcheck shell=bash disable=SC2034
# Sourced: `target`, where cargo builds, and `features`, those that `make test` builds with. Whoever
# names the whole workspace and these features builds nothing anew after it.
target=$(cargo metadata --format-version 1 --no-deps |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
# The programs under test can export traces, which is off until an endpoint is set: so the traces need
# no build of their own.
features=e2e/otlp,order-svc/otlp,relay/otlp,pay-svc/otlp
