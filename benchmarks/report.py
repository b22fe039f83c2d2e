"""Turn a result file of run.py into tables and a plot: FILE.md and FILE.png beside it, and the headline on stdout.

A file of run.py --device cuda has tables and no plot; its headline is the goals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from comparison import records, tables
from comparison.script import make_parser, refuse, write_text


def main(argv: list[str] | None = None) -> int:
    """0: done. 2: a result file that cannot be read, or no matplotlib."""
    parser = make_parser("report.py", __doc__)
    parser.add_argument("results", type=Path, metavar="FILE", help="what run.py wrote")
    parser.add_argument("--no-plot", action="store_true", help="the tables only")
    args = parser.parse_args(argv)
    try:
        if _is_of_gpu(args.results):
            return _report_gpu(args.results)
        document = records.read(args.results)
        written = [args.results.with_suffix(".md")]
        write_text(tables.markdown(document), written[0])
        if not args.no_plot:
            written.append(args.results.with_suffix(".png"))
            _plot(document, written[1])
    except ValueError as error:
        return refuse("report.py", error)
    print(tables.headline(document))
    print(f"\nwritten: {', '.join(map(str, written))}", file=sys.stderr)
    return 0


def _is_of_gpu(path: Path) -> bool:
    """Whether it has parts, as those of the GPU's benchmark have."""
    try:
        return "part" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _report_gpu(path: Path) -> int:
    from gpu import documents, goals
    from gpu.tables import markdown

    document = documents.read(path)
    written = path.with_suffix(".md")
    write_text(markdown(document), written)
    print(goals.as_table([goals.Row(**row) for row in document["goals"]]))
    print(f"\nwritten: {written}", file=sys.stderr)
    return 0


def _plot(document: dict[str, object], picture: Path) -> None:
    try:
        from comparison import plot
    except ImportError:
        raise ValueError('matplotlib is not installed; install it with `pip install "finercam-rt[bench]"`.') from None
    plot.draw(document, picture)


if __name__ == "__main__":
    sys.exit(main())
