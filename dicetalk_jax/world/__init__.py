"""The drawn world: synthetic people, emotions and speech, of which every factor is known."""
