"""A quick look: 256 pixels, 10 steps, 12.5 frames a second.

dicetalk generate --config configs/draft.py --image P --audio A --emotion happy --out OUT.mp4 --weights W

About a tenth of the arithmetic of configs/released.py.
"""

from dicetalk_jax.config import GenerationConfig

config = GenerationConfig(size=256, steps=10, interpolate=False)
