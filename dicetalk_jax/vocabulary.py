"""Constants that several packages share."""

# Of records, and of a finished video.
FPS = 25
# Of the frames that the diffusion model makes; the interpolator doubles it.
MODEL_FPS = 12.5
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
# Expression coefficients of Deep3DFaceRecon that the embedder takes.
EXPRESSION_DIM = 64
# MEAD's, in the order of the published priors' labels; -1 in a record is "not known".
EMOTIONS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
LEVELS = (1, 2, 3)
# What the drawn world knows of each frame (see dicetalk_jax/world).
TRUTH = (
  *("mouth_opening", "mouth_width", "phoneme"),
  *("brow_inner", "brow_outer", "lid", "squint", "corner_left", "corner_right", "cheek", "nose_wrinkle", "upper_lip"),
  *("gaze_x", "gaze_y", "yaw", "pitch", "roll"),
)
# What a network may compute in.
DTYPES = ("bfloat16", "float32")
