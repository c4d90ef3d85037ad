"""Run every benchmark, or those named, and end with one line a measure: `name ratio floor ok|short`."""

import importlib
import pkgutil
import sys

import benchmarks

INTERNAL = {"__main__", "measure"}


def main(chosen: list[str]) -> int:
    names = chosen or [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in INTERNAL]
    measures = []
    for name in names:
        print(f"# {name}", file=sys.stderr, flush=True)
        for measure in importlib.import_module(f"benchmarks.{name}").measures():
            measures.append(measure)
            print(measure, file=sys.stderr, flush=True)
    print(*measures, sep="\n")
    return int(any(m.ratio < m.floor for m in measures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
