#!/usr/bin/env bash
# Distils the stochastic 0.25x draft from the trained target.
. "$(dirname "$0")/../common.sh"
distil "$draft_name"
