"""A thousand re-queues on a real server, interrupts and out-of-memory errors, two clients: `python3 dev.py soak`.

Every change that people make between one queue and the next (weight, picture, mask, adapter, batch, model) in small pictures of one
step. The same request has to give the same file at the end as at the beginning, memory has to stay, and the prompt after a fault has to
be right. Memory is the process's own after a collection of garbage and after free memory is given back to the system, always behind the
same request. What is resident is printed beside it, with and without either: the pages of mapped model files are in it, which come and
go as the system likes. ComfyUI's history is cleared as it goes, for it keeps every prompt.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import soak_requests
from support.rig import Rig
from support.soak_requests import REFERENCES, Request, prompt, random_request

PACKS = ("faults_pack",)
PLACES = {"encoding": 2, "projecting": 2, "sampling": 15}  # a fault comes before one of so many modules
KINDS = {"oom": "execution_error", "hold": "execution_interrupted"}  # of a fault -> what the history has to say of it
WARM, SAMPLES, GROWTH = 100, 20, 0.02
BETWEEN = Request(picture=3, mask="picture", weight=0.5, batch=2, seed=0)  # shares nothing with a reference but the models
Row = tuple[str, str, bool]  # what, figure, whether the bar is met


class Soak:
    """Requests on a running rig that has the faults pack. `failures` are sentences about what was not right."""

    def __init__(self, rig: Rig, adapter: bool = True, references: Sequence[Request] = REFERENCES):
        self.rig, self.server, self.adapter, self.references = rig, rig.server, adapter, references
        self.failures: list[str] = []
        soak_requests.write_pictures(rig.base / "input", rig.comfy / "input" / "example.png")
        chance = random.Random(0)
        rig.provide(*(self.prompt(one) for one in [*REFERENCES, *(random_request(chance, i) for i in range(100))]))
        self.expected = {request: self.pictures(request) for request in references}

    def prompt(self, request: Request) -> dict[str, Any]:
        return prompt(request, self.adapter)

    def entry(self, request: Request) -> dict[str, Any]:
        """What the history says of a request once it has ended; the server forgets it."""
        prompt_id = self.server.queue(self.prompt(request))
        entry = self.server.finished(prompt_id, pause=0.01)
        self.server.post("/history", {"delete": [prompt_id]})
        return entry

    def pictures(self, request: Request) -> list[bytes]:
        return self.server.pictures(self.server.checked(self.entry(request)))

    def check(self, request: Request, when: str) -> None:
        """The same files as at the beginning, made anew: the sampler's result was not lying ready."""
        entry = self.server.checked(self.entry(request))
        cached = next(told["nodes"] for kind, told in entry["status"]["messages"] if kind == "execution_cached")
        sampler = next(key for key, node in self.prompt(request).items() if node["class_type"] == "KSampler")
        if sampler in cached:
            self.failures.append(f"{when}: {request} was not sampled again")
        if self.server.pictures(entry) != self.expected[request]:
            self.failures.append(f"{when}: {request} gave another picture than at the beginning")

    def memory(self) -> dict[str, int]:
        """Of the server, in bytes, always behind the same request."""
        self.pictures(BETWEEN)
        return self.server.get("/memory")

    def requeue(self, count: int, every: int) -> dict[int, dict[str, int]]:
        """`count` requests; gives the memory after each `every` of them."""
        chance, found = random.Random(1), {}
        for number in range(count):
            self.pictures(random_request(chance, number))
            if (number + 1) % every == 0:
                found[number + 1] = self.memory()
                print(f"  {number + 1} re-queues: {megabytes(found[number + 1])}", flush=True)
        for request in self.references:
            self.check(request, f"after {count} re-queues")
        return found

    def cycled(self, count: int) -> list[Request]:
        """`count` references, no two neighbours alike; the last tenth are those of SDXL, which is slow to load."""
        groups = [[one for one in self.references if one.base == base] for base in ("sd15", "sdxl")]
        slow = count // 10 if groups[1] else 0
        return [group[i % len(group)] for group, some in zip(groups, (count - slow, slow), strict=True) for i in range(some)]

    def fail(self, place: str, kind: str, count: int) -> int:
        """`count` faults of a kind in a place, each with the same request right behind it; gives how many came and ended as they should."""
        chance, right = random.Random(f"{place} {kind}"), 0
        self.pictures(BETWEEN)  # so that nothing of the first request lies ready in ComfyUI
        for request in self.cycled(count):
            self.server.post("/forget", {})
            self.server.post("/faults", {"place": place, "kind": kind, "after": chance.randrange(PLACES[place])})
            prompt_id = self.server.queue(self.prompt(request))
            if kind == "hold":
                self.interrupt(prompt_id)
            entry = self.server.finished(prompt_id, pause=0.01)
            ends = {kind for kind, _ in entry["status"]["messages"]}
            fired = self.server.get("/faults")["state"] == "fired"
            if fired and KINDS[kind] in ends:
                right += 1
            else:
                self.failures.append(f"{kind} in {place}: {request} ended with {sorted(ends)}{'' if fired else ', before the fault came'}")
            self.check(request, f"after {kind} in {place}")
        return right

    def interrupt(self, prompt_id: str) -> None:
        """Ask for an interrupt once the prompt stands in the place that was armed."""
        while self.server.get("/faults")["state"] == "armed" and not self.server.get(f"/history/{prompt_id}"):
            time.sleep(0.01)
        self.server.post("/interrupt", {})

    def two_clients(self, count: int) -> dict[str, int]:
        """Two clients queue `count` requests each, in turn; gives how many right answers each got. Both hear of their own only."""
        return asyncio.run(self._two_clients(count))

    async def _two_clients(self, count: int) -> dict[str, int]:
        asked = {"first": self.cycled(2 * count)[::2], "second": self.cycled(2 * count)[1::2]}
        queued: dict[str, dict[str, Request]] = {"first": {}, "second": {}}
        async with aiohttp.ClientSession() as session:
            sockets = {name: await session.ws_connect(f"{self.server.url}/ws?clientId={name}") for name in asked}
            for pair in zip(*asked.values(), strict=True):
                for name, request in zip(asked, pair, strict=True):
                    queued[name][self.server.queue(self.prompt(request), name)] = request
            heard = await asyncio.gather(*(self._listen(sockets[name], set(queued[name])) for name in asked))
        right = {}
        for name, outputs in zip(asked, heard, strict=True):
            if foreign := set(outputs) - set(queued[name]):
                self.failures.append(f"the {name} client heard of {len(foreign)} prompts that are not its own")
            got = {key: self.server.pictures({"outputs": outputs.get(key, {})}) for key in queued[name]}
            right[name] = sum(got[key] == self.expected[request] for key, request in queued[name].items())
        self.server.post("/history", {"clear": True})
        return right

    @staticmethod
    async def _listen(socket: Any, waiting: set[str]) -> dict[str, dict[str, Any]]:
        """{prompt id: outputs by node} of all that a client hears of until its own prompts have ended."""
        outputs: dict[str, dict[str, Any]] = {}
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            kind, told = message.json()["type"], message.json()["data"]
            if kind == "executed":
                outputs.setdefault(told["prompt_id"], {})[told["node"]] = told["output"]
            elif kind in ("execution_success", "execution_error", "execution_interrupted"):
                waiting.discard(told["prompt_id"])
                if not waiting:
                    break
        return outputs


def megabytes(memory: dict[str, int]) -> str:
    bytes_of = ("own", "resident", "raw", "tensors")
    return ", ".join(f"{name} {memory[name] / 1e6:.1f} MB" for name in bytes_of) + f", {memory['objects']} objects"


def grown(samples: dict[int, dict[str, int]], name: str) -> float:
    """Share by which a figure grew: the median of the last five samples against that of the first five from WARM re-queues on.

    One sample is 2 % off another, either way, by where the C library happens to have put what is held.
    """
    known = [one[name] for number, one in samples.items() if number >= min(WARM, max(samples))]
    return statistics.median(known[-5:]) / statistics.median(known[:5]) - 1


def requeued(soak: Soak, count: int) -> list[Row]:
    started = time.monotonic()
    samples = soak.requeue(count, max(count // SAMPLES, 1))
    took, growth, wrong = time.monotonic() - started, grown(samples, "own"), len(soak.failures)
    return [
        (f"{count} re-queues, then the {len(soak.references)} references", f"{took:.0f} s, {wrong} other pictures", wrong == 0),
        (f"memory since {WARM} re-queues", f"{growth:+.2%}", growth < GROWTH),
        ("resident, without giving back", f"{grown(samples, 'resident'):+.2%}, {grown(samples, 'raw'):+.2%}", True),
        ("tensors, objects since then", f"{grown(samples, 'tensors'):+.2%}, {grown(samples, 'objects'):+.2%}", True),
    ]


def failed(soak: Soak, count: int) -> list[Row]:
    rows: list[Row] = []
    for place, kind in itertools.product(PLACES, KINDS):
        before = len(soak.failures)
        right = soak.fail(place, kind, count)
        wrong = len(soak.failures) - before
        rows.append((f"{count} times {kind} in {place}", f"{right} came, {wrong} wrong prompts", wrong == 0))
        print("  " + ": ".join(rows[-1][:2]), flush=True)
    right = soak.two_clients(count)
    rows.append((f"two clients, {count} prompts each", f"{right['first']} and {right['second']} right", set(right.values()) == {count}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="re-queues, 0 for none")
    parser.add_argument("--faults", type=int, default=50, help="faults of each kind in each place, and prompts of each client, 0 for none")
    parser.add_argument("--bare", action="store_true", help="the re-queues alone, without an adapter: what ComfyUI itself does")
    parser.add_argument("--comfyui", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, Rig(options.comfyui.resolve(), Path(base), extra=PACKS) as rig:
        soak = Soak(rig, not options.bare)
        told = requeued(soak, options.count) if options.count else []
        told += failed(soak, options.faults) if options.faults and not options.bare else []
    width = max(len(what) for what, _, _ in told)
    for what, figure, met in told:
        print(f"{what:{width}}  {figure:40}  {'met' if met else 'MISSED'}")
    for failure in soak.failures[:20]:
        print(failure)
    sys.exit(0 if all(met for _, _, met in told) and not soak.failures else 1)


if __name__ == "__main__":
    main()
