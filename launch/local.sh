#!/usr/bin/env bash
# One machine, one lasting Ray node: studies come and go, the cluster, its token and its dashboard stay.
#
#   launch/local.sh up                       start the node (loopback only, token needed)
#   launch/local.sh run --dataset digits --paradigm ul --out runs/digits-ul-cap
#   launch/local.sh resume runs/digits-ul-cap
#   launch/local.sh status [STUDY]           the node, and the study if one is named
#   launch/local.sh down                     stop this node, and no other Ray of yours
#
# A single study needs none of this: `captune run` starts and stops a private cluster by itself. This one is reached without
# local.sh as well: captune run --address 127.0.0.1:6379 …
#
# Settings (environment): CAPTUNE_RAY_PORT 6379, CAPTUNE_DASHBOARD_PORT (8265 or, where that is taken, a free one),
# CAPTUNE_CLIENT_PORT (Ray's client server; 10001, likewise), CAPTUNE_CPUS and CAPTUNE_GPUS (what Ray may use; default
# all), CAPTUNE_STEADY_SECONDS (how long the node must have stayed up before "up" is said; 5), CAPTUNE_STATE
# (~/.captune/local), RAY_AUTH_TOKEN_PATH (~/.ray/auth_token). Several such nodes differ in CAPTUNE_RAY_PORT.
set -euo pipefail

port=${CAPTUNE_RAY_PORT:-6379}
steady_seconds=${CAPTUNE_STEADY_SECONDS:-5}
state=${CAPTUNE_STATE:-$HOME/.captune/local}
address=127.0.0.1:$port
# Of each port one: two nodes on a machine know nothing of each other.
pid_file=$state/ray-$port.pid
log_file=$state/ray-$port.log

export RAY_AUTH_MODE=token
# On Linux Ray turns 127.0.0.1 into the machine's network address, and GCS, raylet and metrics then listen on all
# interfaces. With this switch (named after the systems where it is the default) every port stays on loopback.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

die() {
    echo "local.sh: $*" >&2
    exit 1
}

ensure_token() {
    # Ray writes its own token file readable for all; we make ours before it can.
    if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
        (
            umask 077
            mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
            od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
        )
    fi
    chmod 600 "$RAY_AUTH_TOKEN_PATH"
}

# The process group of our `ray start --block`, if it lives; a recycled pid is not mistaken for it.
running() {
    [[ -s $pid_file ]] || return 1
    local pid
    pid=$(<"$pid_file")
    [[ $(ps -o args= -p "$pid" 2>/dev/null) == *"start --head"*"--port=$port"* ]]
}

healthy() {
    # An address where nothing answers is told apart by the kernel; Ray would ask it for the better part of a minute.
    listening "$port" && timeout 30 ray health-check --address "$address" >/dev/null 2>&1
}

listening() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Ray's client server cannot be switched off, and `ray start --block` ends with it: where its usual port is taken (by the
# next user's Ray, say) the whole node would be gone a moment after it was up. Nor does it start without its dashboard's.
free_port() { # as set, usual, first of a hundred others, name of the setting
    if [[ -n $1 ]]; then
        echo "$1"
        return
    fi
    local candidate
    for candidate in "$2" $(seq "$3" $(($3 + 99))); do
        listening "$candidate" || {
            echo "$candidate"
            return
        }
    done
    die "no free port from $3 on: set $4."
}

up() {
    if running; then
        if healthy; then
            echo "already up: $address"
            return
        fi
        echo "the node on $address no longer answers: starting it anew"
        down
    fi
    command -v ray >/dev/null || die "Ray is not installed here: activate the environment that holds captune."
    if healthy; then
        die "another Ray answers on $address: set CAPTUNE_RAY_PORT, or use it with captune run --address $address."
    fi
    if listening "$port"; then
        die "something that is not Ray listens on $address: set CAPTUNE_RAY_PORT."
    fi
    ensure_token
    mkdir -p "$state"
    local limits=()
    [[ -n ${CAPTUNE_CPUS:-} ]] && limits+=("--num-cpus=$CAPTUNE_CPUS")
    [[ -n ${CAPTUNE_GPUS:-} ]] && limits+=("--num-gpus=$CAPTUNE_GPUS")
    local client dashboard_port
    client=$(free_port "${CAPTUNE_CLIENT_PORT:-}" 10001 20101 CAPTUNE_CLIENT_PORT)
    dashboard_port=$(free_port "${CAPTUNE_DASHBOARD_PORT:-}" 8265 20201 CAPTUNE_DASHBOARD_PORT)
    local _ pid deadline
    for _ in 1 2 3; do
        setsid ray start --head --block --disable-usage-stats --port="$port" --node-ip-address=127.0.0.1 \
            --ray-client-server-port="$client" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
            ${limits[@]+"${limits[@]}"} >"$log_file" 2>&1 </dev/null &
        pid=$!
        echo "$pid" >"$pid_file"
        deadline=$((SECONDS + 90))
        # Not `running`: until it has become Ray the new process still bears this script's name.
        while [[ $SECONDS -lt $deadline ]] && kill -0 "$pid" 2>/dev/null; do
            if healthy && stays_up; then
                echo "up: $address, dashboard http://127.0.0.1:$dashboard_port (token: ray get-auth-token)"
                return
            fi
            sleep 0.2
        done
        # On a busy machine Ray's client server waits half a minute for the node in vain, and the node ends with it.
        grep -q "Timed out waiting for node info" "$log_file" || break
        echo "Ray gave up its start, as it does on a busy machine: once more"
        down >/dev/null
    done
    tail -n 20 "$log_file" >&2
    down
    die "Ray did not start; its log is $log_file."
}

# GCS answers before the node's other processes have started; one of them that dies takes the node along.
stays_up() {
    local until=$((SECONDS + steady_seconds))
    while [[ $SECONDS -lt $until ]]; do
        running || return 1
        sleep 0.2
    done
    running && healthy
}

down() {
    if ! running; then
        echo "not up"
        rm -f "$pid_file"
        return
    fi
    local pid _
    pid=$(<"$pid_file")
    kill -TERM "$pid"
    for _ in {1..100}; do # twenty seconds
        running || break
        sleep 0.2
    done
    # Whatever of this node outlived its leader, by process group: other clusters on the machine are left alone.
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$pid_file"
    echo "down"
}

command=${1:-}
[[ $# -gt 0 ]] && shift
case $command in
    up) up ;;
    down) down ;;
    run | resume)
        up
        # exec: Ctrl-C and SIGTERM reach captune itself, which keeps what is done and says how to go on.
        exec captune "$command" "$@" --address "$address"
        ;;
    status)
        if ! running; then
            echo "not up"
        elif healthy; then
            ray status --address "$address"
        else
            echo "the node on $address no longer answers: launch/local.sh up starts it anew"
        fi
        if [[ $# -gt 0 ]]; then captune status "$@"; fi
        ;;
    *)
        sed -n '2,16s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
