"""The command line: `recap-ray JOB --flags`, the same for the console command, jobs/*.py and `ray job submit`.

The flags of a job are the fields of its settings (settings.py); `--config FILE.yaml` gives any of them, and a flag on
the command line wins. Exit codes: 0 done; 1 finished but not well; 2 the user's mistake, told in one line.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer
import yaml

from recap_ray import settings as s
from recap_ray.errors import UserError
from recap_ray.storage.paths import use_storage_options
from recap_ray.timing.progress import tell_progress

# Job -> its settings and its function, imported only when the job runs: `--help` needs neither torch nor Ray.
JOBS: dict[str, tuple[type[s.Settings], str]] = {
    "fit-alignment": (s.FitAlignmentSettings, "recap_ray.pipelines.fit.job:fit_alignment"),
    "build-index": (s.BuildIndexSettings, "recap_ray.pipelines.index.build:build_index"),
    "import-decoder": (s.ImportDecoderSettings, "recap_ray.pipelines.decoder.import_checkpoint:import_decoder"),
    "plan": (s.PlanSettings, "recap_ray.pipelines.caption.plan:plan"),
    "caption": (s.CaptionSettings, "recap_ray.pipelines.caption.job:caption"),
    "augment-index": (s.AugmentIndexSettings, "recap_ray.pipelines.augment.job:augment_index"),
    "train-decoder": (s.TrainDecoderSettings, "recap_ray.pipelines.decoder.train:train_decoder"),
    "evaluate": (s.EvaluateSettings, "recap_ray.pipelines.evaluate.job:evaluate"),
    "verify": (s.VerifySettings, "recap_ray.pipelines.output.verify:verify"),
    "check": (s.CheckSettings, "recap_ray.pipelines.output.check:check"),
    "compact": (s.CompactSettings, "recap_ray.pipelines.output.compact:compact"),
    "report": (s.ReportSettings, "recap_ray.pipelines.output.report:report"),
    "demo": (s.DemoSettings, "recap_ray.demo.job:demo"),
}

# Typer carries a click of its own and exports its UsageError only as the base of this one.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="recap-ray",
    help="Captions for web-scale image collections, as a batch job on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(job: str | None = None) -> NoReturn:
    """Runs the command line, or the one job that jobs/JOB.py names, and exits with its code."""
    sys.exit(run([job, *sys.argv[1:]] if job else sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; a user's mistake is one line on standard error."""
    try:
        code = app(arguments, standalone_mode=False) or 0
        if code == 130:  # what typer makes of Ctrl-C
            print("recap-ray: stopped; the same command goes on from here", file=sys.stderr)
        return code
    except UsageError as error:
        message = error.format_message()
    except UserError as error:
        message = str(error)
    print(f"recap-ray: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command(settings: type[s.Settings], target: str) -> Callable[..., int]:
    """A function with one parameter a field of `settings`, for typer to make flags of."""

    def command(config: str | None = None, **values: Any) -> int:
        given = settings(**values)
        given.check()
        use_storage_options(getattr(given, "storage_options", None))
        tell_progress(getattr(given, "quiet", False), getattr(given, "json", False))
        module, function = target.split(":")
        return getattr(importlib.import_module(module), function)(given)

    command.__doc__ = settings.__doc__
    config_flag = typer.Option(
        "--config", help="YAML file with any of the flags below", callback=_read_config, is_eager=True
    )
    parameters = [_parameter("config", Annotated[str | None, config_flag], None)]
    hints = get_type_hints(settings, include_extras=True)
    own_first = sorted(fields(settings), key=lambda field: _distance(settings, field.name))
    for field in own_first:
        kind, text = get_args(hints[field.name])
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(_parameter(field.name, Annotated[kind, typer.Option(help=text)], default))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _distance(settings: type[s.Settings], name: str) -> int:
    """How far up the line of settings classes a field is told: 0 for a job's own, most for those of Ray."""
    return next(i for i, kind in enumerate(settings.__mro__) if name in inspect.get_annotations(kind))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read_config(context: typer.Context, path: str | None) -> str | None:
    """Makes the entries of a YAML file the defaults of the flags."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file) or {}
    except OSError as error:
        raise UserError(f"--config {path} could not be read ({error.strerror}): name a YAML file of flags") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"--config {path} is no YAML ({what}): expected lines like 'images: photos/'") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds no mapping: expected lines like 'images: photos/'")
    entries = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = {parameter.name for parameter in context.command.params} - {"config", "help"}
    if unknown := sorted(entries.keys() - known):
        raise UserError(f"--config {path} has the unknown entry {unknown[0]}: known are {', '.join(sorted(known))}")
    context.default_map = {**(context.default_map or {}), **entries}
    return path


for _name, (_settings, _target) in JOBS.items():
    app.command(_name, help=_settings.__doc__)(_command(_settings, _target))
