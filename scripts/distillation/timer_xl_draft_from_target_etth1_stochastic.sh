#!/usr/bin/env bash
# Distils the stochastic 0.25x draft from the trained target.
default_settings=etth1_window
. "$(dirname "$0")/../common.sh"
distil "$draft_name"
