"""Lines of work for processes of their own, which import them by name."""

import os
import time

import torch


def meet(own, other):
    """Writes the process and its threads, and waits until another process has done so."""
    own.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    end = time.monotonic() + 120
    while not other.exists():
        assert time.monotonic() < end, "the other line does not run beside this one"
        time.sleep(0.1)


def fail():
    raise ValueError("this line fails")
