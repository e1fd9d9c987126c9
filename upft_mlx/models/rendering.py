"""Chat templates and tokenizers are programs of strangers: they run in a process that can be ended.

A worker renders templates in Jinja's sandbox, set up as transformers does it, a JSON line for each request. A sandbox
keeps a template from files and code, not from loops without an end or texts without a limit. So the worker has a limit
of time and memory; one that passes it is killed, and the next request starts another. It costs 0.2 s of CPU once and
0.2 ms for each prompt. A tokenizer is loaded and tried there once, before it is loaded here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from upft_mlx.errors import MachineError, ModelError
from upft_mlx.escape import one_line

SECONDS = 8
"""CPU time for one prompt (milliseconds are usual), and for loading a tokenizer (1 s is usual for the largest): a
machine that is busy with other things refuses nothing."""
PATIENCE = 120.0
"""Seconds on the clock for the worker to start or to answer, on a machine that is busy."""
MEMORY = 1 << 30
"""Bytes that the worker may take, its code included (50 MB)."""
LONGEST = 4_000_000
"""Characters of a prompt."""
_GLANCE = 0.25
"""Seconds between two looks at the memory of a worker that takes long; prompts are done before the first."""
_CODE = "import sys; sys.path[:] = {path!r}; from upft_mlx.models.rendering import serve; serve()"
_SAMPLE = f"{'a' * 300} {'1' * 300} {' ' * 300}{'=' * 300} How many? \\frac{{1}}{{2}} \u00e9\u6570\U0001f34e\n\n" * 4
"""What a tokenizer is tried on: long runs of the same character are what patterns take long for."""
_ended: dict[str, str] = {}
"""Templates that took too much, and why: they are not tried again, since each try takes as much."""


class EndedError(Exception):
    """The work was ended: says why, to follow the name of what was worked on."""


class RefusedError(ValueError):
    """The template or the tokenizer raised an error; says which."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """A chat template's text.

    Args:
        template: in Jinja.
        variables: plain values: messages and whatever else the template is given.

    Raises:
        RefusedError: the template raised an error, for example on purpose.
        EndedError: it took too much time or memory.
    """
    if template in _ended:
        raise EndedError(_ended[template])
    try:
        answer = _worker().ask({"template": template, "variables": variables, "seconds": SECONDS})
    except EndedError as error:
        _ended[template] = str(error)
        raise
    return str(answer["text"])


def try_tokenizer(path: Path) -> None:
    """Load a tokenizer.json and encode a text with it.

    Raises:
        RefusedError: it cannot be loaded or used.
        EndedError: it took too much time or memory.
    """
    _worker().ask({"tokenizer": str(path.absolute()), "seconds": SECONDS})


_LEFT_OUT = ("continue_final_message", "return_assistant_tokens_mask", "return_tensors", "documents")


def confine(tokenizer: Any, path: Path) -> None:
    """Let a tokenizer of transformers render its chat template in the worker; nothing else about it changes.

    Args:
        tokenizer: renders with a template, not with code of its own class.
        path: the model folder, for messages.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return

    def apply_chat_template(
        conversation: list[dict[str, Any]],
        tools: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        if unknown := [name for name in _LEFT_OUT if variables.pop(name, None)]:
            raise TypeError(f"{unknown[0]}: not supported here")
        template = tokenizer.get_chat_template(chat_template, tools)
        given = {"tools": tools, "add_generation_prompt": add_generation_prompt, **variables}
        text = render_for(tokenizer, template, conversation, path, **given)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if tokenize else text

    tokenizer.apply_chat_template = apply_chat_template


def render_for(
    tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]], path: str | Path, **variables: Any
) -> str:
    """The text of a conversation, with the variables that transformers gives a template.

    Args:
        tokenizer: whose special tokens the template may write.
        template: in Jinja.
        messages: the turns, each with `role` and `content`.
        path: what errors call the template.
        variables: what the template is given besides.

    Raises:
        RefusedError: the template raised an error, for example on purpose.
        ModelError: it took too much time or memory.
    """
    known = {"messages": messages, "tools": None, "documents": None, **tokenizer.special_tokens_map, **variables}
    try:
        return render(template, known)
    except EndedError as error:
        raise ModelError(f"the chat template {error}", "use another model or another template", path=path) from None


@cache
def _worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.end)
    return worker


class _Worker:
    """The process, started at the first need and after each end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        line = json.dumps(request, default=str).encode() + b"\n"  # special tokens can be objects
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:
                pass  # it died; the line that does not come says so
            answer: dict[str, Any] = json.loads(self._line(process))
        if "ended" in answer:
            raise EndedError(answer["ended"])
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        """The process that runs; one of a forked process's parent is not shared."""
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return self._process
        command = [sys.executable, "-c", _CODE.format(path=sys.path)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._owner = os.getpid()
        try:
            self._line(self._process)
        except EndedError as error:
            raise MachineError(f"the process for chat templates does not start: it {error}", "try again") from None
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line of the process; it ends itself after `SECONDS`, and is ended where no line comes at all."""
        assert process.stdout is not None
        deadline, parts = time.monotonic() + PATIENCE, list[bytes]()
        while not parts or not parts[-1].endswith(b"\n"):
            left = deadline - time.monotonic()
            if not select.select([process.stdout], [], [], max(0.0, min(left, _GLANCE)))[0]:
                if left <= 0:
                    self._give_up(f"takes more than {PATIENCE:.0f} s")
                if sys.platform != "linux":  # RLIMIT_AS does it there; macOS does not limit a process itself
                    rss = ["ps", "-o", "rss=", "-p", str(process.pid)]
                    shown = subprocess.run(rss, capture_output=True, text=True, check=False).stdout.strip()
                    if shown.isdigit() and 1024 * int(shown) > MEMORY:
                        self._give_up(f"takes more than {MEMORY >> 20:,} MB")
                continue
            parts.append(os.read(process.stdout.fileno(), 1 << 20))
            if not parts[-1]:
                spent = process.wait() == -signal.SIGXCPU
                self._give_up(f"takes more than {SECONDS} s" if spent else "ended the process that it ran in")
        return b"".join(parts)

    def _give_up(self, why: str) -> None:
        self.end()
        raise EndedError(why)

    def end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


# What the worker does.


def serve() -> None:
    """Say that it is ready, then answer each request, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between
    import jinja2.sandbox  # before memory is limited: what is loaded later counts as the template's
    import tokenizers

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _say(answers, {"text": f"ready {jinja2.__name__} {tokenizers.__name__}"})
    for line in sys.stdin:
        request = json.loads(line)
        # The system ends this process (SIGXCPU) when it has worked so long from now, also if its parent is gone.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + 1 + request["seconds"]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            answer = _answered(request)
        except MemoryError:
            answer = {"ended": f"takes more than {MEMORY >> 20:,} MB"}
        except BaseException as error:  # tokenizers panics with a BaseException of its own
            answer = {"error": one_line(f"{type(error).__name__}: {error}" if not str(error) else str(error), 300)}
        _say(answers, answer)


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    if "tokenizer" in request:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(request["tokenizer"])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        count = len(tokenizer.encode(_SAMPLE, add_special_tokens=False).ids)
        if count > 10 * len(_SAMPLE):
            return {"error": f"makes {count:,} tokens of {len(_SAMPLE):,} characters"}
        return {"tokens": count}
    text = _compiled(request["template"]).render(**request["variables"])
    return {"text": text} if len(text) <= LONGEST else {"error": f"renders a prompt of {len(text):,} characters"}


@cache
def _compiled(template: str) -> Any:
    """The template in a sandbox with what transformers' own has."""
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote; here it says nothing."""

        tags = {"generation"}  # noqa: RUF012  # the base class's

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _say(answers: IO[str], message: object) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
