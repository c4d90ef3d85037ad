#!/usr/bin/env bash
# Install what engines can be had, run the tests that take them, and say what was skipped: thirty minutes at the most.
set -u
cd "$(dirname "$0")/../.."
tests/engines/install.sh
# Interrupted, pytest still stops all that it started.
timeout -s INT -k 60 1000 .venv/bin/python -m pytest -q -rs -n 2 --dist loadfile -m engines tests/engines
