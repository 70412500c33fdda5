"""The angles of rotary position embeddings, plain and stretched by YaRN, as tables of cosines and sines.

Source: transformers `modeling_rope_utils.py` (`_compute_yarn_parameters`); arXiv 2309.00071 for YaRN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edgeqwen.types import ModelShape


def rotation(shape: ModelShape) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines [max_position_embeddings, head_dim / 2], times YaRN's attention factor and head_dim ** -1/4.

    Products of queries and keys that were turned by these are scaled already, by head_dim ** -1/2. So attention itself
    need not scale: a product of one row that is scaled takes ONNX Runtime half as long again.
    """
    exponents = np.arange(0, shape.head_dim, 2) / shape.head_dim
    frequencies = shape.rope_theta**-exponents
    factor = shape.head_dim**-0.25
    if shape.rope_scaling is not None:
        frequencies, attention = _stretched(frequencies, shape, shape.rope_scaling)
        factor *= attention
    angles = np.outer(np.arange(shape.max_position_embeddings), frequencies)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def _stretched(
    frequencies: npt.NDArray[np.float64], shape: ModelShape, scaling: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float64], float]:
    """Slow frequencies divided by the factor, fast ones left, a ramp between; and the attention factor."""
    factor = float(scaling["factor"])
    original = int(scaling.get("original_max_position_embeddings", shape.max_position_embeddings))

    def turning(turns: float) -> float:
        """The dimension that makes so many turns over the original length."""
        return shape.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(shape.rope_theta))

    low = max(math.floor(turning(float(scaling.get("beta_fast", 32)))), 0)
    high = min(math.ceil(turning(float(scaling.get("beta_slow", 1)))), shape.head_dim - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(shape.head_dim // 2) - low) / span, 0, 1)
    attention = scaling.get("attention_factor")
    mean = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return frequencies / factor * ramp + frequencies * (1 - ramp), mean if attention is None else float(attention)
