"""The boundary between oche and its surroundings: what a machine can do to a run ends in one sentence, never in a traceback.

UserError                           2   the sentence itself
RunFailed                           1   the sentence itself
full disk, no permission, ...       1   what failed, on which path, what to do; what was written before is kept
not enough memory                   1
killed worker or process            1
Ctrl-C, SIGTERM, SIGHUP      130, 143, 129
a report that cannot be drawn       0   a warning: what is kept, and what draws it again
anything else                       the traceback: a fault of oche's, to be reported
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TextIO

from oche.errors import NotDrawn, RunFailed, UserError, ran_out
from oche.plan.processes import FOLLOWS, stopped_by_loss, watch

KEPT = "What was written before is kept; `oche search --resume RUN` (or `oche train --resume RUN`, `oche bench` again) carries on."

_running: list[str] = []
"""Commands that carry on with the runs that were begun, the last one with what runs now."""

_ADVICE = {
    errno.ENOSPC: f"free some space and go on. {KEPT}",
    errno.EDQUOT: f"free some of your quota and go on. {KEPT}",
    errno.EFBIG: f"the file system or a limit (`ulimit -f`) allows no larger file. {KEPT}",
    errno.EROFS: "it lies on a read-only file system; choose another place, with `--out FOLDER`, or copy the run to one.",
    errno.EACCES: "it may not be written or read; change its permissions, or choose another place.",
    errno.EPERM: "it may not be written or read; change its permissions, or choose another place.",
    errno.ENOENT: "it does not exist, or a folder on the way to it does not.",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another path.",
    errno.EISDIR: "it is a folder where a file is expected.",
    errno.ENAMETOOLONG: "choose a shorter name.",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`).",
    errno.ENFILE: "the whole machine has no files left to open: end other programs, or raise `fs.file-max`.",
    errno.ELOOP: "its links lead in a circle; choose another path.",
    errno.EBUSY: "something else holds it; choose another place, or wait.",
    errno.EINVAL: "the file system takes no such name or file; choose another name or place.",
    errno.EILSEQ: "the file system takes no such name; choose another one.",
    errno.ENOLCK: "the file system has no locks; choose a folder on another one.",
    errno.EIO: f"the disk reported an error. {KEPT}",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENXIO, errno.ENODEV),
        f"the disk or the shared folder is gone; bring it back and go on. {KEPT}",
    ),
}
_FEWER = "a smaller `--batch`, smaller images (`--set data.size=64`) or a smaller space (`--set space.channels=8`) takes less."


def explained(error: BaseException) -> str | None:
    """The sentence for an error that the surroundings caused, or None for any other."""
    if ran_out(error):
        return f"There is not enough memory ({_first_line(error)}): {_FEWER} {KEPT}"
    if isinstance(error, OSError) and error.errno in _ADVICE:
        path = error.filename2 or error.filename
        path = _closed(Path(os.fsdecode(path))) if path and error.errno in (errno.EACCES, errno.EPERM) else path
        what = f"{os.strerror(error.errno)}" + (f": {str(path)!r}" if path else "")
        return f"{what}: {_ADVICE[error.errno]}"
    return None


def _closed(path: Path) -> Path:
    """The path, or where nothing is seen there the folder around it: what keeps a file from being looked for, or made."""
    return next((one for one in (path, *path.parents) if one.name and os.path.lexists(one)), path)


def guarded(command: Callable[[], None]) -> None:
    """Runs the command line. Exits as the module's table says."""
    signal.signal(signal.SIGTERM, _terminated)
    if (hung_up := getattr(signal, "SIGHUP", None)) and signal.getsignal(hung_up) != signal.SIG_IGN:  # as under nohup
        signal.signal(hung_up, _terminated)
    shown, warnings.showwarning = warnings.showwarning, _warned
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")  # oche has a limit of its own
    try:
        command()
    except UserError as error:
        _end(str(error), 2)
    except RunFailed as error:
        _end(str(error), 1)
    except Terminated as ended:
        _end(f"terminated; what was done is kept, `{_resuming()}` carries on.", 128 + ended.number)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # 130 is what typer makes of Ctrl-C
            raise
        _end(f"interrupted; what was done is kept, `{_resuming()}` carries on.", 130)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        said = explained(error)
        if said is None and (lost := stopped_by_loss(error)):
            said = str(lost)
        if said is None:
            raise
        _end(said, 1)
    finally:
        warnings.showwarning = shown


def running(verb: str, run: Path) -> None:
    """Notes the run that is being written, so that an interruption names the command that carries on with it."""
    _running.append(f"oche {verb} --resume {shlex.quote(str(run))}")


def _resuming() -> str:
    return _running[-1] if _running else "--resume RUN"


SPEAKS = 3.0
"""Seconds that a further process leaves to the first to say why the run ends."""


class Terminated(BaseException):
    """SIGTERM arrived, or SIGHUP: the terminal was closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows oche's own warnings as a sentence, and others as Python does."""
    said = warnings.formatwarning(message, category, filename, lineno, line)
    print(
        f"oche: WARNING  {message}" if issubclass(category, NotDrawn) else said.rstrip("\n"),
        file=file or sys.stderr,
        flush=True,
    )


def _end(sentence: str, code: int) -> None:
    """Says the sentence and exits; of several processes the first speaks for all, unless it goes on or is gone."""
    if os.environ.get(FOLLOWS):
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))  # from the first, which has spoken
        if code > 128:
            os._exit(code)
        time.sleep(SPEAKS)
    print(f"oche: {sentence}", file=sys.stderr, flush=True)
    watch.end()
    sys.exit(code)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no more is known"])[0][:200]
