#!/bin/sh
# Start dictserve with the kernels that were compiled with the image. Numba only uses a cache that it can write, and
# the image is read-only: so the cache is copied to NUMBA_CACHE_DIR (a tmpfs, or a volume to keep it) first, as a whole
# or not at all.
set -eu
trap 'exit 0' TERM  # the first process of a container is not ended by a signal that it has no handler for
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
    copy=$(mktemp -d "$NUMBA_CACHE_DIR.XXXXXX") || copy=
    if ! { [ "$copy" ] && cp -rp /opt/dictserve/kernels/. "$copy" 2>/dev/null && mv -T "$copy" "$NUMBA_CACHE_DIR"; }; then
        [ -z "$copy" ] || rm -rf "$copy"
        echo "dictserve: the kernels cannot be copied to $NUMBA_CACHE_DIR; they are compiled at each start" >&2
    fi
fi
exec dictserve "$@"
