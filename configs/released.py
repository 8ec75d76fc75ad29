"""The release's settings: 512 pixels, 25 steps.

dicetalk generate --config configs/released.py --image P --audio A --emotion happy --out OUT.mp4 --weights W

The U-Net runs 3 times a step for each window of 25 frames (2 s of video): on an accelerator. A CPU takes hours.
"""

from dicetalk_jax.config import GenerationConfig

config = GenerationConfig()
