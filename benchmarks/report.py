"""Turn a result file of run.py into a Markdown table (on stdout) and a plot (a PNG beside the file)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comparison import records, tables


def main(argv: list[str] | None = None) -> int:
    """0: done. 2: a result file that cannot be read, or no matplotlib."""
    parser = argparse.ArgumentParser(prog="python benchmarks/report.py", description=__doc__)
    parser.add_argument("results", type=Path, metavar="FILE", help="what run.py wrote")
    parser.add_argument("--no-plot", action="store_true", help="the table only")
    args = parser.parse_args(argv)
    try:
        document = records.read(args.results)
        print(tables.markdown(document))
        if not args.no_plot:
            picture = args.results.with_suffix(".png")
            _plot(document, picture)
            print(f"\nplot: {picture}", file=sys.stderr)
    except ValueError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


def _plot(document: dict[str, object], picture: Path) -> None:
    try:
        from comparison import plot
    except ImportError:
        raise ValueError('matplotlib is not installed; install it with `pip install "finercam-rt[bench]"`.') from None
    plot.draw(document, picture)


if __name__ == "__main__":
    sys.exit(main())
