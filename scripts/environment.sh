# Sourced with the name of an environment and its extras: makes .venv/NAME once, installs the
# project into it with pinned versions, and defines $python. Made again when the pins change.
environment() {
    local name=$1 extras=$2
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    local folder="$root/.venv/$name"
    python="$folder/bin/python"
    local stamp
    stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" <(echo "$extras $root") | cksum)
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Setting up $folder; this is done once." >&2
        rm -rf "$folder"
        "${PYTHON:-python3}" -m venv "$folder"
        "$python" -m pip install --quiet --disable-pip-version-check \
            --constraint "$root/constraints.txt" --editable "$root[$extras]"
        echo "$stamp" > "$folder/stamp"
    fi
}
