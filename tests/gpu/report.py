#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/gpu/run's results as one JSON object: the machine, the stages, the rows of every program, what failed and why."""

import argparse
import json
import os
import sys
import xml.etree.ElementTree as xml


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:  # the program was stopped while it wrote
        return {"unreadable": str(error)}


def read_junit(path):
    """[{name, status, seconds, why}] of a ctest run, or None."""
    try:
        suite = xml.parse(path).getroot()
    except (FileNotFoundError, xml.ParseError):
        return None
    cases = []
    for case in suite.iter("testcase"):
        bad = case.find("failure") is not None or case.get("status") == "fail"
        status = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        entry = {"name": case.get("name"), "status": status, "seconds": float(case.get("time") or 0)}
        if bad:
            entry["why"] = "".join(case.findtext("system-out") or "")[-2000:]
        cases.append(entry)
    return cases


def read_stages(path):
    stages = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, status, seconds, why = (line.rstrip("\n").split("\t") + [""] * 4)[:4]
                stages.append({"stage": name, "status": status, "seconds": int(seconds or 0), "why": why})
    return stages


def sanitizer(work):
    """The lines that each tool of compute-sanitizer printed, the first and the last ones."""
    said = {}
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        path = os.path.join(work, tool + ".txt")
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line.rstrip() for line in file if line.startswith("=========")]
            said[tool] = lines if len(lines) < 80 else lines[:60] + ["…"] + lines[-19:]
    return said


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("work", "out"):
        parser.add_argument("--" + name, required=True)
    for name in ("device", "driver", "arch", "nvcc", "commit", "glibc", "seconds", "dry"):
        parser.add_argument("--" + name, default="")
    options = parser.parse_args(argv)
    work = options.work
    stages = read_stages(os.path.join(work, "stages"))
    result = {
        "device": options.device,
        "driver": options.driver,
        "architecture": options.arch,
        "nvcc": options.nvcc,
        "commit": options.commit,
        "glibc": options.glibc,
        "dry_run": options.dry == "1",
        "seconds": int(options.seconds or 0),
        "stages": stages,
        "failed": [stage for stage in stages if stage["status"] != "passed"],
        "kernels_small": read_json(os.path.join(work, "plain-small.json")),
        "kernels": read_json(os.path.join(work, "plain.json")),
        "bench": read_json(os.path.join(work, "bench.json")),
        "tests": read_junit(os.path.join(work, "tests.xml")),
        "parity": read_junit(os.path.join(work, "parity.xml")),
        "sanitizer": sanitizer(work),
        "rivals": read_json(os.path.join(work, "rivals.json")),
    }
    with open(options.out + ".new", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(options.out + ".new", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
