"""Exit status and text of everything that may end a command."""

import errno
import os
import signal
import time

import pytest
from safetensors import SafetensorError

from bnft.errors import Interrupted, UserError, first_line, run_command


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("a\nb"), "a"), (OSError("\n  a  \nb"), "a  "), (NotImplementedError(), "NotImplementedError")],
)
def test_an_error_is_told_in_one_line_also_where_it_says_nothing(error, line):
    assert first_line(error) == line


def raising(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("no file 'ক.csv'", "Give a file."), 2, "error: no file 'ক.csv'\n  Give a file.\n"),
        (UserError("no hint"), 2, "error: no hint\n"),
        (UserError("the loss is nan", exit_code=1), 1, "error: the loss is nan\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), 1, "while writing a.json"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "error: the disk is full\n"),
        (OSError(errno.EROFS, "Read-only file system", "a.json"), 1, "error: a.json: Read-only file system\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), 1, "may be read and written"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            1,
            "disk is full",
        ),
        (Interrupted(130, "stopped at step 3"), 130, "stopped at step 3\n"),
        (Interrupted(143), 143, "interrupted\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_expected_end_is_one_message_and_its_status(capsys, error, status, text):
    assert run_command(raising(error)) == status
    out, err = capsys.readouterr()
    assert text in err
    assert out == ""
    assert "Traceback" not in err


def test_sigterm_unwinds_and_takes_back_what_is_half_done(capsys):
    undone, before = [], signal.getsignal(signal.SIGTERM)

    def body():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            undone.append(True)

    assert run_command(body) == 143
    assert undone
    assert capsys.readouterr().err == "ended\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_real_full_device(capsys):
    def body():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)
        return 0

    if not os.path.exists("/dev/full"):
        pytest.skip("only Linux has /dev/full")
    assert run_command(body) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_torch_saving_to_a_full_disk(capsys):
    """As seen on a full tmpfs: the cause is only in the context, the error itself speaks of positions."""

    def body():
        try:
            raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    assert run_command(body) == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "broken disk")])
def test_what_nobody_expected_is_not_hidden(error):
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_on_windows_the_way_is_told(capsys, monkeypatch):
    monkeypatch.setattr("bnft.errors.sys.platform", "win32")
    assert run_command(lambda: 0) == 2
    assert "wsl --install" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_the_body_is_returned(status):
    assert run_command(lambda: status) == status
