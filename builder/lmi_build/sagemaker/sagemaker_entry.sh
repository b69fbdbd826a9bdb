#!/usr/bin/env bash
# Start one container of a job: put the package on Python's path, then run it.
#
# It lies in the channel `job` beside the package's wheel, and runs as SageMaker's
# entry point: `bash .../job/sagemaker_entry.sh`. It needs bash, coreutils and a Python
# of the image's own, and no network. Until Python takes over, whatever goes wrong is
# left in the job's message as well.
set -euo pipefail

root=${LMI_BUILD_ML_ROOT:-/opt/ml}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# A Training job reports `failure`, a Processing job `message`; both keep 1,024 bytes.
message=$root/output/message
if [ -d "$root/input/config" ]; then message=$root/output/failure; fi

# fail STATUS CODE TEXT HINT: leave the message, whole or not at all, and end.
fail() {
    local text
    text="error[$2]: ${3:0:700}"$'\n'"hint: ${4:0:200}"
    trap - EXIT
    printf '%s\n' "$text" >&2
    mkdir -p -- "${message%/*}" || true
    # iconv is not in every image; bytes that are not ASCII could be half a character.
    if printf '%s' "$text" | LC_ALL=C tr -c '\11\12\40-\176' '?' >"$message.part" &&
        sync -- "$message.part"; then
        mv -f -- "$message.part" "$message" || true
    fi
    exit "$1"
}
trap 'fail 1 job.entry "the start script ended with status $? in line $LINENO" \
    "see the log of the job"' EXIT

# A Python that can run the package; one with boto3, which the shared store needs,
# before one without. LMI_BUILD_PYTHON names another.
good='import sys; sys.exit(sys.version_info < (3, 10))'
python='' spare='' seen=''
for name in "${LMI_BUILD_PYTHON:-}" python3 python /usr/local/bin/python3 \
    /opt/conda/bin/python3 /opt/djl/venv/bin/python3 /usr/bin/python3 \
    python3.13 python3.12 python3.11 python3.10; do
    [ -n "$name" ] || continue
    found=$(command -v -- "$name" 2>/dev/null) || continue
    seen="$seen $found"
    "$found" -c "$good" >/dev/null 2>&1 || continue
    if "$found" -c 'import boto3' >/dev/null 2>&1; then
        python=$found
        break
    fi
    spare=${spare:-$found}
done
python=${python:-$spare}
if [ -z "$python" ]; then
    fail 3 job.no-python "the image has no Python 3.10 or newer; looked at:${seen:- none}" \
        "use an image that has one, or name it: LMI_BUILD_PYTHON in job.environment"
fi

wheels=("$here"/lmi_build-*.whl)
if [ ! -f "${wheels[0]}" ] || [ "${#wheels[@]}" -ne 1 ]; then
    fail 1 job.no-wheel "$here does not hold exactly one lmi_build wheel" \
        "submit the job again: its input channel is not whole"
fi

# A wheel is an archive that is ready to be imported; unpacking installs it without pip
# and leaves the image's own packages as they are.
site=$(mktemp -d "${TMPDIR:-/tmp}/lmi-build.XXXXXX" 2>&1) ||
    fail 4 job.disk-full "no folder can be made: $site" "raise job.volume_size_gb"

# Wheels of the user's own lie in a channel beside this one; their hashes lie here.
if [ -f "$here/wheels.txt" ]; then
    output=$(cd -- "$here/../wheels" && "$python" -m pip --isolated install --quiet \
        --disable-pip-version-check --no-input --no-index --no-deps --no-compile \
        --require-hashes --target "$site" -r "$here/wheels.txt" 2>&1) ||
        fail 3 job.bad-wheels "the wheels of job.wheels cannot be installed: $(
            tail -n 1 <<<"$output")" "take wheels for $("$python" -V 2>&1) and its image"
fi

output=$("$python" -m zipfile -e "${wheels[0]}" "$site" 2>&1) ||
    fail 1 job.bad-wheel "${wheels[0]} cannot be unpacked: $(tail -n 1 <<<"$output")" \
        "submit the job again; if the disk is full, raise job.volume_size_gb"

# Python 3.10 has no reader of TOML; pip brings one along.
if ! "$python" -c 'import tomllib' >/dev/null 2>&1 &&
    ! "$python" -c 'import tomli' >/dev/null 2>&1; then
    printf 'from pip._vendor.tomli import TOMLDecodeError, load, loads\n' \
        >"$site/tomli.py"
fi

export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
cd -- "$site"
output=$("$python" -c 'import lmi_build.sagemaker.run' 2>&1) ||
    fail 1 job.bad-wheel "$python cannot import the package: $(tail -n 1 <<<"$output")" \
        "use an image with Python 3.10 or newer, and submit the job again"

trap - EXIT
exec "$python" -m lmi_build.sagemaker
