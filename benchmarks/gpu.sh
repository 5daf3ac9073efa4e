#!/usr/bin/env bash
# Everything mgk wants to know of one GPU, in at most 8 minutes, without a network.
#
#   benchmarks/gpu.sh [--out DIR] [--seconds 460] [--smoke]
#
# Each part runs in a process of its own, reports by itself and writes DIR/PART.json at once, so that a run that is cut
# off has still measured what it measured. Parts in order: environment, tests marked gpu, steps of 1B, 4B and 8B shapes
# in bf16 and nf4 (mgk, transformers + PEFT, and TRL with Liger and Unsloth where they can be imported, interleaved),
# merge, statistics and digest on the device, and the overhead of a whole phase. `--smoke` runs the same on the CPU with
# tiny shapes. PYTHON names the interpreter; a folder benchmarks/wheels is installed from, if it is there.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
out="$root/gpu-results" seconds=460 smoke=""
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --smoke) smoke=--smoke; shift ;;
    *) echo "gpu.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || command -v python3)}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
mkdir -p "$out"
if [ -d "$here/wheels" ]; then
  "$python" -m pip install -q --no-index --find-links "$here/wheels" "$here"/wheels/*.whl 2>&1 | tail -3
fi
end=$((SECONDS + seconds)) failed=0

part() {  # part NAME LIMIT COMMAND...: run one part for at most LIMIT seconds of what is left
  local name=$1 limit=$2 left code; shift 2
  left=$((end - SECONDS))
  if [ "$left" -le 5 ]; then echo "gpu.sh: $name: no time left"; failed=1; return; fi
  [ "$limit" -gt "$left" ] && limit=$left
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  if [ "$code" -eq 0 ]; then echo "gpu.sh: $name: done, $SECONDS s so far"
  else echo "gpu.sh: $name: ended with $code (124: its time was up)"; tail -5 "$out/$name.log"; failed=1; fi
}

measure() { part "$1" "$2" "$python" "$here/gpu.py" "${@:3}" --out "$out/$1.json" $smoke; }

measure environment 30 environment
part tests 90 "$python" -m pytest -q -m gpu -p no:cacheprovider "$root/tests/gpu" "$root/tests/faults/test_faults_memory.py"
for shape in 1b 4b 8b; do measure "step-$shape-bf16" 75 step "$shape" bf16; done
measure merge-4b 40 merge 4b
measure phase-1b 60 phase 1b
for shape in 4b 8b; do measure "step-$shape-nf4" 60 step "$shape" nf4; done
"$python" "$here/gpu.py" table "$out"
exit $failed
