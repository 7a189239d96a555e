#!/bin/sh
# Keeps a job going, and gives its host back at the end, whatever that is. It needs no Python: dash or busybox will do.
#
#   sh guard.sh      in the job's folder, which has launch.json, run.sh and, where there is something to release, release.sh
#
# run.sh ends (by `exec`) in the keeper. The guard starts it again where it was killed, crashed or has hung. Its own timer,
# an hour after max_hours or max_cost, ends a keeper that does not. SIGTERM saves, ends and releases, too.
# Its exit status is the keeper's: 0 over, 2 wrong usage, 3 failed.
set -u
cd -P "$(dirname "$0")" || exit 1
here=$(pwd -P)
tick=${YOLOYARD_TICK_SECONDS:-2}           # between two looks
margin=${YOLOYARD_MARGIN_SECONDS:-3600}    # after the limits, for what the keeper does at the end
save=${YOLOYARD_SAVE_SECONDS:-900}         # that a training without a keeper may take to save and upload
hung=${YOLOYARD_HUNG_SECONDS:-900}         # without a sign of life of the keeper
pause=${YOLOYARD_PAUSE_SECONDS:-30}        # before the keeper, or release.sh, is started again
most_crashes=5                             # in a row; a keeper that has lived longer than `hung` was no crash

say() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) guard: $*" >> log.txt; } 2> /dev/null
number() { sed -n 's/^ *"'"$1"'": *\([0-9.]*\),*$/\1/p' launch.json; }
ticks() { awk -v seconds="$1" -v tick="$tick" 'BEGIN { print int(seconds / tick) + 1 }'; }
is_training() { tr '\0' '\n' < "/proc/$1/environ" | grep -qxF "YOLOYARD_JOB=$here"; } 2> /dev/null

# Only one guard is at work in a folder.
other=$(cat guard.pid 2> /dev/null)
if [ -n "$other" ] && [ "$other" != $$ ] && grep -q guard.sh "/proc/$other/cmdline" 2> /dev/null &&
    [ "$(readlink "/proc/$other/cwd")" = "$here" ]; then
    exit 4
fi
echo $$ > guard.pid
attempt=${YOLOYARD_ATTEMPT:-$(date +%s)-$$}
export YOLOYARD_ATTEMPT="$attempt"

# Ticks until the timer of its own; 0: no limit.
hard=$(awk -v hours="$(number max_hours)" -v cost="$(number max_cost)" -v price="$(number price)" \
    -v nodes="$(number nodes)" -v margin="$margin" -v tick="$tick" 'BEGIN {
        most = hours == "" ? -1 : hours * 3600
        by_cost = cost == "" || price + 0 == 0 ? -1 : cost / price / nodes * 3600
        if (by_cost >= 0 && (most < 0 || by_cost < most)) most = by_cost
        print most < 0 ? 0 : int((most + margin) / tick) + 1 }')

# Cron starts a guard after a reboot, and where guard and keeper were both killed.
schedule() {
    { crontab -l 2> /dev/null | grep -vF "$here/guard.sh"; [ -z "$1" ] || echo "$1 sh '$here/guard.sh' 2> /dev/null"; } |
        crontab -
}
if [ -f release.sh ]; then
    { command -v crontab > /dev/null && schedule '* * * * *'; } ||
        say "there is no crontab: after a reboot nothing goes on here, and nothing releases this host"
fi

asked='' child='' elapsed=0
trap 'asked=signal; [ -n "$child" ] && kill -TERM "$child"' TERM INT HUP

# Wait for the keeper; ask it to end when the time is over, and end it where it hangs.
watch() {
    quiet=0 most_quiet=$(ticks "$hung") end=0
    while kill -0 "$child" 2> /dev/null; do
        sleep "$tick"
        elapsed=$((elapsed + 1)) quiet=$((quiet + 1))
        if [ alive -nt guard.beat ] || [ ! -e guard.beat ]; then
            quiet=0
            touch guard.beat 2> /dev/null
        fi
        if [ "$quiet" -gt "$most_quiet" ]; then
            say "the keeper has given no sign of life for $hung s: it is killed"
            kill -KILL "$child"
        fi
        if [ "$hard" -gt 0 ] && [ "$elapsed" -gt "$hard" ] && [ "$end" = 0 ]; then
            say "the limits are over and the keeper still runs: it is asked to end"
            asked=timer end=$((elapsed + $(ticks "$save")))
            kill -TERM "$child"
        elif [ "$end" -gt 0 ] && [ "$elapsed" -gt "$end" ]; then
            say "the keeper does not end: it is killed"
            kill -KILL "$child"
        fi
    done
}

crashes=0
while :; do
    began=$elapsed
    touch alive 2> /dev/null
    sh run.sh >> log.txt 2>&1 < /dev/null &
    child=$!
    [ -n "$asked" ] && kill -TERM "$child"
    watch
    wait "$child"
    code=$? child=''
    case $code in 0 | 2 | 3 | 143) break ;; esac
    [ -n "$asked" ] && break
    [ $((elapsed - began)) -gt "$(ticks "$hung")" ] && crashes=0
    crashes=$((crashes + 1))
    if [ "$crashes" -gt "$most_crashes" ]; then
        say "the keeper ended with status $code, $crashes times in a row: the job is given up"
        break
    fi
    say "the keeper ended with status $code: it is started again in $pause s"
    sleep "$pause"
    [ -n "$asked" ] && break
done

# What a keeper has left behind saves, and ends.
training=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' training.json 2> /dev/null)
if [ -n "$training" ] && is_training "$training"; then
    say "the training (process $training) has no keeper: it is asked to save and end"
    kill -TERM "$training"
    left=$(ticks "$save")
    while is_training "$training" && [ "$left" -gt 0 ]; do
        sleep "$tick"
        left=$((left - 1))
    done
    is_training "$training" && kill -KILL "-$training" "$training"
fi

# A host that was only asked to end, as before a reboot, goes on when it is started again, and not before.
if [ -f release.sh ] && command -v crontab > /dev/null; then
    [ "$asked" = signal ] && schedule @reboot || schedule ''
fi
limited=''
command -v timeout > /dev/null && limited="timeout -k 10 $save"
while [ -f release.sh ]; do
    say "releasing this host"
    $limited sh release.sh >> log.txt 2>&1 < /dev/null && break
    say "release.sh failed: again in $pause s"
    sleep "$pause"
done
rm -f guard.pid
exit "$code"
