"""The networks, as Flax Linen modules: shapes in, shapes out."""
