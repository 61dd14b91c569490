#!/bin/sh
# Start dictserve with the kernels that were compiled with the image. Numba only uses a cache that it can write, and
# the image is read-only: so the cache is copied to NUMBA_CACHE_DIR first, as a whole or not at all; one that is there
# (a volume, which may be empty, or have what another version of the image has brought) is given what it lacks.
set -eu
trap 'exit 0' TERM  # the first process of a container is not ended by a signal that it has no handler for
kernels=/opt/dictserve/kernels copied=yes
if [ -d "$NUMBA_CACHE_DIR" ]; then
    cp -ru "$kernels/." "$NUMBA_CACHE_DIR" 2>/dev/null || copied=
else
    copy=$(mktemp -d "$NUMBA_CACHE_DIR.XXXXXX") || copy=
    if ! { [ "$copy" ] && cp -rp "$kernels/." "$copy" 2>/dev/null && mv -T "$copy" "$NUMBA_CACHE_DIR"; }; then
        [ -z "$copy" ] || rm -rf "$copy"
        copied=
    fi
fi
[ "$copied" ] || echo "dictserve: the kernels cannot be copied to $NUMBA_CACHE_DIR; they are compiled at each start" >&2
exec dictserve "$@"
