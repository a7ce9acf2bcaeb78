#!/bin/bash
# The MySQL container's entry point. The image's own runs the files of a first start once: when one
# fails, it ends, and its next start finds a data directory, skips them, and serves without accounts.
if [ -e /var/lib/mysql/first-start-unfinished ]; then
    {
        echo 'error: the first start of this database failed; the accounts or their rights are missing.'
        echo '       Its error is above: docker compose logs mysql. Correct it, then begin again with'
        echo '       empty volumes: docker compose down --volumes && make up'
    } >&2
    exit 1
fi
exec docker-entrypoint.sh "$@"
