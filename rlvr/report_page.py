"""A report as one HTML file, its figures inside it: nothing has to be fetched, and it can be mailed."""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.errors import ConfigError, RunDirectoryError
from rlvr.log import STAGES, read_metrics
from rlvr.report import report
from rlvr.run_directory import RunDirectory

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ font: 16px sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em }}
pre {{ overflow-x: auto; font-size: 13px }} img {{ max-width: 100% }}</style>
<h1>{title}</h1>
<pre>{text}</pre>
{figures}
</html>
"""
FIGURE = '<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CURVES = {
    "reward": ("reward/mean",),
    "share of groups without signal": ("rollout/groups_without_signal",),
    "tokens of a completion (mean)": ("rollout/length_mean_tokens",),
    "KL (nats a token)": ("policy/kl_reference", "policy/kl_sampler"),
    "entropy (nats)": ("policy/entropy",),
}
"""Axis -> metrics by step."""


def write_run_page(run_dir: str | pathlib.Path, path: pathlib.Path, figures: Sequence[pathlib.Path] = ()) -> None:
    """The report of a run with its curves, and with figures of others, e.g. of a benchmark.

    Args:
        path: of the HTML file.
        figures: PNG files that go into it.

    Raises RunDirectoryError as `rlvr.report.report`, or for a figure that is no PNG; ConfigError without matplotlib.
    """
    run = RunDirectory(run_dir)
    text = report(run_dir)
    shown = {f"{run.path}: curves": curves(read_metrics(run.metrics))}
    for one in figures:
        data = one.read_bytes() if one.is_file() else b""
        if not data.startswith(PNG_SIGNATURE):
            raise RunDirectoryError(f"--figure {one} is not a PNG file: name one, e.g. what `--plot` has written.")
        shown[str(one)] = data
    write_page(path, title=f"Run {run.path}", text=text, figures=shown)


def write_page(path: pathlib.Path, *, title: str, text: str, figures: Mapping[str, bytes]) -> None:
    """Write an HTML file.

    Args:
        figures: caption -> PNG.
    """
    shown = [
        FIGURE.format(caption=html.escape(caption), data=base64.b64encode(png).decode())
        for caption, png in figures.items()
    ]
    page = PAGE.format(title=html.escape(title), text=html.escape(text), figures="\n".join(shown))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """What a run's metrics did over its steps, evaluation and time included, as PNG. Raises ConfigError without
    matplotlib."""
    steps = [line for line in lines if line["step"] > 0]
    chosen = {
        axis: [name for name in names if any(line.get(name) is not None for line in steps)]
        for axis, names in CURVES.items()
    }
    panels = [axis for axis, names in chosen.items() if names]
    figure, axes = pyplot().subplots(-(-(len(panels) + 2) // 2), 2, figsize=(11, 9), layout="constrained")
    for axis, plot in zip(panels, axes.flat, strict=False):
        for name in chosen[axis]:
            _line(plot, steps, name)
        plot.set_ylabel(axis)
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    held_out, seconds, *unused = axes.flat[len(panels) :]
    for name in sorted(
        {name for line in evaluated for name in line if name.endswith(("/pass_at_1", "/pass_at_1_greedy"))}
    ):
        if name.count("/") == 2:  # of a whole set; a verifier's part has one more
            _line(held_out, evaluated, name, marker="o")
    held_out.set_ylabel("held-out pass@1")
    stages = [name for name in STAGES if any(f"time/{name}_seconds" in line for line in steps)]
    seconds.stackplot(
        [line["step"] for line in steps],
        [[line.get(f"time/{name}_seconds", 0.0) for line in steps] for name in stages],
        labels=stages,
    )
    seconds.set_ylabel("seconds of a step")
    for plot in axes.flat:
        if plot.get_legend_handles_labels()[0]:
            plot.legend(fontsize="small")
        plot.set_xlabel("step")
    for plot in unused:
        plot.axis("off")
    return png(figure)


def _line(plot: Any, lines: Sequence[Mapping[str, Any]], name: str, **options: Any) -> None:
    known = [line for line in lines if line.get(name) is not None]
    plot.plot([line["step"] for line in known], [line[name] for line in known], label=name, **options)


def pyplot() -> Any:
    """matplotlib's, without a screen. Raises ConfigError when it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'rlvr[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as found

    return found


def png(figure: Any) -> bytes:
    """A figure's picture; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    pyplot().close(figure)
    return buffer.getvalue()
