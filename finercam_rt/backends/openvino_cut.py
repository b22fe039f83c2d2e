"""A graph in two: what the prediction needs, and what only the explanation needs.

OpenVINO computes a compiled graph in one precision. bfloat16 has 8 significant bits: enough for a prediction, and too
few for sums of weighted activations that nearly cancel, as in a map. So in bf16 the explanation is apart, in float32.
"""

from __future__ import annotations

from typing import Any


def cut_behind_logits(openvino: Any, model: Any) -> tuple[Any, Any]:
    """The model that computes the logits, and the one that computes the other outputs.

    The first one's outputs are the logits and then the values that the second one reads; these are the second one's
    first inputs, in the same order. openvino is the module, which is not imported here; model is taken apart.
    """
    logits = _logits(model)
    needed = _ancestors(logits)
    crossing: dict[tuple[str, int], Any] = {}
    read: dict[tuple[str, int], Any] = {}
    for node in model.get_ordered_ops():
        if node.get_name() in needed:
            continue
        for port in node.inputs():
            value = port.get_source_output()
            source = value.get_node()
            if source.get_name() not in needed or source.get_type_name() == "Constant":
                continue
            key = (source.get_name(), value.get_index())
            if key not in read:
                crossing[key] = value
                read[key] = openvino.op.Parameter(value.get_element_type(), value.get_partial_shape())
            port.replace_source_output(read[key].output(0))
    images = [parameter for parameter in model.get_parameters() if parameter.get_name() in needed]
    contrast = [parameter for parameter in model.get_parameters() if parameter.get_name() not in needed]
    others = [result for result in model.get_results() if result.get_name() != logits.get_name()]
    prediction = openvino.Model([logits, *(openvino.op.Result(value) for value in crossing.values())], images)
    return prediction, openvino.Model(others, [*read.values(), *contrast])


def predicting(openvino: Any, model: Any) -> Any:
    """The model that computes the logits and nothing else; model is taken apart."""
    logits = _logits(model)
    needed = _ancestors(logits)
    return openvino.Model([logits], [p for p in model.get_parameters() if p.get_name() in needed])


def _logits(model: Any) -> Any:
    return next(result for result in model.get_results() if "logits" in result.output(0).get_names())


def _ancestors(node: Any) -> set[str]:
    """The names of the nodes that it is computed from, its own among them."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.get_name() not in found:
            found.add(node.get_name())
            waiting += [value.get_node() for value in node.input_values()]
    return found
