"""What a target costs: the same run with and without one, in turns, in one open session.

Covers: seconds of `dpipe.select` on a table of which a column is the target, and the same columns
kept out of the run without one.
Does not cover: what the target is good for (`benchmarks.downstream`).

``python -m benchmarks.target [--rows N] [--columns P] [--repeats R]``
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import finish, machine, median, parser, seconds, show, table


def main() -> None:
    """Print seconds of both and the median of their ratios."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--columns", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=5)
    asked = arguments.parse_args()
    print(machine(), "\n")
    source = table(asked.data, asked.rows, asked.columns + 1)

    import dpipe
    from dpipe.options import Options
    from dpipe.session import open_session

    with open_session(Options()) as session:
        options: dict[str, Any] = {"client": session.client, "restart": "never"}

        def without() -> None:
            dpipe.select(source, exclude=["x00000"], **options)

        def knowing() -> None:
            dpipe.select(source, target="x00000", **options)

        knowing()  # what it imports is not measured
        turns = [(seconds(without), seconds(knowing)) for _ in range(asked.repeats)]
    line = [
        median(one for one, _ in turns),
        median(other for _, other in turns),
        median(other / one for one, other in turns),
    ]
    head = ["without (s)", "with a target (s)", "with / without"]
    show(head, [line])
    finish(asked, {"turns": turns})


if __name__ == "__main__":
    main()
