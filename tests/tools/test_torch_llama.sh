#!/bin/sh
# tools/torch_llama.py, the other side of speed comparisons: loss and gradients are transformers'. PYTHON names one that
# has torch and transformers.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

python=${PYTHON:-python3}
if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
    echo "skip - torch_llama against transformers: $python has no torch or no transformers"
    exit 0
fi
tool=$PENSTOCK_ROOT/tools/torch_llama.py
export OMP_NUM_THREADS=1
LOG_LINES=30
check "loss and every gradient within 1e-5 of transformers, LoRA and full" \
    "$python" "$tool" --check --model "$models/llama_untied/model"
sed 's/turned = torch.cat((-x/turned = torch.cat((x/' "$tool" >broken.py
"$python" broken.py --check >broken.out 2>&1
rc=$?
check "a wrong rotation is noticed" test $rc -eq 1
check "both steps run" sh -c "'$python' '$tool' --step --tiny && '$python' '$tool' --step --tiny --method full"
finish
