"""The command line: `recap-ray JOB --flags`, the same for the console command, jobs/*.py and `ray job submit`.

The flags of a job are the fields of its settings (settings.py); `--config FILE.yaml` gives any of them, and a flag on
the command line wins. Exit codes: 0 success; 1 finished with failures; 2 a user error, reported in one line.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from types import NoneType
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer
import yaml

from recap_ray import settings as s
from recap_ray.compat import typer_usage_error
from recap_ray.console import configure_logging, say_error
from recap_ray.errors import UserError
from recap_ray.storage.paths import use_storage_options
from recap_ray.timing.progress import configure_progress

# Job -> its settings and its function, which is imported only when the job runs: `--help` needs neither torch nor Ray.
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

UsageError = typer_usage_error()

app = typer.Typer(
    name="recap-ray",
    help="Caption web-scale image collections as a batch job on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(job: str | None = None) -> NoReturn:
    """Run the command line, or the job named by jobs/JOB.py, and exit with its exit code."""
    sys.exit(run([job, *sys.argv[1:]] if job else sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; print a user error as one line on standard error."""
    try:
        code = app(arguments, standalone_mode=False) or 0
        if code == 130:  # what typer returns for Ctrl-C
            say_error("stopped; run the same command again to resume")
        return code
    except UsageError as error:
        message = error.format_message()
    except UserError as error:
        message = str(error)
    say_error(message)
    return 2


def _command(settings: type[s.Settings], target: str) -> Callable[..., int]:
    """Return a function with one parameter per field of `settings`, from which typer creates the flags."""

    def command(config: str | None = None, **values: Any) -> int:
        job_settings = settings(**values)
        job_settings.check()
        use_storage_options(getattr(job_settings, "storage_options", None))
        quiet, as_json = getattr(job_settings, "quiet", False), getattr(job_settings, "json", False)
        configure_progress(quiet, as_json)
        configure_logging(logging.ERROR if quiet else logging.INFO, as_json)
        module, function = target.split(":")
        return getattr(importlib.import_module(module), function)(job_settings)

    command.__doc__ = settings.__doc__
    config_flag = typer.Option(
        "--config", help="YAML file with values of any of the flags below", callback=_read_config, is_eager=True
    )
    parameters = [_parameter("config", Annotated[str | None, config_flag], None)]
    hints = get_type_hints(settings, include_extras=True)
    job_flags_first = sorted(fields(settings), key=lambda field: _distance(settings, field.name))
    for field in job_flags_first:
        kind, text = get_args(hints[field.name])
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(_parameter(field.name, _flag(kind, text), default))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _flag(kind: Any, text: str) -> Any:
    """Return the annotation of a flag. One with choices is a str here: the settings check it, as for Python callers."""
    if values := s.choices(kind):
        kind = str | None if NoneType in get_args(kind) else str
        text = f"{text} (choices: {s.either(values)})"
    return Annotated[kind, typer.Option(help=text)]


def _distance(settings: type[s.Settings], name: str) -> int:
    """Return how far up the class hierarchy a field is declared: 0 for the job itself, most for Ray."""
    return next(i for i, kind in enumerate(settings.__mro__) if name in inspect.get_annotations(kind))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read_config(context: typer.Context, path: str | None) -> str | None:
    """Set the entries of a YAML file as defaults of the flags."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file) or {}
    except OSError as error:
        raise UserError(f"--config {path} could not be read ({error.strerror}): name a YAML file of flags") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path} is no valid YAML ({reason}): expected lines like 'images: photos/'") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} is not a mapping: expected lines like 'images: photos/'")
    entries = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = {parameter.name for parameter in context.command.params} - {"config", "help"}
    if unknown := sorted(entries.keys() - known):
        raise UserError(
            f"--config {path} has the unknown entry {unknown[0]}: expected any of {', '.join(sorted(known))}"
        )
    context.default_map = {**(context.default_map or {}), **entries}
    return path


for _name, (_settings, _target) in JOBS.items():
    app.command(_name, help=_settings.__doc__)(_command(_settings, _target))
