# Options of the commands on the page "Reproduce the paper on LLaVA-1.5-7B". Bash splits them into words: source this in bash, not in zsh.
# With REHEARSE=24 set before, every command that reads data takes 24 samples.
MODEL="--model llava-1.5-7b --dtype bfloat16"
SINKS="--vision-dimensions 650 --dimensions 1415,2533 --tau 20"
MMSTAR="--data mmstar --files data/mmstar"
CVBENCH="--data cvbench --files data/cvbench"
CLEVR="--data data/CLEVR_v1.0/scenes/CLEVR_val_scenes.json --images data/CLEVR_v1.0/images/val"
CAMBRIAN="--data cambrian --files data/cambrian/jsons/Cambrian7M_withsystemprompt.jsonl --images data/cambrian"
TRAIN="$CAMBRIAN --limit ${REHEARSE:-10000} --epochs 2"
HELD_OUT="$CAMBRIAN --limit ${REHEARSE:-600} --skip ${REHEARSE:-10000}"
FEW="${REHEARSE:+--limit $REHEARSE}"
L10=10
