#!/bin/bash
# A shell script as entry point: whatever can be called can be trained with. Hyperparameters come as arguments, --name value.
#   optml train --image scikit-learn --entry-point train.sh --source-dir scripts/examples/shell --channel train=data/train/ -p label=1
set -euo pipefail

while [ $# -gt 0 ]; do
    case $1 in
        --label) label=$2 ;;
        *) echo "train.sh: there is no hyperparameter ${1#--}" >&2; exit 2 ;;
    esac
    shift 2
done

rows=$(cat "$SM_CHANNEL_TRAIN"/*.csv | wc -l)
of_label=$(cat "$SM_CHANNEL_TRAIN"/*.csv | awk -F, -v label="$label" '$1 == label' | wc -l)
share=$(awk -v part="$of_label" -v all="$rows" 'BEGIN { printf "%.4f", part / all }')
echo "share=$share of $rows rows have the label $label"
echo "$share" >"$SM_MODEL_DIR/share.txt"
