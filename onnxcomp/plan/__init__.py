"""A serving plan: how many workers of which kind hold a rate within a p99, on how many machines, and at what cost.

found = onnxcomp.plan(["model.onnx", "model.int8.onnx"], rate=60, slo_p99_ms=60, price_per_hour=0.2)
found.best                                             # cheapest option that a real run has confirmed
onnxcomp.plan.cost("model.onnx", slo_p99_ms=60)        # one number with its interval, for a search
"""

from onnxcomp.callable import make_callable
from onnxcomp.plan.choice import ModelPlan, Plan
from onnxcomp.plan.cost import Cost, cost
from onnxcomp.plan.make import plan
from onnxcomp.plan.result import Objective, Option

__all__ = ["Cost", "ModelPlan", "Objective", "Option", "Plan", "cost", "plan"]

make_callable(__name__, plan)
