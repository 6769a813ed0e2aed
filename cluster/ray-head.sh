#!/usr/bin/env bash
# A Ray head on this machine, in the foreground, with the job server on loopback. Ctrl-C (or SIGTERM) ends it and all it started.
#   cluster/ray-head.sh [--num-cpus 2 …further options of `ray start`]
# `ray stop` would end every Ray process of the machine; ending this script ends this head only.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
# A yaml.py or datasets.py in the folder where this is called hides none of what Ray's processes import.
export PYTHONSAFEPATH=1
# Clients need the same token: on this machine RAY_AUTH_MODE=token is enough, elsewhere RAY_AUTH_TOKEN_PATH names a copy of it.
[ -n "${RAY_AUTH_TOKEN_PATH:-}${RAY_AUTH_TOKEN:-}" ] || ray get-auth-token --generate >/dev/null
# Port 0 takes a free one. Ray's own choice is a fixed one, and a head that finds it taken (by a local run of
# Ray beside it, say) starts all the same but then never takes a job.
exec ray start --head --block --dashboard-host 127.0.0.1 --dashboard-port "${BITLM_JOB_PORT:-8265}" \
  --port "${BITLM_RAY_PORT:-6379}" --dashboard-agent-listen-port 0 --disable-usage-stats "$@"
