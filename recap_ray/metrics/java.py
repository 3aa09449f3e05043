"""Java programs called in one batch, with a time limit; any failure becomes a reason in one line."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading

LIMIT_S = 600  # for each program; METEOR took 16 s for 5,000 images with 5 references
# Independent of the machine's locale: captions hold any character, and METEOR prints numbers.
_JAVA = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en"]


class CannotRun(Exception):
    """A failure of a Java program; the message is the reason in one line."""


def run_java(arguments: list[str], name: str, text: str = "") -> str:
    """Return the output of a program for an input text; raises CannotRun if it is missing, fails or takes too long."""
    _require_java()
    try:
        completed = subprocess.run(
            _JAVA + arguments, input=text.encode("utf-8", "replace"), capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"{name} did not end within {LIMIT_S} s") from error
    except OSError as error:
        raise CannotRun(f"{name} did not start: {error}") from error
    if completed.returncode:
        raise CannotRun(f"{name} failed: {_last_line(completed.stderr)}")
    return completed.stdout.decode("utf-8", "replace")


class JavaDialogue:
    """A program that answers lines with lines; written and read concurrently, so that neither side blocks on a full
    pipe."""

    def __init__(self, arguments: list[str], name: str):
        _require_java()
        self.name, self._late = name, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(_JAVA + arguments, stdin=pipe, stdout=pipe, stderr=self._errors)
        except OSError as error:
            self._errors.close()
            raise CannotRun(f"{name} did not start: {error}") from error
        self._alarm = threading.Timer(LIMIT_S, self._stop)

    def __enter__(self) -> JavaDialogue:
        self._alarm.start()
        return self

    def ask(self, lines: list[str], answers: int) -> list[str]:
        """Send lines and return that many lines of answer; raises CannotRun if the program ends or is stopped
        before."""
        assert self._process.stdout is not None
        text = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
        writer = threading.Thread(target=self._write, args=(text,), daemon=True)
        writer.start()
        received = [self._process.stdout.readline() for _ in range(answers)]
        if not all(received):
            raise CannotRun(self._reason())
        writer.join()
        return [line.decode("utf-8", "replace").strip() for line in received]

    def _write(self, text: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: the reader raises
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _reason(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        if self._late:
            return f"{self.name} did not end within {LIMIT_S} s"
        return f"{self.name} failed: {_last_line(self._errors.read())}"

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self._process.kill()
        with contextlib.suppress(OSError):  # unwritten text is dropped
            self._process.communicate()
        self._errors.close()


def _require_java() -> None:
    if shutil.which("java") is None:
        raise CannotRun("there is no java on the PATH")


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "it left no message"
