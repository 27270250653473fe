/* Careful figures for a machine that nobody has measured: see profile.h.
 *
 * The machine: a desktop of some years ago, 4 cores with AVX2 and no bf16 instructions, two
 * channels of DDR4-2666, a SATA SSD. Each figure is what such a machine reaches on a bad day, so
 * that a plan made with it promises too little rather than too much. None is measured; `penstock
 * bench` replaces them.
 *
 *   products     peak is 4 cores * 2.5 GHz * 32 FLOP (two 8-wide fused multiply-adds) = 320 GFLOP/s
 * in f32; a third of it. bf16 is converted first and runs no faster. One row at a time reads each
 *                weight once: 15 GB/s / 2 bytes * 2 FLOP = 15 GFLOP/s in bf16, half in f32; 16
 * rows: between attention    half the rate of products (short inner dimensions, softmax) memory 43
 * GB/s on the data sheet; 15 is a third. A copy moves each byte twice: 7 disk         SATA moves
 * 550 MB/s; 500 and 400. Reads and writes share it: half each. Cheap drives write 100 MB/s past
 * their fast cache; reading has none. A small read: 200 us update       26 bytes a parameter at 15
 * GB/s is 0.58 Gparam/s; 0.4 interference an update beside a product slowed it 1.5 to 1.7 times
 * where it was measured (2 cores); disk requests and copies take less task         a thread's
 * wake-up (50 us) and a dozen parallel loops of 10 us each */
#include <string.h>

#include "offload/profile.h"

void ps_profile_conservative(struct ps_profile *out)
{
    static const struct ps_profile p = {
        .version = 1,
        .machine = "careful assumptions (4 cores with AVX2, DDR4, SATA SSD), not measured",
        .device = "cpu",
        .threads = 4,
        .gemm = {{1, 4096, 4096, PS_DTYPE_BF16, 15e9},
                 {16, 4096, 4096, PS_DTYPE_BF16, 60e9},
                 {256, 4096, 4096, PS_DTYPE_BF16, 100e9},
                 {2048, 4096, 4096, PS_DTYPE_BF16, 100e9},
                 {1, 4096, 4096, PS_DTYPE_F32, 7.5e9},
                 {16, 4096, 4096, PS_DTYPE_F32, 50e9},
                 {256, 4096, 4096, PS_DTYPE_F32, 100e9},
                 {2048, 4096, 4096, PS_DTYPE_F32, 100e9}},
        .gemm_count = 8,
        .attention_flops = 50e9,
        .copy_host = 7e9,
        .memory = 15e9,
        .disk = {{.read = 500e6,
                  .write = 400e6,
                  .mixed_read = 250e6,
                  .mixed_write = 200e6,
                  .sustained_read = 500e6,
                  .sustained_write = 100e6,
                  .latency_s = 200e-6,
                  .depth = 8,
                  .chunk_bytes = 1 << 20}},
        .disk_count = 1,
        .cpu_optim_params = 400e6,
        .compute_by_disk = 1.1,
        .compute_by_optim = 1.7,
        .compute_by_copy = 1.3,
        .disk_by_compute = 1.2,
        .optim_by_compute = 2,
        .copy_by_compute = 1.5,
        .step_overhead_s = 200e-6,
    };
    memcpy(out, &p, sizeof p);
}
