#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What PyTorch does in place of `lodemark bench gpu`'s rows, on the same GPU: its attention over records that were
gathered and decoded before, torch.topk over scores, and a gather from pinned memory by index_select on the processor
and one copy. Each is compared with double first, then timed by events over replays of a CUDA graph (plain calls where
one cannot be captured), over inputs in rotation. It has never been run on a GPU."""

import argparse
import json
import statistics
import sys


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--slices", type=int, default=60, help="timed slices of each row (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs")
    parser.add_argument("--small", action="store_true", help="tiny sizes: the times are of no worth")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script without a GPU")
    options = parser.parse_args(argv)
    if options.slices < 1:
        parser.error("--slices wants at least 1")
    return options


class Bench:
    def __init__(self, torch, options):
        self.torch, self.options = torch, options
        self.gpu = options.device == "cuda"
        self.slices = 3 if options.small else options.slices
        self.rows = []
        self.generator = torch.Generator(device=options.device).manual_seed(options.seed)

    def random(self, *shape, dtype=None):
        x = self.torch.randn(*shape, device=self.options.device, generator=self.generator)
        return x if dtype is None else x.to(dtype)

    def sets(self, byte_count):
        """So many that the second-level cache does not hold them all."""
        return 2 if self.options.small else min(32, 256 * 2**20 // byte_count + 1)

    def microseconds(self, call, sets, capture=True):
        """Median time of call(i), i < sets."""
        if not self.gpu:
            return self._by_clock(call, sets)
        torch = self.torch
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for i in range(sets):
                call(i)
        torch.cuda.synchronize()
        graph = None
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(sets):
                    call(i)
        times = []
        for _ in range(self.slices + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            if graph is not None:
                graph.replay()
            else:
                for i in range(sets):
                    call(i)
            end.record()
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end) / sets)
        return statistics.median(times[1:])

    def _by_clock(self, call, sets):
        import time

        times = []
        for _ in range(self.slices):
            begin = time.perf_counter()
            for i in range(sets):
                call(i)
            times.append(1e6 * (time.perf_counter() - begin) / sets)
        return statistics.median(times)

    def row(self, name, form, us, byte_count, error):
        row = {"rival": name, "format": form, "us": us, "GB/s": byte_count / us / 1e3, "error": error}
        self.rows.append(row)
        print(f"{name:24} {form:18} {us:10.2f} us {row['GB/s']:9.1f} GB/s  error {error:.2e}", flush=True)


def attention(bench, mib, heads=8, group=4, dim=128):
    """scaled_dot_product_attention over a set that was gathered before, in bf16: one query token, grouped heads."""
    torch = bench.torch
    tokens = 75 if bench.options.small else (mib << 20) // (heads * 2 * dim * 2)
    sets = bench.sets(heads * tokens * 2 * dim * 2)
    bf16 = torch.bfloat16
    k = [bench.random(1, heads, tokens, dim, dtype=bf16) for _ in range(sets)]
    v = [bench.random(1, heads, tokens, dim, dtype=bf16) for _ in range(sets)]
    # The group as rows of one query: the same products, and K and V are read once.
    q = bench.random(1, heads, group, dim, dtype=bf16)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    out = sdpa(q, k[0], v[0]).double()
    weights = torch.softmax(q.double() @ k[0].double().transpose(-1, -2) / dim**0.5, -1)
    right = weights @ v[0].double()
    error = float((out - right).norm() / right.norm())
    us = bench.microseconds(lambda i: sdpa(q, k[i], v[i]), sets)
    bench.row("sdpa, gathered before", f"bf16 {mib}MB", us, heads * tokens * 2 * dim * 2, error)


def gathered_attention(bench, mib, heads=8, group=4, dim=128, thin=16):
    """The same with the gather from a larger cache by torch.gather's kin in front, as a step without paging would."""
    torch = bench.torch
    chosen = 75 if bench.options.small else (mib << 20) // (heads * 2 * dim * 2)
    if chosen * thin * heads * 2 * dim * 2 > 40 << 30:
        return
    bf16 = torch.bfloat16
    kv = bench.random(heads, chosen * thin, 2 * dim, dtype=bf16)
    sets = 2 if bench.options.small else 4
    index = [
        torch.randint(0, chosen * thin, (heads, chosen, 1), device=bench.options.device, generator=bench.generator)
        for _ in range(sets)
    ]
    q = bench.random(1, heads, group, dim, dtype=bf16)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def call(i):
        records = torch.take_along_dim(kv, index[i], 1)
        return sdpa(q, records[None, :, :, :dim], records[None, :, :, dim:])

    out = call(0).double()
    records = torch.take_along_dim(kv, index[0], 1).double()
    weights = torch.softmax(q[0].double() @ records[:, :, :dim].transpose(-1, -2) / dim**0.5, -1)
    right = (weights @ records[:, :, dim:])[None]
    error = float((out - right).norm() / right.norm())
    us = bench.microseconds(call, sets)
    bench.row("gather + sdpa", f"bf16 {mib}MB", us, heads * chosen * 2 * dim * 2, error)


def topk(bench, name, n, rows=8):
    torch = bench.torch
    n = 1031 if bench.options.small else n
    sets = bench.sets(rows * n * 4)
    scores = [bench.random(rows, n) for _ in range(sets)]
    k = n // 100
    values = torch.topk(scores[0], k, dim=-1, sorted=False).values
    right = torch.sort(scores[0].double(), dim=-1, descending=True).values[:, :k]
    error = float((torch.sort(values.double(), dim=-1, descending=True).values - right).abs().max())
    us = bench.microseconds(lambda i: torch.topk(scores[i], k, dim=-1, sorted=False), sets)
    bench.row("topk", name, us, rows * n * 4, error)


def pinned_gather(bench, name, record, call_bytes=16 << 20, whole=256 << 20):
    """Records at random in pinned memory: put together by the processor (index_select), then one copy."""
    torch = bench.torch
    if bench.options.small:
        call_bytes, whole = 16 << 10, 64 << 10
    count, every = call_bytes // record, whole // record
    source = torch.randint(0, 256, (every, record), dtype=torch.uint8, pin_memory=bench.gpu)
    staged = torch.empty((count, record), dtype=torch.uint8, pin_memory=bench.gpu)
    target = torch.empty((count, record), dtype=torch.uint8, device=bench.options.device)
    index = torch.randperm(every)[:count]

    def call(_):
        torch.index_select(source, 0, index, out=staged)
        target.copy_(staged, non_blocking=True)
        if bench.gpu:  # the next call writes what this one copies
            torch.cuda.current_stream().synchronize()

    call(0)
    error = float((target.cpu() != source[index]).sum())
    us = bench.microseconds(call, 1, capture=False)
    bench.row("index_select + copy", name, us, count * record, error)


def main(argv):
    options = arguments(argv)
    try:
        import torch
    except ImportError:
        print("rivals.py: this python3 has no torch", file=sys.stderr)
        return 3
    if options.device == "cuda" and not torch.cuda.is_available():
        print("rivals.py: torch sees no GPU", file=sys.stderr)
        return 3
    bench = Bench(torch, options)
    failed = []
    jobs = [(attention, mib) for mib in (8, 16, 64, 256)] + [(gathered_attention, mib) for mib in (8, 16, 64, 256)]
    jobs += [(topk, "8x128K", 128 << 10), (topk, "8x1M", 1 << 20)]
    jobs += [(pinned_gather, "4KiB", 4096), (pinned_gather, "16KiB", 16384)]
    jobs += [(pinned_gather, name, size) for name, size in (("higgs4", 136), ("fp8", 264), ("bf16", 520))]
    for job, *rest in jobs:
        try:
            job(bench, *rest)
        except Exception as error:  # one rival that cannot run does not keep the others from their turn
            failed.append({"rival": job.__name__, "format": str(rest[0]), "why": f"{type(error).__name__}: {error}"[:400]})
            print(f"{job.__name__} {rest[0]} failed: {failed[-1]['why']}", flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {"device": device, "torch": torch.__version__, "small": options.small, "rows": bench.rows, "failed": failed}
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    bad = [row for row in bench.rows if not row["error"] <= (2e-2 if "sdpa" in row["rival"] else 0)]
    for row in bad:
        print(f"{row['rival']} {row['format']} is wrong: {row['error']}", file=sys.stderr)
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
