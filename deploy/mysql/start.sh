#!/bin/bash
# The MySQL container's entry point. The image's own runs the files of a first start once: when one
# fails, it ends, and its next start finds a data directory, skips them, and serves without accounts.
data=/var/lib/mysql
# A data directory from before this check has tables.
if [ -d $data/mysql ] && [ ! -e $data/first-start-done ] && [ ! -e $data/orders/outbox.ibd ]; then
    {
        echo 'error: the first start of this database failed or was cut off; accounts or their rights are missing.'
        echo '       Its error is above: docker compose logs mysql. Correct it, then begin again with'
        echo '       empty volumes: docker compose down --volumes && make up (this deletes all data in them).'
        echo "       Where the volume holds data to keep, create the accounts of deploy/mysql/init.sql by hand,"
        echo "       then create the file $data/first-start-done in it."
    } >&2
    exit 1
fi
exec docker-entrypoint.sh "$@"
