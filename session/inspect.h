/* What a model directory, safetensors file, adapter, checkpoint or spill store holds: `penstock
 * inspect`. */
#ifndef PS_SESSION_INSPECT_H
#define PS_SESSION_INSPECT_H

#include <stdbool.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Describe `path`: a safetensors file, or a directory with (looked for in this order)
 *
 *   manifest.json        a checkpoint-N of Penstock; its checksums are verified
 *   adapter_config.json  a PEFT adapter
 *   config.json or safetensors files  a Hugging Face model
 *   data-0               a spill store; what recovery would find (its chunks are not read)
 *
 * *text receives the report, NUL-terminated, to be freed with free(): lines for a person, or with
 * `json` one object
 *
 *   {"kind":"model|safetensors|adapter|checkpoint|spill", "supported":bool, "why_not":string or
 * null, "parameters":n, "tensors":[{"name","dtype","shape":[..],"file"}], "path", "details":{..}}
 *
 * "parameters" counts shared (tied) ones once and leaves out the optimizer's states; "details" are
 * by kind, null where unknown: model_type, layers, ...; r, lora_alpha, ...; step, ...; for a
 * spill store generation, step (of its run state), mode, locked, superblocks, extents, ....
 *
 * What is valid but cannot be used is a report with supported:false. Returns 0, -ENOMEM, -errno for
 * what cannot be opened, or PS_EFORMAT (file and field in err) for files that break their format.
 */
int ps_inspect(const char *path, bool json, char **text, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
