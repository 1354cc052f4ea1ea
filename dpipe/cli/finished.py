"""The commands on the run folder of a finished run, which they read and leave as it is.

Covers: ``apply``, ``transfer``, ``thresholds``, ``report``, ``verify``.
Does not cover: what they do (see `dpipe.pipeline`, `dpipe.runfolder.thresholds`, `dpipe.report`,
`dpipe.verify`), the commands on a table (`dpipe.cli.commands`).
"""

from __future__ import annotations

from typing import Any

import click

from dpipe.cli.commands import main
from dpipe.cli.headings import (
    options_of_a_run,
    own_option,
    sources_argument,
    storage_option,
    verbose_option,
)
from dpipe.cli.request import need_sources, settle, storage_options_from, whole_number
from dpipe.errors import InputError
from dpipe.options import Section, options_from


@main.command(
    short_help="Reduce new data with a finished selection.",
    examples="""
    dpipe apply out new.parquet --output reduced.parquet
    dpipe apply out "new/part-*.parquet" --output reduced/
    """,
)
@click.argument("folder", metavar="DIR")
@sources_argument
@own_option(
    Section.OUTPUT,
    "--output",
    metavar="FILE|DIR",
    required=True,
    help="one Parquet file, or a folder that gets a file for each of the input",
)
@verbose_option
def apply(
    folder: str,
    sources: tuple[str, ...],
    parquet_glob: tuple[str, ...],
    storage_options: tuple[str, ...],
    output: str,
) -> None:
    """Reduce DATA... to the columns that the run in DIR kept.

    Columns that the run did not analyse (identifiers, text) are carried along where the new data
    has them. Every kept column must be in one of the new files; it is empty in those that lack it.
    """
    inputs = need_sources((*sources, *parquet_glob))
    from dpipe import pipeline
    from dpipe.common.words import counted, listed

    storage = storage_options_from(storage_options) or None
    applied = pipeline.apply(folder, inputs, output, storage_options=storage)
    for name in applied.left_out:
        click.echo(f"left out {name!r}: its types conflict between files.", err=True)
    if applied.filled:
        click.echo(f"empty where a file lacks them: {listed(applied.filled)}.", err=True)
    size = f"{counted(applied.n_rows, 'row')}, {counted(len(applied.columns), 'column')}"
    click.echo(f"{output}: {size}")


@main.command(
    short_help="Ask whether a finished selection holds on new data.",
    examples="""
    dpipe transfer out new.parquet
    dpipe transfer out "new/part-*.parquet" --workers 8 --report transfer.html
    """,
)
@click.argument("folder", metavar="DIR")
@sources_argument
@own_option(Section.OUTPUT, "--report", metavar="FILE", help="a page to write of the answer")
@options_of_a_run("transfer")
@click.pass_context
def transfer(
    ctx: click.Context,
    folder: str,
    given: dict[str, Any],
    sources: tuple[str, ...],
    config: str | None,
    report: str | None,
) -> None:
    """Measure on DATA... what the run in DIR decided, and say what no longer holds.

    Every dropped column is compared with its representative again, kept columns with each other.
    What decides is taken from the run, but --min-valid where it is given; --on-bad-file and
    --coerce-strings say how to read DATA. The exit code is 0 where the selection holds, else 4.
    """
    request = settle(given, sources, config)
    inputs = need_sources(request.sources)
    from dpipe import pipeline
    from dpipe.watch.terminal import Progress

    with Progress(request.verbosity) as progress:
        answer = pipeline.transfer(
            folder,
            inputs,
            request.options,
            observers=(progress,),
            storage_options=request.storage_options,
            report=report,
        )
    for line in answer.lines:
        progress.line(line)
    if not answer.holds:
        ctx.exit(4)


@main.command(
    short_help="Print what a finished run would keep at other thresholds.",
    examples="""
    dpipe thresholds out
    dpipe thresholds s3://bucket/out --storage-options anon=true
    """,
)
@click.argument("folder", metavar="DIR")
@storage_option
@verbose_option
def thresholds(folder: str, storage_options: tuple[str, ...]) -> None:
    """Print what each pass of the run in DIR would keep at other thresholds.

    Nothing is computed again: the answer comes from pairs.parquet, which reaches down to
    --pairs-from of the run. It is what the pass itself keeps; what takes a run to tell is said.
    """
    from dpipe.common.words import counted
    from dpipe.runfolder import mirror
    from dpipe.runfolder.thresholds import passes_of, table_of
    from dpipe.watch.terminal import make_console, table_of_passes

    table = table_of_passes("threshold", "columns", "kept", last="")
    open_ends: dict[str, None] = {}
    with mirror.reading(folder, storage_options_from(storage_options) or None) as here:
        passes = passes_of(here)
    if not passes:
        raise InputError(f"the run in {folder} compared no pairs of columns.")
    for finished in passes:
        for found in table_of(finished):
            if found.left_open:
                open_ends[f"pass {found.number}: {found.left_open}"] = None
            remarks = ["this run"] if found.threshold == finished.threshold else []
            remarks += [f"{counted(found.in_doubt, 'pair')} in doubt"] if found.in_doubt else []
            table.add_row(
                f"{found.number} {found.measure}",
                f"{found.threshold:g}",
                f"{len(finished.columns):,}",
                f"{len(found.kept):,}",
                ", ".join(remarks),
            )
    console = make_console()
    console.print(table)
    for sentence in open_ends:
        console.print(sentence, soft_wrap=True, highlight=False)


@main.command(
    short_help="Render the page of a finished run again.",
    examples="""
    dpipe report out
    dpipe report out --output selection.html
    """,
)
@click.argument("folder", metavar="DIR")
@own_option(
    Section.OUTPUT,
    "--output",
    metavar="FILE",
    shown_default="DIR/report.html",
    help="the page to write",
)
@storage_option
@verbose_option
def report(folder: str, output: str | None, storage_options: tuple[str, ...]) -> None:
    """Render the page of the finished run in DIR again."""
    from dpipe.report import write_report

    storage = storage_options_from(storage_options) or None
    click.echo(str(write_report(folder, output, storage_options=storage)))


@main.command(
    short_help="Recompute the proof of a finished run.",
    examples="""
    dpipe verify out
    dpipe verify out --input /moved/data/
    dpipe verify out --sample 200
    """,
)
@click.argument("folder", metavar="DIR")
@own_option(
    Section.INPUT,
    "--input",
    "sources",
    metavar="DATA",
    multiple=True,
    help="the input, where it is not where the run found it",
)
@storage_option
@own_option(
    Section.WORKERS,
    "--sample",
    metavar="N",
    help="recompute N decisions alone, drawn by the seed of the run",
)
@own_option(
    Section.WORKERS,
    "--workers",
    metavar="N",
    help="number of processes; by default as many as cores, of a small table one",
)
@own_option(
    Section.WORKERS,
    "--memory-limit",
    metavar="SIZE",
    help="memory of all of them together; by default what the workers of the run had, if it is "
    "free",
)
@verbose_option
def verify(
    folder: str,
    sources: tuple[str, ...],
    storage_options: tuple[str, ...],
    sample: str | None,
    workers: str | None,
    memory_limit: str | None,
) -> None:
    """Recompute from the input what the run in DIR claims, without the engine that made it."""
    storage = storage_options_from(storage_options) or None
    n_drawn, processes = whole_number(sample, "--sample"), whole_number(workers, "--workers")
    limit = options_from({"memory_limit": memory_limit}).memory_limit
    from dpipe.verify import verify as recompute

    report = recompute(
        folder,
        sources or None,
        storage,
        n_drawn=n_drawn,
        workers=processes,
        memory_limit=limit,
    )
    for line in report.lines:
        click.echo(line)
