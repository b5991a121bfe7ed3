#!/bin/sh
# Stands in for the runner of one trial, where no Ray is needed: it beats, prints a line, waits until it
# may end, and leaves the outcome of its attempt. It is called as a runner is:
#   -m airflow_tune_restore.runner run --experiment DIRECTORY --request KEY
attempt=$5/$(dirname "$7")
number=$(basename "$attempt" | sed 's/^0*//')

leave() {  # RESULT EXIT_CODE
  printf '%s' "$STAND_IN_OUTCOME" | sed "s/\"RESULT\"/\"$1\"/; s/-987654/$number/" >"$attempt/.outcome"
  mv "$attempt/.outcome" "$attempt/outcome.json"
  exit "$2"
}

trap 'sleep "${STAND_IN_SAVES_SECONDS:-0}"; leave interrupted 4' TERM
echo '{"count": 1, "pid": 1, "at": ""}' >"$attempt/heartbeat.json"
echo "attempt $number is at work"
while [ ! -e "$STAND_IN_GATE" ]; do sleep 0.05; done
echo "attempt $number ends"
[ "${STAND_IN_RESULT:-finished}" = none ] && exit "$STAND_IN_EXIT"
leave "${STAND_IN_RESULT:-finished}" "${STAND_IN_EXIT:-0}"
