"""API prompts written in Python."""

from typing import Any

Output = list[Any]  # [key of a node, number of its output]


class Graph(dict):
    """An API prompt; add(...) gives the new node's first output."""

    def add(self, class_type: str, **inputs: Any) -> Output:
        key = str(len(self) + 1)
        self[key] = {"class_type": class_type, "inputs": inputs}
        return [key, 0]


def second(output: Output) -> Output:
    return [output[0], 1]
