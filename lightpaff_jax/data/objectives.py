"""OBJECTIVES: blocks of ids -> what is predicted from what. `config.objective` names one."""

import numpy as np
from jaxtyping import Float32, Int, Int32


def clm(
    blocks_BT1: Int[np.ndarray, 'B T+1'], lengths_B: Int[np.ndarray, ' B']
) -> dict[str, Int32[np.ndarray, 'B T'] | Float32[np.ndarray, 'B T']]:
    """Causal language modelling: every id from those before it.

    Args:
      blocks_BT1: ids; padded behind `lengths_B`.
      lengths_B: how many ids of each block are real; 0 for an empty row.

    Returns:
      tokens [B, T] = ids 0 ... T-1; labels [B, T] = ids 1 ... T, 0 behind the length;
      weights [B, T] = 1 where the label is real, else 0.
    """
    real_BT = np.arange(1, blocks_BT1.shape[1]) < lengths_B[:, None]
    return {
        'tokens': blocks_BT1[:, :-1].astype(np.int32),
        'labels': np.where(real_BT, blocks_BT1[:, 1:], 0).astype(np.int32),
        'weights': real_BT.astype(np.float32),
    }


OBJECTIVES = {'clm': clm}
