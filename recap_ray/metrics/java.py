"""Java programs called in one batch, with a time limit; whatever goes wrong becomes one line of reason."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading

LIMIT_S = 600  # for each program; METEOR took 16 s for 5,000 images with 5 references
# Not left to the machine's locale: captions hold any character, and METEOR prints numbers.
_JAVA = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en"]


class CannotRun(Exception):
    """A Java program could not do its work; the message is the reason in one line."""


def run_java(arguments: list[str], name: str, text: str = "") -> str:
    """What the program prints when it is given the text. CannotRun if it is absent, fails or takes too long."""
    _require_java()
    try:
        done = subprocess.run(
            _JAVA + arguments, input=text.encode("utf-8", "replace"), capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"{name} did not end within {LIMIT_S} s") from error
    except OSError as error:
        raise CannotRun(f"{name} did not start: {error}") from error
    if done.returncode:
        raise CannotRun(f"{name} failed: {_last_line(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


class JavaDialogue:
    """A program that answers lines with lines. Reads while it writes, so that neither side waits on a full pipe."""

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
        """That many lines of answer to these lines. CannotRun if the program ends or is stopped before."""
        assert self._process.stdout is not None
        text = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
        writer = threading.Thread(target=self._write, args=(text,), daemon=True)
        writer.start()
        found = [self._process.stdout.readline() for _ in range(answers)]
        if not all(found):
            raise CannotRun(self._reason())
        writer.join()
        return [line.decode("utf-8", "replace").strip() for line in found]

    def _write(self, text: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: the reader sees that too, and says so
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
        with contextlib.suppress(OSError):  # unwritten text has nowhere to go
            self._process.communicate()
        self._errors.close()


def _require_java() -> None:
    if shutil.which("java") is None:
        raise CannotRun("there is no java on the PATH")


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "it left no message"
