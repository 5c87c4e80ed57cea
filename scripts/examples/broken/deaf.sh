#!/bin/sh
# Wrong on purpose: the shell gets SIGTERM and keeps it to itself until its program has ended. `exec python ...` would cure it.
python "$1"
echo "trained"
