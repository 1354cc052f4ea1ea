"""The commands: each makes a request of its words, calls the library once, says what came of it.

Covers: the group of all commands; those on a table: ``run``, ``plan``, ``similarity``, ``doctor``.
Does not cover: the commands on a finished run (`dpipe.cli.finished`), what they do (see
`dpipe.pipeline`, `dpipe.session.doctor`), progress (see `dpipe.watch.terminal`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from dpipe.cli.failures import RESUMABLE, VERBOSE
from dpipe.cli.headings import (
    MainGroup,
    MeasureOption,
    options_of_a_run,
    own_option,
    sources_argument,
)
from dpipe.cli.request import need_sources, settle, whole_number
from dpipe.errors import InputError
from dpipe.model.registry import Reason
from dpipe.options import Section

if TYPE_CHECKING:
    from rich.table import Table

    from dpipe.engine.plan import Plan
    from dpipe.model.records import Decision


@click.group(
    "dpipe",  # the name `dask` lists it under
    cls=MainGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dpipe", prog_name="dpipe")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find the columns of a wide table that can go, because another column says the same.

    Every command explains itself: dpipe run --help.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(
    short_help="Run the passes and write the run folder.",
    examples="""
    dpipe run data/ --output-dir out
    dpipe run "data/part-*.parquet" --output-dir out --id-columns mol_id --prefer MolWt,TPSA
    dpipe run s3://bucket/data/ --output-dir out --scheduler tcp://host:8786 --scratch-dir /scratch
    """,
)
@sources_argument
@options_of_a_run("run")
@click.pass_context
def run(
    ctx: click.Context, given: dict[str, Any], sources: tuple[str, ...], config: str | None
) -> None:
    """Run the passes on DATA... (files, folders, globs, URLs) and write the run folder.

    The same command continues what was interrupted. Lists of columns are separated by commas;
    @FILE takes the names from a file, one a line.
    """
    request = settle(given, sources, config)
    ctx.meta[VERBOSE] = request.verbosity > 0
    inputs = need_sources(request.sources)
    if request.output_dir is None:
        raise InputError("no output folder was given; name one with --output-dir.")
    ctx.meta[RESUMABLE] = True
    from dpipe import pipeline
    from dpipe.watch.terminal import Progress

    with Progress(request.verbosity) as progress:
        selection = pipeline.run(
            inputs,
            request.options,
            output_dir=request.output_dir,
            observers=(progress,),
            storage_options=request.storage_options,
        )
    progress.summary(selection.decisions)
    if request.verbosity >= 0:
        _final_words(selection, request.output_dir)


def _final_words(selection: Any, folder: str) -> None:
    """How many columns are left, where the files are, what to do next."""
    from dpipe.common.words import counted

    analysed = [d for d in selection.decisions if d.decision in ("kept", "dropped")]
    where = click.format_filename(folder)
    if not selection.selected:
        click.echo(_why_none(analysed))
    click.echo(
        f"\n{len(selection.selected):,} of {counted(len(analysed), 'numeric column')} kept.\n"
        f"  {os.path.join(where, 'selected.txt')}   their names, one a line\n"
        f"  {os.path.join(where, 'decisions.csv')}  what became of every column, and why\n"
        f"  {os.path.join(where, 'report.html')}    the same to look at: open it in a browser\n"
        f"To prove the decisions from the input: dpipe verify {shlex.quote(where)}"
    )


def _why_none(analysed: Sequence[Decision]) -> str:
    """Why no column is left, and what to do."""
    scarce = [d for d in analysed if Reason.of(d.reason) is Reason.TOO_FEW_VALUES]
    if not scarce:
        return "No column is left: decisions.csv says why each of them was dropped."
    return (
        f"No column is left: {len(scarce):,} of {len(analysed):,} have fewer than "
        f"{scarce[0].threshold:.0f} valid cells. A lower --min-valid keeps them."
    )


@main.command(
    short_help="Print what a run would take, and run nothing.",
    examples="""
    dpipe plan data/
    dpipe plan --rows 120e6 --columns 1800 --workers 16 --memory-limit 8GiB
    """,
)
@sources_argument
@own_option(
    Section.INPUT,
    "--rows",
    metavar="N",
    help="rows of a table that does not exist yet, as in 120e6",
)
@own_option(Section.INPUT, "--columns", metavar="P", help="numeric columns of it")
@options_of_a_run("plan")
def plan(
    given: dict[str, Any],
    sources: tuple[str, ...],
    config: str | None,
    rows: str | None,
    columns: str | None,
) -> None:
    """Print passes, tasks and memory of a run on DATA..., and run nothing.

    Takes the options of `dpipe run`.
    """
    n_rows, n_columns = whole_number(rows, "--rows"), whole_number(columns, "--columns")
    request = settle(given, sources, config)
    if request.sources and (n_rows or n_columns):
        raise InputError("give files or --rows and --columns, not both.")
    if not request.sources and not (n_rows and n_columns):
        raise InputError("give files, or both --rows and --columns.")
    from dpipe import pipeline
    from dpipe.watch.terminal import Progress

    progress = Progress(request.verbosity)
    planned = pipeline.plan_run(
        request.sources or None,
        request.options,
        rows=n_rows,
        columns=n_columns,
        storage_options=request.storage_options,
        emit=progress,
    )
    for line in _plan_lines(planned):
        progress.console.print(line, soft_wrap=isinstance(line, str))


def _plan_lines(plan: Plan) -> Iterator[str | Table]:
    """A plan as lines and a table."""
    from dpipe.common.words import counted, sized
    from dpipe.watch.terminal import table_of_passes

    machine = plan.machine
    yield (
        f"{counted(plan.n_rows, 'row')} x {counted(plan.n_columns, 'numeric column')} on "
        f"{counted(machine.workers, 'worker')} with {counted(machine.threads, 'thread')} "
        f"and {sized(machine.memory)} each"
        + ("" if machine.device is None else f", {sized(machine.device)} of a card")
        + "\n"
    )
    table = table_of_passes("tasks", "a worker at most", "reads", last="as")
    for part in plan.passes:
        table.add_row(
            f"{part.number} {part.name}",
            f"{part.tasks:,}",
            sized(part.worker_bytes),
            sized(part.bytes_read),
            part.shape,
        )
    yield table
    yield (
        f"\nscratch disk {sized(plan.scratch_bytes)}, largest matrix here "
        f"{sized(plan.client_bytes)}; later passes are planned for all columns and receive fewer."
    )


@main.command(
    short_help="Write the matrix of one measure.",
    examples="""
    dpipe similarity data/ --measure spearman --output spearman.npy
    dpipe similarity data/ --measure hsic --output hsic.npy --id-columns mol_id --device gpu
    """,
)
@sources_argument
@own_option(Section.OUTPUT, "--measure", cls=MeasureOption, required=True, help="what to compute")
@own_option(
    Section.OUTPUT, "--output", metavar="FILE.npy", required=True, help="the matrix to write"
)
@options_of_a_run("similarity")
def similarity(
    given: dict[str, Any],
    sources: tuple[str, ...],
    config: str | None,
    measure: str,
    output: str,
) -> None:
    """Write the matrix of one measure between all numeric columns of DATA...

    The file holds float32, NaN where a pair has no similarity; the names of the columns stand
    beside it in NAME_columns.txt, one a line.
    """
    request = settle(given, sources, config)
    inputs = need_sources(request.sources)
    from dpipe.pipeline import allpairs
    from dpipe.watch.terminal import Progress

    with Progress(request.verbosity) as progress:
        matrix = allpairs.similarity(
            inputs,
            measure,
            options=request.options,
            observers=(progress,),
            storage_options=request.storage_options,
            output=output,
        )
    if request.verbosity >= 0:
        size = len(matrix.columns)
        names = f"{output.removesuffix('.npy')}_columns.txt"
        click.echo(f"{output}: {measure} of {size:,} x {size:,} columns; their names: {names}")


@main.command(
    short_help="Look at versions, limits, devices and disks.",
    examples="""
    dpipe doctor
    dpipe doctor data/ --scheduler tcp://host:8786 --scratch-dir /scratch/dpipe
    """,
)
@sources_argument
@options_of_a_run("doctor")
def doctor(given: dict[str, Any], sources: tuple[str, ...], config: str | None) -> None:
    """Look at versions, limits, devices and disks, here and on the workers.

    With DATA... every worker also opens the input. Lines that begin with ! ask for action.
    """
    request = settle(given, sources, config)
    from dpipe.session.doctor import examine
    from dpipe.watch.terminal import Progress

    place = None
    progress = Progress(request.verbosity)
    findings = examine(
        request.options,
        request.sources,
        storage_options=request.storage_options,
        emit=progress,
    )
    for finding in findings:
        if request.verbosity < 0 and not finding.problem:
            continue
        if finding.place != place:
            place = finding.place
            progress.line(place)
        mark = "!" if finding.problem else " "
        progress.line(f"{mark} {finding.subject:<12} {finding.text}")
