#!/usr/bin/env python3
"""Full fine-tuning of a Llama by DeepSpeed ZeRO-3 on the CPU: the other side of tools/bench/deepspeed.sh, which runs it.

    DS_ACCELERATOR=cpu deepspeed_llama.py --model DIR --data ROWS.jsonl --work DIR [--seq-len N] [--micro N] [--steps N]
        [--optimizer nvme|cpu|none] [--params nvme|cpu|none] [--pipeline on|off] [--checkpointing on|off]
    DS_ACCELERATOR=cpu deepspeed_llama.py --check       builds DeepSpeed's operators (minutes, once) and says its version

One process (world size 1, gloo), transformers' LlamaForCausalLM in bf16, DeepSpeedCPUAdam with fp32 masters, gradients
clipped to norm 1; learning rate constant, decay on matrices alone. Prints one JSON line a step: loss, norm, seconds, and
the bytes that the kernel says were read from and written to storage since the step before. Then memory: VmRSS with
everything imported and no model made, VmHWM of making and placing the model, VmRSS before the first step and VmHWM of the
steps alone. All of it includes the interpreter and torch: the first figure says how much.

Defaults are the smallest that ran with DeepSpeed 0.19.8 and 4 layers of the 1.1B shape. --pipeline on overlaps reading and
writing of optimizer states with the update; it needs 12 buffers of a sub-group (with 8: "ran out of swap buffers", with 4
an assertion fails), without it 4 are enough.

Needs deepspeed, torch, transformers, accelerate, a C++ compiler and libaio's header. Ends with status 77 without them.
"""
import argparse
import ctypes
import gc
import json
import os
import shutil
import sys
import time


def missing(what):
    print(f"skip - deepspeed: {what}", file=sys.stderr)
    sys.exit(77)


try:
    import torch
    import transformers
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from transformers.integrations import HfDeepSpeedConfig
except ImportError as e:
    missing(f"{e}; needs deepspeed, torch, transformers and accelerate")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--work", default=".")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--optimizer", choices=("nvme", "cpu", "none"), default="nvme")
    parser.add_argument("--params", choices=("nvme", "cpu", "none"), default="nvme")
    parser.add_argument("--checkpointing", choices=("on", "off"), default="off")
    parser.add_argument("--pipeline", choices=("on", "off"), default="off")
    parser.add_argument("--sub-group", type=float, default=4e6, help="parameters that are updated together")
    parser.add_argument("--max-in-cpu", type=float, default=0, help="parameters kept in memory beside the buffers")
    parser.add_argument("--buffer-size", type=float, default=1.5e7, help="elements of a buffer for parameters")
    parser.add_argument("--buffer-count", type=int, default=5)
    parser.add_argument("--optimizer-buffers", type=int, default=0,
                        help="buffers of a sub-group each; 0: 12 with --pipeline on, else 4")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def settings(a, spill):
    zero = {"stage": 3, "overlap_comm": False, "contiguous_gradients": True, "sub_group_size": int(a.sub_group),
            "stage3_max_live_parameters": int(2 * a.buffer_size), "stage3_max_reuse_distance": int(2 * a.buffer_size),
            "stage3_prefetch_bucket_size": int(a.buffer_size), "reduce_bucket_size": int(a.buffer_size),
            "stage3_param_persistence_threshold": 10000}
    if a.optimizer != "none":
        zero["offload_optimizer"] = {"device": a.optimizer, "pin_memory": False}
        if a.optimizer == "nvme":
            zero["offload_optimizer"].update(nvme_path=spill, pipeline_read=a.pipeline == "on",
                                             pipeline_write=a.pipeline == "on",
                                             buffer_count=a.optimizer_buffers or (12 if a.pipeline == "on" else 4))
    if a.params != "none":
        zero["offload_param"] = {"device": a.params, "pin_memory": False}
        if a.params == "nvme":
            zero["offload_param"].update(nvme_path=spill, buffer_count=a.buffer_count, buffer_size=int(a.buffer_size),
                                         max_in_cpu=int(a.max_in_cpu))
    return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": a.micro, "gradient_clipping": 1.0,
            "bf16": {"enabled": True}, "zero_optimization": zero, "steps_per_print": 10**9,
            "optimizer": {"type": "AdamW", "params": {"lr": a.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8,
                                                      "weight_decay": a.weight_decay}},
            "aio": {"block_size": 4 << 20, "queue_depth": 8, "intra_op_parallelism": 1, "single_submit": False,
                    "overlap_events": True}}


def status(name):
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak():
    """VmHWM from here on alone; what making the model left free in the heap goes back to the system first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def moved():
    with open("/proc/self/io") as f:
        fields = dict(line.split(": ") for line in f)
    return int(fields["read_bytes"]), int(fields["write_bytes"])


def check():
    if get_accelerator().device_name() != "cpu":
        missing("set DS_ACCELERATOR=cpu")
    for name in ("AsyncIOBuilder", "CPUAdamBuilder"):
        builder = get_accelerator().create_op_builder(name)
        if builder is None or not builder.is_compatible(verbose=True):
            missing(f"{deepspeed.__version__} has no {name} here; is libaio's header installed?")
        builder.load(verbose=False)
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")


def report(**fields):
    print(json.dumps(fields), flush=True)


def main():
    a = arguments()
    if a.check:
        return check()
    torch.set_num_threads(a.threads)
    spill = os.path.join(a.work, "deepspeed-spill")
    shutil.rmtree(spill, ignore_errors=True)
    os.makedirs(spill)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", "29571")):
        os.environ.setdefault(name, value)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    interpreter = status("VmRSS")

    with open(a.data) as f:
        rows = [json.loads(line)["input_ids"][: a.seq_len] for line in f]
    config = settings(a, spill)
    keep = HfDeepSpeedConfig(config)  # from_pretrained then makes a partitioned model
    begin = time.time()
    model = transformers.LlamaForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16,
                                                          attn_implementation="sdpa")
    model.config.use_cache = False
    if a.checkpointing == "on":
        model.gradient_checkpointing_enable()
    model.train()
    decayed = [p for n, p in model.named_parameters() if "norm" not in n]
    others = [p for n, p in model.named_parameters() if "norm" in n]
    groups = [{"params": decayed, "weight_decay": a.weight_decay}, {"params": others, "weight_decay": 0.0}]
    engine, optimizer, _, _ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    ready = time.time() - begin
    del keep
    peak_setup = status("VmHWM")
    forget_peak()
    begin_steps = status("VmRSS")
    report(deepspeed=deepspeed.__version__, torch=torch.__version__, transformers=transformers.__version__,
           accelerator=get_accelerator().device_name(), optimizer=a.optimizer, params=a.params,
           checkpointing=a.checkpointing, pipeline=a.pipeline,
           optimizer_class=type(optimizer.optimizer).__name__, setup_s=round(ready, 2))
    r0, w0 = moved()
    cpu0 = time.process_time()
    for step in range(a.steps):
        t0 = time.time()
        loss = 0.0
        for i in range(a.micro):
            ids = torch.tensor([rows[(step * a.micro + i) % len(rows)]])
            out = engine(input_ids=ids, labels=ids)
            loss += out.loss.item() / a.micro
            engine.backward(out.loss)
            engine.step()
        seconds = time.time() - t0
        r1, w1 = moved()
        cpu1 = time.process_time()
        norm = engine.get_global_grad_norm()
        report(step=step + 1, loss=round(loss, 5), grad_norm=None if norm is None else round(float(norm), 5),
               step_s=round(seconds, 4), tokens_per_s=round(a.micro * a.seq_len / seconds, 2),
               cpu_s=round(cpu1 - cpu0, 3), disk_read_bytes=r1 - r0, disk_write_bytes=w1 - w0)
        r0, w0, cpu0 = r1, w1, cpu1
    report(memory=True, interpreter_bytes=interpreter, peak_setup_bytes=peak_setup, begin_steps_bytes=begin_steps,
           peak_steps_bytes=status("VmHWM"))
    report(spilled_bytes=sum(os.path.getsize(os.path.join(d, f)) for d, _, names in os.walk(spill) for f in names))
    shutil.rmtree(spill, ignore_errors=True)


if __name__ == "__main__":
    main()
