#!/usr/bin/env bash
# A Prefect server (loopback) with the work pool `bitlm`, the deployments of prefect.yaml and one worker, in the foreground.
# Ctrl-C ends all of it. Run it in the project's folder; relative roots then lie there.
set -euo pipefail
cd "$(dirname "$0")/.."
port="${BITLM_PREFECT_PORT:-4200}"
export PREFECT_API_URL="http://127.0.0.1:$port/api" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
# No request to this machine goes by a proxy.
export no_proxy="${no_proxy:-${NO_PROXY:-}},127.0.0.1,localhost" NO_PROXY="${no_proxy:-${NO_PROXY:-}},127.0.0.1,localhost"

prefect server start --host 127.0.0.1 --port "$port" &
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
until python -c "import httpx; httpx.get('$PREFECT_API_URL/health', timeout=1).raise_for_status()" 2>/dev/null; do
  kill -0 %1 2>/dev/null || { echo "the Prefect server did not start; is port $port taken?" >&2; exit 1; }
  sleep 0.5
done
prefect work-pool inspect bitlm >/dev/null 2>&1 || prefect work-pool create --type process bitlm
prefect --no-prompt deploy --all
prefect worker start --pool bitlm
