import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mtl.tools.lock import HOLDER, FolderInUse, folder_lock

HOLD = "import sys, time\nfrom mtl.tools.lock import folder_lock\nwith folder_lock(sys.argv[1]):\n    "
WAIT = HOLD + "print('held', flush=True)\n    time.sleep(60)"


def start(code: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def test_the_second_process_hears_who_holds_the_folder(tmp_path):
    holder = start(WAIT, tmp_path / "run")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        who = rf"run is in use by process {holder.pid} on {socket.gethostname()}, since 20\d\d-.*another folder$"
        with pytest.raises(FolderInUse, match=who), folder_lock(tmp_path / "run"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with folder_lock(tmp_path / "run"):  # a killed process holds nothing, whatever it left
        assert str(os.getpid()) in (tmp_path / "run" / HOLDER).read_text()
    assert not (tmp_path / "run" / HOLDER).exists()


def test_a_thread_may_ask_again_and_another_may_not(tmp_path):
    refused = []

    def other() -> None:
        try:
            with folder_lock(tmp_path):
                pass
        except FolderInUse as error:
            refused.append(str(error))

    with folder_lock(tmp_path), folder_lock(tmp_path / "." / ""):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread of this process" in refused[0]
    other()
    assert len(refused) == 1


def test_the_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_lock(tmp_path):
        raise KeyboardInterrupt
    with folder_lock(tmp_path):
        pass


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that this user cannot write to")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="choose a writable folder"), folder_lock(tmp_path):
        pass


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run could not be written"), folder_lock(tmp_path / "run"):
        pass
