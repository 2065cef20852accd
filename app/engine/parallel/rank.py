"""A rank other than the first: a process that holds its part of the model and runs what rank 0 tells it to.

`python -m app.engine.parallel.rank`, started by ranks.py. Messages come through standard input, answers go to standard
output. Whenever the input ends, rank 0 is gone or wants this process to go: it goes at once, wherever it is.
"""

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import IO, Any

import torch

from app.engine.device import open_device
from app.engine.model import choose_kernels, device_of, on_device, prepare, read_weights, resolve_threads
from app.engine.parallel.joining import Meeting
from app.engine.parallel.layout import Layout
from app.engine.parallel.wire import Clear, Failed, Loaded, Pool, Task, dumps, read
from app.engine.token_pool import TokenPool

Inbox = queue.SimpleQueue[Any]


class PeerLost(RuntimeError):
    """Another rank cannot be reached; that one, not this one, has something to say."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # rank 0 drains first; it closes the pipe when it has
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints is no answer
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    try:
        follow(inbox, answers)
    except Exception as error:
        lost = isinstance(error, PeerLost)
        if not lost:
            traceback.print_exc()
        answers.write(dumps(Failed(f"{type(error).__name__}: {error}", lost)))
        os._exit(1)  # the other thread is reading: an ordinary end would wait for it


def _listen(inbox: Inbox) -> None:
    try:
        with open(sys.stdin.fileno(), "rb", closefd=False) as messages:
            while True:
                inbox.put(read(messages))
    except (EOFError, pickle.UnpicklingError):  # the second: in the middle of a message
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def follow(inbox: Inbox, answers: IO[bytes]) -> None:
    """Load this rank's part, meet the others, run one batch after the other."""
    task: Task = inbox.get()
    config, layout = task.config, Layout.of(task.config)
    torch.set_num_threads(resolve_threads(config.threads, layout.num_ranks))
    part, device = layout.part(task.spec, task.rank), open_device(device_of(config, task.rank))
    kernels = choose_kernels(config, device, part.spec, task.dtype)
    meeting = Meeting(layout, task.rank, task.store, device.torch, config.stall_s, lambda error: PeerLost(str(error)))
    with on_device(device):
        weights = read_weights(config, task.folder, part, task.dtype)
        answers.write(dumps(Loaded()))
        decoder, _ = meeting.join(part, weights, task.max_model_len, kernels)
    pool: Pool = inbox.get()
    cache, forward = prepare(config, device, decoder, TokenPool(config.max_num_seqs, device), pool)
    with torch.inference_mode():
        while True:
            message = inbox.get()
            if isinstance(message, Clear):
                cache.clear(message.block_ids)
            else:
                forward.follow(message)


if __name__ == "__main__":
    main()
