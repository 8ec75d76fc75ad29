"""The drawn world: people, emotions and speech of which every factor is known, drawn and spoken by our own code."""
