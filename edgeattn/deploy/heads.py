"""Where a graph's heads begin and end: what decodes after their last layers, and the branches of a detector apart.

What comes after the last layer with weights turns numbers into answers: offsets into pixels, logits into scores, both into
one output. Rounded to one scale of 8 bits, boxes up to 640 leave scores below 1 nothing (ultralytics#23987), so all of it
stays in float. A convolution that only takes the mean of a distribution (DFL) is part of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from edgeattn.spec import Spec, block_of, path_of

LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData"}
)
MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
BOXES, CLASSES, MASKS, WHOLE = "box branch", "class branch", "mask branch", "head"


_NAMED = re.compile(r"head\.\w+\.(edges|classes)\.")
_OURS = {"edges": BOXES, "classes": CLASSES}
"""Parts of our own head, as `head.one.edges.0`, by name."""


class Node(NamedTuple):
    """One operator, of ONNX or of OpenVINO."""

    name: str
    kind: str
    reads: tuple[str, ...]
    """Values that it reads."""
    makes: tuple[str, ...]
    """Values that it makes."""
    channels: int = 0
    """Output channels of a layer with weights; 0: it has none."""


def of_onnx(model: Any) -> list[Node]:
    """The nodes of an ONNX model, in their order."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}

    def channels(node: Any) -> int:
        shape = weights.get(node.input[1], ()) if node.op_type in LAYERS and len(node.input) > 1 else ()
        if not shape:
            return 0
        if node.op_type in ("Conv", "ConvTranspose"):
            return int(shape[0 if node.op_type == "Conv" else 1])
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return int(shape[0] if turned else shape[-1])

    return [
        Node(node.name, node.op_type, tuple(node.input), tuple(node.output), channels(node))
        for node in model.graph.node
    ]


def of_openvino(model: Any) -> list[Node]:
    """The operators of an OpenVINO model, in their order, without constants."""

    def value(port: Any) -> str:
        return f"{port.get_node().get_name()}:{port.get_index()}"

    def channels(op: Any) -> int:
        if op.get_type_name() not in LAYERS:
            return 0
        source = op.input_value(1).get_node()
        while source.get_type_name() in ("Convert", "FakeQuantize", *MOVING):
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant":
            return 0
        shape = op.get_output_partial_shape(0)
        return int(shape[1 if "Convolution" in op.get_type_name() else len(shape) - 1].get_length())

    return [
        Node(
            op.get_friendly_name(), op.get_type_name(), tuple(value(port) for port in op.input_values()),
            tuple(name for port in op.outputs() for name in (value(port), *port.get_names())), channels(op),
        )
        for op in model.get_ordered_ops()
        if op.get_type_name() != "Constant"
    ]  # fmt: skip


def read(file: Path) -> list[Node]:
    """The nodes of an ONNX or OpenVINO file."""
    if file.suffix == ".onnx":
        import onnx

        return of_onnx(onnx.load(file, load_external_data=False))
    from edgeattn.engines.openvino import openvino_core

    return of_openvino(openvino_core().read_model(file))


def decoding(nodes: list[Node]) -> frozenset[str]:
    """Names of what comes after the last layers, DFL's convolution among it; without what makes the maps of attentions."""
    makers = _makers(nodes)
    ahead = _ahead(nodes)
    layers = {i for i in range(len(nodes)) if _is_layer(nodes, i, makers)}
    after: set[int] = set()
    found = []
    for place, node in enumerate(nodes):  # in their order
        read = _known(node.reads, makers)
        if after.isdisjoint(read) and layers.isdisjoint(read):
            continue
        after.add(place)
        is_bias = node.kind == "Add" and len(read) == 1 and read[0] in layers
        if not (ahead[place] or place in layers or is_bias or node.kind == "Result" or block_of(path_of(node.name))):
            found.append(node.name)
    return frozenset(found)


def branches(nodes: list[Node], spec: Spec) -> dict[str, tuple[str, ...]]:
    """Names of the nodes of a head, by what it is for: of a detector its box and its class branch, where they are apart.

    A branch reaches from what no other branch reads to its last layers. Of a classifier there is none.
    """
    if spec.task == "classify":
        return {}
    ahead, makers = _ahead(nodes), _makers(nodes)
    last = [i for i in range(len(nodes)) if _is_layer(nodes, i, makers) and not ahead[i]]
    of = _purposes(nodes, last, spec) if spec.task == "detect" else dict.fromkeys(last, WHOLE)
    names = [name for name in (BOXES, CLASSES, MASKS, WHOLE) if name in of.values()]
    found = {}
    for name in names:
        own = {i for i in last if of[i] == name}
        if spec.task == "segment":  # all that lies after the features of the backbone, where the names tell
            inside = [node.name for node in nodes if node.name.startswith("head.")]
            found[name] = tuple(inside) or tuple(nodes[i].name for i in sorted(own))
            continue
        # Where box and class branch cannot be told apart, what several last layers read, or all, is the backbone's.
        most = len(own) if name != WHOLE else min(1, len(own) - 1)
        belongs = [i in own or (0 < len(ahead[i]) <= most and ahead[i] <= own) for i in range(len(nodes))]
        found[name] = tuple(node.name for node, yes in zip(nodes, belongs, strict=True) if yes)
    return found


def _purposes(nodes: list[Node], last: list[int], spec: Spec) -> dict[int, str]:
    """What each of a detector's last layers is for.

    Told by which part of the last concatenation it reaches, boxes first; where it reaches both, by its channels.
    """
    makers, behind = _makers(nodes), _behind(nodes)
    parts = _joined(nodes, makers, spec.output)
    if spec.prototypes and parts:  # boxes and scores are joined before the masks' coefficients
        parts = [*_joined(nodes, makers, parts[0]), *parts[1:]]
    before = [behind[makers[value]] | {makers[value]} for value in parts if value in makers]
    ours = {i: _OURS[match[1]] for i in last if (match := _NAMED.match(path_of(nodes[i].name)))}
    if len(ours) == len(last):
        return ours
    found = {}
    for i in last:
        reached = {place for place, part in enumerate(before) if i in part}
        if spec.prototypes and not reached & {0, 1}:
            found[i] = MASKS
        elif len(reached) == 1:
            found[i] = BOXES if reached == {0} else CLASSES
        elif nodes[i].channels == len(spec.labels) and nodes[i].channels % 4:
            found[i] = CLASSES
        elif nodes[i].channels % 4 == 0 and nodes[i].channels != len(spec.labels):
            found[i] = BOXES
        else:
            found[i] = WHOLE
    return found if {BOXES, CLASSES} <= set(found.values()) - {WHOLE} else dict.fromkeys(last, WHOLE)


def _joined(nodes: list[Node], makers: dict[str, int], value: str) -> list[str]:
    """What is joined last before a value; nothing where nothing is."""
    place = makers.get(value)
    while place is not None and nodes[place].kind != "Concat":
        place = next(iter(_known(nodes[place].reads, makers)), None)
    return [] if place is None else [value for value in nodes[place].reads if value in makers]


def _makers(nodes: list[Node]) -> dict[str, int]:
    return {value: i for i, node in enumerate(nodes) for value in node.makes}


def _is_layer(nodes: list[Node], place: int, makers: dict[str, int]) -> bool:
    """Whether a node is a layer with weights that have been learnt: not the mean of a distribution."""
    node = nodes[place]
    if not node.channels:
        return False
    before = makers.get(node.reads[0])
    while before is not None and nodes[before].kind in MOVING:
        before = makers.get(nodes[before].reads[0])
    return not (node.channels == 1 and before is not None and nodes[before].kind == "Softmax")


def _ahead(nodes: list[Node]) -> list[set[int]]:
    """Of each node the last layers, or layers before those, that read what it makes, directly or not."""
    makers = _makers(nodes)
    readers: dict[int, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for value in _known(node.reads, makers):
            readers[value].append(i)
    ahead: list[set[int]] = [set() for _ in nodes]
    for i in reversed(range(len(nodes))):
        for reader in readers[i]:
            own = ahead[reader]
            ahead[i] |= own if own else {reader} if _is_layer(nodes, reader, makers) else set()
    return ahead


def _behind(nodes: list[Node]) -> list[set[int]]:
    """Of each node all that it reads, directly or not."""
    makers = _makers(nodes)
    behind: list[set[int]] = [set() for _ in nodes]
    for i, node in enumerate(nodes):
        for value in _known(node.reads, makers):
            behind[i] |= behind[value] | {value}
    return behind


def _known(values: Iterable[str], makers: dict[str, int]) -> list[int]:
    return [makers[value] for value in values if value in makers]
