#!/bin/bash
# A driver of the custom executor: each script of a job runs in namespaces of its own, on a read-only view of this host.
#
#   driver.sh config | prepare | run <script> <stage> | cleanup
#
# DRIVER_ROOT (default: /var/lib/pyrunner-driver, or ~/.local/state/pyrunner-driver) holds a directory for each job and the
# caches. DRIVER_HIDE names directories that jobs must not see (default: the configuration and the state of the runner).
# DRIVER_TOOL is bwrap or unshare (default: bwrap where it is installed).
set -u

builds=/mnt/builds caches=/mnt/cache script_dir=/mnt/job
if [ "$(id -u)" = 0 ]; then default_root=/var/lib/pyrunner-driver; else default_root=$HOME/.local/state/pyrunner-driver; fi
root=${DRIVER_ROOT:-$default_root}
hidden=${DRIVER_HIDE-/etc/pyrunner /etc/gitlab-runner /var/lib/pyrunner}
job=$root/jobs/$CUSTOM_ENV_CI_JOB_ID
project=${CUSTOM_ENV_CI_PROJECT_ID:-0}
tool=${DRIVER_TOOL:-$(command -v bwrap >/dev/null 2>&1 && echo bwrap || echo unshare)}

fail() {
    echo "driver: $*" >&2
    exit "${SYSTEM_FAILURE_EXIT_CODE:-2}"
}

config() {
    printf '{"driver": {"name": "%s sandbox", "version": "1"}, "builds_dir": "%s", "cache_dir": "%s"}\n' \
        "$tool" "$builds" "$caches"
}

prepare() {
    command -v "$tool" >/dev/null 2>&1 || fail "$tool is not installed"
    # Caches belong to a project: no job reaches those of another one.
    (umask 077 && mkdir -p "$job/builds" "$job/tmp" "$root/caches/$project") || fail "cannot make $job"
    echo "Sandbox of ${tool}, builds in $job"
    [ -z "${CUSTOM_ENV_CI_JOB_IMAGE-}" ] || echo "The image $CUSTOM_ENV_CI_JOB_IMAGE is not used: jobs see this host's programs"
}

# What the job's shell starts with: nothing of the runner's environment, which the driver has.
clean_env() {
    exec env -i PATH="${PATH}" LANG="${LANG:-C.UTF-8}" HOME="$builds" TERM=dumb "$@"
}

with_bwrap() {
    local options=() place
    for place in $hidden; do [ ! -d "$place" ] || options+=(--tmpfs "$place"); done
    clean_env bwrap --die-with-parent --unshare-pid --unshare-ipc --unshare-uts \
        --ro-bind / / --dev /dev --proc /proc --bind "$job/tmp" /tmp --tmpfs /mnt "${options[@]}" \
        --bind "$job/builds" "$builds" --bind "$root/caches/$project" "$caches" --bind "$1" "$script_dir" \
        /bin/sh -c 'rm -f "$1/ready"; exec bash "$1/script"' sh "$script_dir"
}

with_unshare() {
    local user=()
    [ "$(id -u)" = 0 ] || user=(--user --map-root-user)
    clean_env unshare "${user[@]}" --mount --pid --ipc --fork --kill-child --mount-proc /bin/sh -c '
        job=$1 caches=$2 script=$3 hidden=$4
        set -e
        mount --make-rprivate /
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/builds /mnt/cache /mnt/job
        mount --bind "$job/builds" /mnt/builds
        mount --bind "$caches" /mnt/cache
        mount --bind "$script" /mnt/job
        mount --bind "$job/tmp" /tmp
        for place in $hidden; do [ ! -d "$place" ] || mount -t tmpfs tmpfs "$place"; done
        mount -o remount,bind,ro /
        cd /mnt/builds
        rm -f /mnt/job/ready
        set +e
        exec bash /mnt/job/script
    ' sh "$job" "$root/caches/$project" "$1" "$hidden"
}

run() {
    local place status child
    place=$(mktemp -d "$job/script.XXXXXX") || fail "cannot write to $job"
    cp "$1" "$place/script" && : >"$place/ready" || fail "cannot write to $place"
    case $tool in
    bwrap) with_bwrap "$place" </dev/null & ;;
    unshare) with_unshare "$place" </dev/null & ;;
    *) fail "unknown tool $tool" ;;
    esac
    child=$!
    # The runner signals the whole process group: this script only waits for the end of what it started.
    trap : TERM INT
    while :; do
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    [ ! -e "$place/ready" ] || fail "the sandbox could not be made (exit status $status)"
    rm -rf "$place"
    [ "$status" = 0 ] && exit 0
    echo "$status" >"$BUILD_EXIT_CODE_FILE"
    exit "$BUILD_FAILURE_EXIT_CODE"
}

cleanup() {
    rm -rf "$job" 2>/dev/null || { chmod -R u+rwX "$job"; rm -rf "$job"; }
}

step=$1
shift
case $step in
config | prepare | run | cleanup) "$step" "$@" ;;
*) fail "unknown step $step" ;;
esac
