#!/bin/sh
# Operate an installation: a thin script over `hamictl ops`, for cron and runbooks.
#
# Usage: hami-ops.sh [--help] OPERATION [FLAG…]
#        hami-ops.sh nightly DIRECTORY     backup into the directory, cleanup, health; a notification if one fails
#
# OPERATION is health, backup, restore, cleanup, scale, update, restart, disk or notify; `hami-ops.sh OPERATION --help` has
# its flags. The exit status is that of hamictl: 0 done, 1 refused, failed or not well, 2 no answer.
#
# Environment: HAMICTL          the program (default: hamictl, else kubectl hami)
#              HAMI_NOTIFY_FILE  a file with the address of a webhook, such as Slack's; without it nothing is sent
#              HAMI_KEEP_DAYS    nightly: days for which backups are kept (default 30)
set -eu

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p;}' "$0"; }

hamictl() {
  if [ -n "${HAMICTL:-}" ]; then
    "$HAMICTL" "$@"
  elif command -v hamictl >/dev/null 2>&1; then
    command hamictl "$@"
  else
    kubectl hami "$@"
  fi
}

tell() {
  echo "$1" >&2
  if [ -n "${HAMI_NOTIFY_FILE:-}" ]; then
    hamictl ops notify --url-file "$HAMI_NOTIFY_FILE" --text "$1" >&2 || echo "the notification was not sent" >&2
  fi
}

nightly() {
  directory=$1 failed='' status=0
  file="$directory/hami-$(date -u +%Y-%m-%dT%H%M%SZ).json"
  hamictl ops backup "$file" || { failed="$failed backup" status=$?; }
  hamictl ops cleanup --yes || { failed="$failed cleanup" status=$?; }
  hamictl ops disk || { failed="$failed disk" status=$?; }
  hamictl ops health || { failed="$failed health" status=$?; }
  if [ -z "$failed" ]; then
    # Old backups are deleted only after a good night.
    find "$directory" -maxdepth 1 -type f -name 'hami-*.json' -mtime "+${HAMI_KEEP_DAYS:-30}" -exec rm -f {} +
  else
    tell "GPU sharing, nightly run on $(uname -n): failed:$failed"
  fi
  return "$status"
}

case "${1:-}" in
  -h | --help) usage ;;
  '')
    usage >&2
    exit 2
    ;;
  nightly)
    if [ $# -ne 2 ] || [ ! -d "$2" ]; then
      echo "hami-ops.sh: nightly needs a DIRECTORY that exists" >&2
      exit 2
    fi
    nightly "$2"
    ;;
  *) hamictl ops "$@" ;;
esac
