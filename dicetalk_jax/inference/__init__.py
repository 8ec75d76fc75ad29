"""From a portrait, speech and an emotion to a video."""
