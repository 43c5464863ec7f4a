"""ONNX stand-ins for insightface's trained models, with the names, inputs and outputs of the real files.

The trained models may not be redistributed. These have random weights and answer where they are told to, so that insightface's own
code runs from the file to the embedding. The detector sees faces only in a picture that is not black, and only up to a given size of
its input (the real one misses faces that fill the picture, and finds them when it looks at it smaller).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
FILES = {"buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"), "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx")}


class Spot(NamedTuple):
    """A face to be found, in pixels of the picture: left, top, right, bottom; eyes, nose, corners of the mouth; score."""

    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]
    score: float


T1_SIZE = (886, 1280)  # height, width of insightface.data's picture "t1"
T1 = (  # three of its faces, placed by eye; the second is the largest
    Spot((62, 262, 170, 402), ((88, 330), (127, 307), (121, 340), (110, 370), (142, 358)), 0.9),
    Spot((465, 265, 580, 420), ((490, 318), (543, 335), (505, 350), (480, 375), (525, 392)), 0.85),
    Spot((1132, 262, 1228, 405), ((1147, 330), (1196, 327), (1165, 350), (1150, 368), (1198, 368)), 0.8),
)


def write_models(folder: Path, name: str, spots=T1, picture=T1_SIZE, largest_input: int = 640) -> Path:
    """Both files of the model package `name` in `folder`; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    detector, embedder = FILES[name]
    onnx.save(scrfd(spots, picture, largest_input), folder / detector)
    onnx.save(arcface(seed=len(name)), folder / embedder)
    return folder


class _Graph:
    """Collects nodes and constants under numbered names."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def const(self, value, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes) -> str:
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def model(self, inputs, outputs) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _floats(name: str, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def scrfd(spots, picture, largest_input: int) -> onnx.ModelProto:
    """A detector of SCRFD's signature: [1, 3, H, W] -> scores [n, 1], boxes [n, 4], points [n, 10] for each stride.

    n = H / stride * W / stride * 2 anchors; boxes and points are distances from the anchor in strides. insightface scales the picture
    into the upper left corner of the input, longer side to longer side.
    """
    g = _Graph()
    shape = g.op("Shape", "input.1")
    height, width = (g.op("Gather", shape, g.const(i, np.int64)) for i in (2, 3))
    scale = g.op("Div", g.op("Cast", width, to=TensorProto.FLOAT), g.const(max(picture)))
    corners = np.array([spot.box for spot in spots])
    boxes = g.op("Mul", g.const(corners), scale)  # [f, 4] in pixels of the input
    points = g.op("Mul", g.const([np.ravel(spot.points) for spot in spots]), scale)
    centres = g.op("Mul", g.const((corners[:, :2] + corners[:, 2:]) / 2), scale)
    bright = g.op("Greater", g.op("ReduceMax", "input.1", keepdims=0), g.const(-0.99))
    near = g.op("LessOrEqual", g.op("Cast", width, to=TensorProto.FLOAT), g.const(largest_input))
    seen = g.op("Cast", g.op("And", bright, near), to=TensorProto.FLOAT)
    names = {kind: [f"{kind}_{stride}" for stride in STRIDES] for kind in ("score", "bbox", "kps")}
    for level, stride in enumerate(STRIDES):
        anchors = _anchors(g, height, width, stride)  # [n, 1, 2]
        away = g.op("Sub", anchors, centres)
        half = g.const(stride / 2)
        inside = g.op("And", g.op("Greater", away, g.op("Neg", half)), g.op("LessOrEqual", away, half))
        hit = g.op("ReduceMin", g.op("Cast", inside, to=TensorProto.FLOAT), axes=[2], keepdims=1)  # [n, f, 1]: 1 at the nearest anchor
        scores = g.op("Mul", hit, g.const([[spot.score] for spot in spots]))
        g.op("Mul", g.op("ReduceMax", scores, axes=[1], keepdims=0), seen, out=names["score"][level])
        to_box = g.op("Mul", g.op("Sub", boxes, g.op("Concat", anchors, anchors, axis=2)), g.const([-1, -1, 1, 1]))
        to_points = g.op("Sub", points, g.op("Concat", *[anchors] * 5, axis=2))
        for distance, kind in ((to_box, "bbox"), (to_points, "kps")):
            chosen = g.op("ReduceSum", g.op("Mul", distance, hit), g.const([1], np.int64), keepdims=0)
            g.op("Div", chosen, g.const(stride), out=names[kind][level])
    widths = {"score": 1, "bbox": 4, "kps": 10}
    outputs = [_floats(name, [f"n{name}", widths[kind]]) for kind in names for name in names[kind]]
    return g.model([_floats("input.1", [1, 3, "height", "width"])], outputs)


def _anchors(g: _Graph, height: str, width: str, stride: int) -> str:
    """Anchor points [n, 1, 2] as (x, y): x runs fastest, two on each point."""
    axes = []
    for side in (height, width):
        steps = g.op("Range", g.const(0, np.int64), g.op("Div", side, g.const(stride, np.int64)), g.const(1, np.int64))
        axes.append(g.op("Mul", g.op("Cast", steps, to=TensorProto.FLOAT), g.const(stride)))
    rows = g.op("Unsqueeze", axes[0], g.const([1, 2], np.int64))  # [h, 1, 1]
    columns = g.op("Unsqueeze", axes[1], g.const([0, 2], np.int64))  # [1, w, 1]
    two = g.const(np.zeros((1, 1, 2)))
    flat = [g.op("Reshape", g.op("Add", g.op("Add", a, g.op("Mul", b, g.const(0))), two), g.const([-1, 1, 1], np.int64))
            for a, b in ((columns, rows), (rows, columns))]  # fmt: skip
    return g.op("Concat", *flat, axis=2)


def arcface(seed: int) -> onnx.ModelProto:
    """An embedder of ArcFace's signature, [n, 3, 112, 112] -> [n, 512]: two convolutions and a linear layer, random weights."""
    g = _Graph()
    rng = np.random.default_rng(seed)
    x = "input.1"
    for channels in ((3, 8), (8, 16)):
        weight = rng.normal(0, (channels[0] * 16) ** -0.5, (channels[1], channels[0], 4, 4))
        x = g.op("Relu", g.op("Conv", x, g.const(weight), strides=[4, 4]))
    linear = rng.normal(0, 0.1, (16 * 7 * 7, 512))
    g.op("MatMul", g.op("Flatten", x), g.const(linear), out="embedding")
    return g.model([_floats("input.1", ["batch", 3, 112, 112])], [_floats("embedding", ["batch", 512])])
