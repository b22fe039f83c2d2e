"""Stage 6, behind the exporter: constants folded, and what says the same in fewer nodes.

The passes and rules are those of `torch.onnx.export(optimize=True)` (onnxscript's optimizer), without two kinds.
`slice_split_rule` looks through the whole graph at each node (up to 60 % of the time of an export) and found nothing in
any graph of ours; and what integer convolutions, quantised biases and functions ask for is not in our graphs. Numbers
that are added or multiplied are left out where they are 0 or 1 exactly.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule, RewriteRuleSet, pattern
from onnxscript.rewriter.rules import common as rules

from finercam_rt.export.fourier import fourier_by_products


def _exactly(number: int) -> pattern.Constant:
    """Onnxscript's own rules take 1e-8 for zero, which is what keeps a logarithm or a division from an infinity."""
    return pattern.Constant(number, rel_tol=0, abs_tol=0)


def _as_it_is(op: Any, x: Any, **_: Any) -> Any:
    return op.Identity(x)


class _AtNodesOf:
    """A rule that is tried at nodes of one type alone: a set tries each at every node, 4 % of an export."""

    def __init__(self, op_type: str, rule: RewriteRule) -> None:
        self._op_type, self._rule = op_type, rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: onnx_ir.Model, graph: Any, node: onnx_ir.Node, **options: Any) -> Any:
        return self._rule.try_rewrite(model, graph, node, **options) if node.op_type == self._op_type else None


ROUNDS = 2
RULES: dict[str, tuple[RewriteRule, ...]] = {
    "Mul": tuple(RewriteRule(lambda op, x: x * _exactly(1), _as_it_is).commute()),
    "Add": tuple(RewriteRule(lambda op, x: x + _exactly(0), _as_it_is).commute()),
    "Sub": (RewriteRule(lambda op, x: x - _exactly(0), _as_it_is),),
    "Div": (RewriteRule(lambda op, x: x / _exactly(1), _as_it_is),),
    "Dropout": (rules.dropout_zero_rule, rules.dropout_inference_rule),
    "Flatten": (rules.flatten_to_reshape_rule,),
    "Reshape": (
        rules.two_reshapes_matmul_reshape_rule,
        rules.one_reshape_matmul_reshape_rule,
        rules.materialize_reshape_shape_rule,
        rules.reshape_reshape_rule,
        rules.squeeze_reshape_1d_rule,
    ),
    "Cast": (
        rules.cast_constant_of_shape_rule,
        rules.cast_constant_of_shape_without_value_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
    ),
    "Slice": (rules.collapse_slice_rule, rules.collapse_slice2_rule),
    "Min": (rules.min_min_rule, rules.max_min_rule),
    "Max": (rules.max_max_rule, rules.min_max_rule),
    "Clip": (rules.successive_clip_relu_rule, rules.successive_clip_rule),
    "Relu": (rules.successive_relu_clip_rule, rules.successive_relu_rule),
    "Expand": (rules.no_op_expand_rule,),
    "Transpose": (rules.no_op_transpose_rule, rules.transpose_transpose_rule),
    "Unsqueeze": (rules.unsqueeze_unsqueeze_rule,),
    "ScatterND": (rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule),
    "Conv": (
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
        rules.remove_optional_bias_from_conv_rule,
    ),
    "ConvTranspose": (rules.remove_optional_bias_from_conv_transpose_rule,),
    "BatchNormalization": (
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ),
    "Gemm": (rules.remove_optional_bias_from_gemm_rule,),
}
"""By the type of the node whose output a rule gives anew."""


def simplify(model: onnx_ir.Model) -> None:
    """Simplify, in place, a model as the exporter has left it."""
    common.InlinePass()(model)
    rules_of_types: Any = [_AtNodesOf(op_type, rule) for op_type, group in RULES.items() for rule in group]
    folding = RewritePass(RewriteRuleSet(rules_of_types))
    for _ in range(ROUNDS):
        folded = fold_constants_ir(model, onnx_shape_inference=True).modified
        rewritten = folding(model).modified
        common.RemoveUnusedNodesPass()(model)
        if not (folded or rewritten):
            break
    fourier_by_products(model)
    Sequential(
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
