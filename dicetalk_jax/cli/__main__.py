from dicetalk_jax.cli import entry

entry()
